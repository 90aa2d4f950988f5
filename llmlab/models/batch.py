"""What goes through a model in one pass: tokens of one or several sequences laid end to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmlab.kv.memory import Memory

Watch = Callable[[int, Tensor], None]
"""Called with a layer's number and the attention weights (H, Q, S) of a span's queries."""
Visible = Callable[[Tensor, Tensor], Tensor]
"""visible(q (Q, 1), k (1, S)) -> (Q, S) bool on positions."""


@dataclass
class Span:
    """The part start..stop of the batch that belongs to one sequence, and the memory of that sequence."""

    start: int
    stop: int
    memory: Memory
    visible: Tensor | None = None
    """(T, T) bool over the span's own tokens; None where each sees itself and those before it."""
    patterns: tuple[Visible, ...] = ()
    watch: Watch | None = None
    first: int | None = None
    """The position of the first of its tokens, where the others follow it one by one."""

    def order(self, batch: Batch) -> Tensor | range:
        """The positions of its tokens, as `Rows.append` wants them."""
        if self.first is None:
            return batch.positions[self.start : self.stop]
        return range(self.first, self.first + self.stop - self.start)

    def all_patterns(self, window: int | None) -> tuple[Visible, ...]:
        """Its patterns, with a layer's window where it has one."""
        return self.patterns if window is None else (*self.patterns, _window(window))


@dataclass
class Batch:
    """Tokens (N,) of one or several sequences laid end to end, their positions (N,) and the spans that divide them."""

    tokens: Tensor
    positions: Tensor
    spans: list[Span]
    exact: bool = False
    """Whether each row must get, to the bit, what it would get in a pass of its own (below float32 as well)."""
    rotation: Tensor = field(default_factory=lambda: torch.empty(0))
    """(N, 1, D/2) complex, filled in by the decoder."""
    kernel: Any | None = None
    """How a pass of a few rows is computed, filled in by the decoder; None for the way of many rows."""


def _window(width: int) -> Visible:
    return lambda q, k: q - k < width

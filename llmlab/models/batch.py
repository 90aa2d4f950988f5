"""What goes through a model in one pass: tokens of one or several sequences laid end to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from llmlab.kv.memory import Memory

Watch = Callable[[int, Tensor], None]
"""Called with a layer's number and the attention weights (H, Q, S) of a span's queries."""


class Pattern(Protocol):
    """Which rows a query may see, by their positions; see `roles.AttentionPattern`."""

    def visible(self, q: Tensor, k: Tensor, layer: int, head: Tensor) -> Tensor:
        """q (1, Q, 1) and k (KV, 1, S): positions; head (KV, 1, 1): key-value heads. Returns (1 or KV, Q, S) bool."""

    def select(self, q: int, rows: Tensor, layer: int) -> Tensor | None:
        """To save work for a single query at position q: indices (n,) of the rows, at positions rows (KV, S), that any
        head may see; None to look at all. `visible` still decides among them."""


@dataclass(frozen=True)
class Window:
    """The latest `width` positions, a query's own included: a model's own sliding window."""

    width: int

    def visible(self, q: Tensor, k: Tensor, layer: int, head: Tensor) -> Tensor:
        return q - k < self.width

    def select(self, q: int, rows: Tensor, layer: int) -> Tensor | None:
        return None


def selected(patterns: Sequence[Pattern], q: int, kept: Tensor, layer: int) -> Tensor | None:
    """The rows (n,), of those at the positions `kept` (KV, S), that a pattern narrows a query at position q down to.

    None where none does. The other patterns still hide some of them.
    """
    for pattern in patterns:
        if (rows := pattern.select(q, kept, layer)) is not None:
            return rows
    return None


class Taps:
    """Keeps the hidden states that stand after some layers, counted from 1; filled in by `Decoder.run_layers`."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self.states: dict[int, Tensor] = {}

    def stacked(self) -> Tensor:
        """(N, taps, E): the states of a pass; a layer that a row did not go through has what the row left with."""
        return torch.stack([self.states[layer] for layer in self.layers], 1)

    def fill(self, h: Tensor) -> None:
        """Layers that the pass has not come to get h (N, E)."""
        for layer in self.layers:
            if layer not in self.states:
                self.states[layer] = h.clone()


@dataclass
class Span:
    """The part start..stop of the batch that belongs to one sequence, and the memory of that sequence."""

    start: int
    stop: int
    memory: Memory
    visible: Tensor | None = None
    """(T, T) bool over the span's own tokens, or (T, S) over all rows up to its last; None where each token sees itself
    and what is before it."""
    patterns: tuple[Pattern, ...] = ()
    watch: Watch | None = None
    first: int | None = None
    """The position of the first of its tokens, where the others follow it one by one."""
    bias: Tensor | None = None
    """(S,) added to every query's scores, in every layer."""

    def order(self, batch: Batch) -> Tensor | range:
        """The positions of its tokens, as `Rows.append` wants them."""
        if self.first is None:
            return batch.positions[self.start : self.stop]
        return range(self.first, self.first + self.stop - self.start)

    def all_patterns(self, window: int | None) -> tuple[Pattern, ...]:
        """Its patterns, with a layer's window where it has one."""
        return self.patterns if window is None else (*self.patterns, Window(window))


class LayerKernel(Protocol):
    """A way to compute layers; the decoder chooses one for a pass."""

    def layer(self, block: Any, h: Tensor, batch: Batch, kv_only: bool) -> Tensor:
        """h (N, E) through a block, in place or not; with `kv_only` just its memory grows and h stays as it is."""


@dataclass
class Batch:
    """Tokens (N,) of one or several sequences laid end to end, their positions (N,) and the spans that divide them."""

    tokens: Tensor
    positions: Tensor
    spans: list[Span]
    exact: bool = False
    """Whether each row must get, to the bit, what it would get in a pass of its own (below float32 as well)."""
    embeddings: Tensor | None = None
    """(N, E) in place of the tokens' own."""
    taps: Taps | None = None
    """Which hidden states of this pass are kept."""
    rotation: Tensor = field(default_factory=lambda: torch.empty(0))
    """(N, 1, D/2) complex, filled in by the decoder."""
    kernel: LayerKernel | None = None
    """How the pass is computed, chosen by the decoder."""

    def select(self, keep: Tensor, spans: list[Span]) -> Batch:
        """The batch of the rows where keep (N,) is set, which `spans` divide; its kernel is still to be chosen."""
        return Batch(self.tokens[keep], self.positions[keep], spans, rotation=self.rotation[keep])

"""What a pass returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PlanResult:
    """What a plan of layers did: the last states (n, E), and the logits (n, V) where it has had to compute them.

    `layers_run` counts the layers that the newest token went through. `exits` are (layer, confidence) of tokens that
    left early.
    """

    h: Tensor
    layers_run: float
    logits: Tensor | None = None
    exits: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class ForwardResult:
    """What a pass says: logits (n, V) of its last n tokens, and what it did for them (see `PlanResult`).

    `states` (N, taps, E) are the hidden states that were asked for, of every token of the pass.
    """

    logits: Tensor
    layers_run: float = 0.0
    exits: tuple[tuple[int, float], ...] = ()
    states: Tensor | None = None

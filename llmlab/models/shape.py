"""The sizes of an architecture."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """What the decoder needs to know of an architecture. `window` holds one entry per layer, None where all is seen."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    context: int
    eps: float
    window: tuple[int | None, ...]

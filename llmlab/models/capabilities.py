"""What a model can do and a technique may need; a technique is refused where a model lacks it."""

from __future__ import annotations

from enum import Enum


class Capability(Enum):
    """One thing that a technique may need. The value completes the sentence "X needs …"."""

    MANY_ROWS = "the model to score several tokens in one pass"
    ROLLBACK = "keys and values that can be taken back"
    EVICTION = "keys and values that can be dropped row by row"
    ATTENTION = "the attention weights of each token"
    ROTARY = "rotary positions, which can be moved after the fact"
    LAYERS = "a decoder whose layers can be skipped one by one"
    STATES = "the hidden states that stand after its layers"
    WEIGHTS = "weight matrices that can be read and replaced"


THROUGH_CACHE = frozenset({Capability.MANY_ROWS, Capability.ROLLBACK})
"""Of a model that transformers runs and that has our memory as its cache."""
THROUGH_ATTENTION = THROUGH_CACHE | {Capability.EVICTION, Capability.ATTENTION}
"""Of a model that transformers runs and that hands its attention to us."""

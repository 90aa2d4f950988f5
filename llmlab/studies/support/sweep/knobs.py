"""Which knob of a technique a sweep turns, and which values it tries."""

from __future__ import annotations

from llmlab.runtime.configurable import Knob
from llmlab.runtime.technique import Technique, registry

VALUES: dict[str, tuple[float, ...]] = {
    "threshold": (0.5, 0.7, 0.9),
    "budget": (64, 128, 256),
    "ratio": (0.1, 0.3, 0.5),
    "count": (1, 2, 4),
    "length": (1, 2, 4, 8),
    "nodes": (1, 2, 4, 8),
    "rollback": (2.0, 5.0, 10.0),
    "lenience": (0.1, 0.3, 0.7),
    "epsilon": (0.05, 0.1, 0.3),
    "density": (0.7, 0.8, 0.9),
    "window": (1, 2, 4),
    "k": (1, 2, 4),
    "block": (2, 4, 8),
    "least": (8, 16, 24),
}
"""Knobs that trade quality or work for cost, and what is tried of each; a technique's main one is its first here."""
LENGTHS = ("length", "nodes", "heads")
"""Knobs that bound how long a draft is: they move together, and drafts end at no other place while they do."""


def main_knob(technique: type[Technique]) -> Knob | None:
    """The knob that a sweep turns when nobody has chosen one; None where there is nothing to sweep."""
    knobs = {k.name: k for k in technique.knobs()}
    return next((knobs[name] for name in VALUES if name in knobs), None)


SWEPT = tuple(name for name, t in registry().items() if main_knob(t))
"""The techniques that a sweep of everything turns a knob of."""

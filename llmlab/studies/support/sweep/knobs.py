"""Which knob of a technique a sweep turns, and which values it tries."""

from __future__ import annotations

from llmlab.errors import Refused
from llmlab.runtime.configurable import Knob, title
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
    "first": (8, 16, 24),
}
"""What is tried of knobs with these names, which trade quality or work for cost."""
LENGTHS = ("length", "nodes", "heads")
"""Knobs that bound how long a draft is: they move together, and drafts end at no other place while they do."""


def values_of(technique: type[Technique], turned: Knob) -> list[float]:
    """What is tried of a knob without a choice: its name's usual values, or four over a main knob's range."""
    if turned.name in VALUES:
        return [v for v in VALUES[turned.name] if turned.low <= v <= turned.high]
    if turned.name != technique.main_knob:
        raise Refused(title(technique), f"has no usual values of {turned.name} to try", "Give the values")
    spread = [turned.low + (turned.high - turned.low) * share for share in (0.125, 0.25, 0.5, 0.75)]
    return list(dict.fromkeys(turned.parse(round(v) if turned.kind == "int" else v) for v in spread))


def swept() -> tuple[str, ...]:
    """The techniques that a sweep of everything turns a knob of."""
    return tuple(name for name, t in registry().items() if t.main_knob)

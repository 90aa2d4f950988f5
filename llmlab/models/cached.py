"""What is made once for a model and kept with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

MOST = 64
"""Things kept for one model: trained networks, thresholds, calibration, for the knobs that were tried last."""


def cached_on(model: Any, key: Any, make: Callable[[], T]) -> T:
    """`make()`, made once for this model and key. The model itself keeps it, so that the two go together.

    It keeps the `MOST` that were asked for last; whoever uses one holds it himself.
    """
    made: OrderedDict[Any, T] = model.__dict__.setdefault("_made", OrderedDict())
    if key not in made:
        made[key] = make()
    made.move_to_end(key)
    found = made[key]
    while len(made) > MOST:
        made.popitem(last=False)
    return found


def kept_with(model: Any) -> list[Any]:
    """Everything that `cached_on` keeps for a model."""
    return list(vars(model).get("_made", {}).values())

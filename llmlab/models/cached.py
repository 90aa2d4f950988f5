"""What is made once for a model and kept with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def cached_on(model: Any, key: Any, make: Callable[[], T]) -> T:
    """`make()`, made once for this model and key. The model itself keeps it, so that the two go together."""
    made: dict[Any, T] = model.__dict__.setdefault("_made", {})
    if key not in made:
        made[key] = make()
    return made[key]


def kept_with(model: Any) -> list[Any]:
    """Everything that `cached_on` keeps for a model."""
    return list(vars(model).get("_made", {}).values())

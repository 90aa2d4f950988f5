"""How loading tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0 when unknown)."""


def quiet(what: str, done: int, total: int) -> None:
    """A report that goes nowhere."""

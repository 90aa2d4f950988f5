"""How loading tells how far it is, and how long work is asked to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0 when unknown)."""


def quiet(what: str, done: int, total: int) -> None:
    """A report that goes nowhere."""


class Stopped(Exception):
    """Whoever wanted the work has asked it to stop; what it was making is thrown away."""


_asked: ContextVar[Callable[[], bool] | None] = ContextVar("asked", default=None)


@contextmanager
def stoppable(asked: Callable[[], bool]) -> Iterator[None]:
    """Within, in this thread, `check` raises Stopped as soon as `asked()` is true."""
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def check() -> None:
    """Called between the steps of whatever takes long before a run: reading, copying, quantizing, calibrating.

    Raises Stopped where the work around it is `stoppable` and was asked to stop. The steps are to be short: a visitor
    who presses Stop waits for the one under way.
    """
    asked = _asked.get()
    if asked is not None and asked():
        raise Stopped

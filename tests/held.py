"""Runs and studies that a test holds open, so that it can act while one is under way, whatever the machine's speed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from llmlab.lab.experiment import Lab
from llmlab.measure import quality
from llmlab.runtime.events import Event

T = TypeVar("T")
PATIENCE = 240.0
"""Seconds for what must happen sooner or later: less than a test may take, and more than any machine needs."""


def awaited(what: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns, run in a thread of its own: the browser's tests leave a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, what).result()


class Gate:
    """What work passes through: open by default, and shut by a test that wants the work to stand still.

    A job that is asked to stop passes a shut gate too, so that a test may see what stopping does.
    """

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._left: float = float("inf")
        self._held = 0

    def shut(self, after: int = 0) -> None:
        """Let `after` more pass, then nothing."""
        with self._change:
            self._left = after

    def open(self) -> None:
        with self._change:
            self._left = float("inf")
            self._change.notify_all()

    def wait_until_held(self) -> None:
        """Return once somebody stands at the shut gate."""
        with self._change:
            assert self._change.wait_for(lambda: self._held, PATIENCE), "nothing came to the gate"

    def pass_through(self, stop: threading.Event | None = None) -> None:
        """Return once the gate lets the caller through, or once `stop` is set."""
        with self._change:
            if self._left < 1:
                self._held += 1
                self._change.notify_all()
                # Nobody notifies the gate when `stop` is set, so it is looked at again and again.
                while self._left < 1 and not (stop and stop.is_set()):
                    self._change.wait(0.01)
                self._held -= 1
            self._left -= 1


class HeldLab(Lab):
    """A lab whose runs pass `gate` after each event."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gate = Gate()

    def run(self, prepared: Any, stop: threading.Event | None = None, *args: Any, **kwargs: Any) -> Iterator[Event]:
        for e in super().run(prepared, stop, *args, **kwargs):
            yield e
            self.gate.pass_through(stop)


class HeldQuality(Lab):
    """A lab whose measurements of quality pass `gate` after each pass over a text."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gate = Gate()

    def quality(self, *args: Any, **kwargs: Any) -> quality.Measuring:
        measuring = super().quality(*args, **kwargs)
        while True:
            try:
                far = next(measuring)
            except StopIteration as end:
                found: dict[str, Any] = end.value
                return found
            self.gate.pass_through()
            yield far


def until(condition: Callable[[], Any], what: str = "") -> None:
    """Return once `condition` holds, for what no event tells of."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, what or "it has not happened"
        time.sleep(0.005)

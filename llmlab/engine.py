"""One run at a time, for many visitors: a fair queue, a thread that generates, and a tail of its events to draw."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from llmlab.abilities import Refused
from llmlab.events import Event, Failed
from llmlab.experiment import Lab, Settings, out_of_memory

log = logging.getLogger(__name__)

REMEMBERED = 64
"""Finished runs whose events are kept for exports and for panels that missed a message."""


@dataclass
class Run:
    """One visitor's run, or baseline and run: its events so far and what has become of it."""

    id: str
    settings: Settings
    compare: bool
    owner: str = ""
    events: list[Event] = field(default_factory=list)
    state: str = "queued"
    note: str = ""
    stop: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def over(self) -> bool:
        return self.state in ("done", "error")

    def end(self, state: str, note: str) -> None:
        self.note, self.state = note, state
        self.ended.set()

    def tail(self, period: float) -> Iterator[list[Event]]:
        """What has happened since the last call, at most every `period` seconds, until the run is over.

        Closing this generator stops the run: a visitor who has left needs no more tokens.
        """
        sent = 0
        try:
            while True:
                over = self.over
                fresh = self.events[sent:]
                sent += len(fresh)
                yield fresh
                if over:
                    return
                # A fixed beat, cut short only by the end: waking for every token would take time from the engine.
                self.ended.wait(period)
        finally:
            self.stop.set()


class Engine:
    """Owns the lab and the one thread that computes. Every run waits its turn, by whatever door of the server it came.

    One thread for good, because OpenMP keeps a team of workers for every thread that has computed, and as soon as there
    are more workers than processors it lets all of them sleep between products: half the speed, for all later runs.
    """

    def __init__(self, lab: Lab | None = None) -> None:
        self.lab = lab or Lab()
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._waiting: deque[Run] = deque()
        self._current: Run | None = None
        self._count = itertools.count(1)
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def find(self, run: str) -> Run | None:
        return self._runs.get(run)

    def latest(self, owner: str) -> Run | None:
        """A visitor's last run."""
        return next((r for r in reversed(list(self._runs.values())) if r.owner == owner), None)

    def start(self, settings: Settings, compare: bool = False, owner: str = "") -> Run:
        """Queue a run and return at once. Raises Refused for what cannot work, before it takes a place in the queue."""
        self.lab.check(settings)
        run = Run(f"{owner[:8]}{next(self._count)}", settings, compare, owner)
        with self._change:
            self._runs[run.id] = run
            for old in [k for k, r in self._runs.items() if r.over][: max(0, len(self._runs) - REMEMBERED)]:
                del self._runs[old]
            self._waiting.append(run)
            self._number()
            if not self._thread.is_alive():
                self._thread.start()
            self._change.notify()
        return run

    def stop(self, owner: str) -> None:
        """Stop whatever this visitor has running or waiting."""
        with self._change:
            for run in [r for r in self._runs.values() if r.owner == owner and not r.over]:
                run.stop.set()
                if run in self._waiting:
                    self._waiting.remove(run)
                    run.end("done", "stopped")
            self._number()

    def _number(self) -> None:
        """Tell each waiting run how many are before it."""
        for place, run in enumerate(self._waiting, 1 if self._current else 0):
            run.note = f"waiting:{place}"

    def _work(self) -> None:
        while True:
            with self._change:
                self._current = None
                self._number()
                self._change.wait_for(lambda: self._waiting)
                run = self._current = self._waiting.popleft()
                self._number()
            self._carry_out(run)

    def _carry_out(self, run: Run) -> None:
        if run.stop.is_set():
            run.end("done", "stopped")
            return
        run.state, run.note = "running", ""
        try:
            self._generate(run)
            run.end("done", run.note)
        except Refused as e:
            self._fail(run, str(e))
        except Exception as e:
            message = out_of_memory(e)
            if message is None:
                log.exception("run %s failed", run.id)
                name = type(e).__name__
                message = f"The run broke off with an internal error ({name}). Try again; report it if it stays."
            self._fail(run, message)

    def _generate(self, run: Run) -> None:
        def report(what: str, done: int, total: int) -> None:
            run.note = f"{what}|{done}|{total}"

        prepared = self.lab.prepare(run.settings, report)
        if run.stop.is_set():
            return
        go = self.lab.compare if run.compare else self.lab.run
        for e in go(prepared, run.stop, report=report):
            run.events.append(e)
            run.note = ""

    def _fail(self, run: Run, message: str) -> None:
        last = run.events[-1].t if run.events else 0.0
        run.events.append(Failed(last, message))
        run.end("error", message)

"""One run at a time, for many visitors: a fair queue, a thread that generates, and a tail of its events to draw."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from llmlab.abilities import Refused
from llmlab.events import Compared, Event, Failed, Started
from llmlab.experiment import Lab, Prepared, Settings, plain

log = logging.getLogger(__name__)

REMEMBERED = 64
"""Finished runs whose events are kept for exports and for panels that missed a message."""


class Turnstile:
    """Lets one holder in at a time, first come first served, and tells those who wait how many are before them."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: list[object] = []

    def join(self) -> object:
        ticket = object()
        with self._condition:
            self._waiting.append(ticket)
        return ticket

    def place(self, ticket: object) -> int:
        """How many are before this ticket; 0 means: it is your turn."""
        with self._condition:
            return self._waiting.index(ticket)

    def wait(self, ticket: object, seconds: float) -> bool:
        """Wait up to `seconds` for this ticket's turn; whether it has come."""
        with self._condition:
            return self._condition.wait_for(lambda: self._waiting[0] is ticket, seconds)

    def leave(self, ticket: object) -> None:
        with self._condition:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            self._condition.notify_all()


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
    prepared: Prepared | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def over(self) -> bool:
        return self.state in ("done", "error")

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
    """Owns the lab. Every run goes through its turnstile, whatever door of the web server it came in by."""

    def __init__(self, lab: Lab | None = None) -> None:
        self.lab = lab or Lab()
        self._turnstile = Turnstile()
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._count = itertools.count(1)
        self._lock = threading.Lock()

    def find(self, run: str) -> Run | None:
        return self._runs.get(run)

    def latest(self, owner: str) -> Run | None:
        """A visitor's last run."""
        return next((r for r in reversed(list(self._runs.values())) if r.owner == owner), None)

    def start(self, settings: Settings, compare: bool = False, owner: str = "") -> Run:
        """Queue a run and return at once. Raises Refused for what cannot work, before it takes a place in the queue."""
        self.lab.check(settings)
        run = Run(f"{owner[:8]}{next(self._count)}", settings, compare, owner)
        with self._lock:
            self._runs[run.id] = run
            for old in [k for k, r in self._runs.items() if r.over][: max(0, len(self._runs) - REMEMBERED)]:
                del self._runs[old]
        ticket = self._turnstile.join()
        threading.Thread(target=self._work, args=(run, ticket), name=f"run-{run.id}", daemon=True).start()
        return run

    def stop(self, owner: str) -> None:
        """Stop whatever this visitor has running or waiting."""
        for run in list(self._runs.values()):
            if run.owner == owner and not run.over:
                run.stop.set()

    def _work(self, run: Run, ticket: object) -> None:
        try:
            while not self._turnstile.wait(ticket, 0.2):
                before = self._turnstile.place(ticket)
                run.note = f"waiting:{before}"
                if run.stop.is_set():
                    run.state, run.note = "done", "stopped"
                    return
            run.state = "running"
            self._generate(run)
            run.state = "done"
        except Refused as e:
            self._fail(run, str(e))
        except MemoryError:
            self._fail(run, "The run ran out of memory. Choose int4 weights, a smaller model or a shorter prompt.")
        except Exception as e:
            log.exception("run %s failed", run.id)
            if type(e).__name__ == "OutOfMemoryError":
                self._fail(run, "The GPU ran out of memory. Choose int4 weights, a smaller model or a shorter prompt.")
            else:
                name = type(e).__name__
                self._fail(run, f"The run broke off with an internal error ({name}). Try again; report it if it stays.")
        finally:
            self._turnstile.leave(ticket)
            run.ended.set()

    def _generate(self, run: Run) -> None:
        def report(what: str, done: int, total: int) -> None:
            run.note = f"{what}|{done}|{total}"

        prepared = run.prepared = self.lab.prepare(run.settings, report)
        if run.stop.is_set():
            return
        if run.compare:
            bare = replace(prepared, settings=plain(prepared.settings))
            for e in self.lab.run(bare, run.stop, "baseline", report):
                run.events.append(e)
                run.note = ""
            if run.stop.is_set():
                return
        for e in self.lab.run(prepared, run.stop, "stack" if run.compare else "", report):
            run.events.append(e)
            run.note = ""
        if run.compare and not run.stop.is_set():
            run.note = "Measuring quality|0|0"
            split = next(i for i, e in enumerate(run.events) if isinstance(e, Started) and e.lane == "stack")
            quality = self.lab.quality(prepared, run.events[:split], run.events[split:])
            run.events.append(Compared(run.events[-1].t, quality))
            run.note = ""

    def _fail(self, run: Run, message: str) -> None:
        last = run.events[-1].t if run.events else 0.0
        run.events.append(Failed(last, message))
        run.state, run.note = "error", message

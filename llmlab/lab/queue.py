"""One job at a time, for many visitors: a fair queue, a thread that computes, and a tail of what happens to draw."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

from llmlab.errors import Refused
from llmlab.lab.experiment import Lab, out_of_memory
from llmlab.lab.settings import Settings
from llmlab.lab.study import Study, Subject, carry_out
from llmlab.models.loading.progress import Stopped, stoppable
from llmlab.runtime.events import Event, Failed

log = logging.getLogger(__name__)

REMEMBERED = 64
"""Finished jobs that are kept for exports and for panels that missed a message."""
SILENCE = 2.0
"""Seconds after which a message goes out although there is nothing new: only then a visitor who has left is missed."""
PATIENT = 0.5
"""Seconds between two looks at a job that has been waiting for as long."""
STOPPING = "stopping"
"""The note of a job that was asked to stop and is in the midst of a step."""


@dataclass
class Job:
    """What a visitor has asked the engine for, and what has become of it."""

    id: str
    settings: Settings
    owner: str = field(default="", kw_only=True)
    state: str = field(default="queued", init=False)
    note: str = field(default="", init=False)
    stop: threading.Event = field(default_factory=threading.Event, init=False)
    ended: threading.Event = field(default_factory=threading.Event, init=False)

    @property
    def over(self) -> bool:
        return self.state in ("done", "error")

    def end(self, state: str, note: str) -> None:
        self.note, self.state = note, state
        self.ended.set()

    def report(self, what: str, done: int, total: int) -> None:
        """Say how far the job is. Raises Stopped once it was asked to stop."""
        if self.stop.is_set():
            raise Stopped
        self.note = f"{what}|{done}|{total}"

    def work(self, lab: Lab) -> None:
        """Do it, in the engine's thread."""
        raise NotImplementedError

    def fail(self, message: str) -> None:
        self.end("error", message)

    async def beats(self, period: float, news: Callable[[], Any] = lambda: None) -> AsyncGenerator[bool, None]:
        """False while the job is not over, at most every `period` seconds and only where `news()` or what the job says
        of itself has changed, or nothing has for a while; then True once.

        Closing this generator stops the job: a visitor who has left needs no events. It takes no thread while it waits,
        for two hundred may wait at once.
        """
        seen: Any = None
        said = began = time.monotonic()
        try:
            while True:
                over, now = self.over, time.monotonic()
                there = (self.state, self.note, news())
                if over or there != seen or now - said >= SILENCE:
                    seen, said = there, now
                    yield over
                if over:
                    return
                # A fixed beat: waking for every token would take time from the engine.
                await asyncio.sleep(PATIENT if self.state == "queued" and now - began > PATIENT else period)
        finally:
            self.stop.set()


@dataclass
class Run(Job):
    """One visitor's run, or baseline and run: its events so far."""

    compare: bool = False
    events: list[Event] = field(default_factory=list, init=False)

    def work(self, lab: Lab) -> None:
        prepared = lab.prepare(self.settings, self.report)
        go = lab.compare if self.compare else lab.route
        for e in go(prepared, self.stop, report=self.report):
            self.events.append(e)
            self.note = ""

    def fail(self, message: str) -> None:
        last = self.events[-1].t if self.events else 0.0
        self.events.append(Failed(last, message))
        super().fail(message)

    async def tail(self, period: float) -> AsyncGenerator[list[Event], None]:
        """What has happened since the last call, at most every `period` seconds, until the run is over."""
        sent = 0
        async with aclosing(self.beats(period, lambda: len(self.events))) as beats:
            async for _ in beats:
                fresh = self.events[sent:]
                sent += len(fresh)
                yield fresh


@dataclass
class StudyRun(Job):
    """One visitor's study: what it found, once it is through (schema llmlab.study/1)."""

    study: Study
    findings: dict[str, Any] | None = field(default=None, init=False)

    def work(self, lab: Lab) -> None:
        self.findings = carry_out(self.study, Subject(lab, self.settings, self.report, self.stop))
        self.note = ""


J = TypeVar("J", bound=Job)


class Engine:
    """Owns the lab and the one thread that computes. Jobs of every visitor and connection share one queue.

    One thread for good, because OpenMP keeps a team of workers for every thread that has computed, and as soon as there
    are more workers than processors it lets all of them sleep between products: half the speed, for all later runs.
    """

    def __init__(self, lab: Lab | None = None) -> None:
        self.lab = lab or Lab()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._waiting: deque[Job] = deque()
        self._current: Job | None = None
        self._count = itertools.count(1)
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def find(self, run: str) -> Run | None:
        found = self._jobs.get(run)
        return found if isinstance(found, Run) else None

    @overload
    def latest(self, owner: str) -> Run | None: ...
    @overload
    def latest(self, owner: str, kind: type[J]) -> J | None: ...
    def latest(self, owner: str, kind: type[Job] = Run) -> Job | None:
        """A visitor's last job of a kind."""
        jobs = reversed(list(self._jobs.values()))
        return next((j for j in jobs if j.owner == owner and isinstance(j, kind)), None)

    def start(self, settings: Settings, compare: bool = False, owner: str = "") -> Run:
        """Queue a run and return at once. Raises Refused for what cannot work, before it takes a place in the queue."""
        self.lab.check(settings)
        return self._queue(Run(self._name(owner), settings, compare, owner=owner))

    def study(self, study: Study, settings: Settings, owner: str = "") -> StudyRun:
        """Queue a study of the model that `settings` name. Raises Refused for a model that is not there."""
        self.lab.model_cache.capabilities(settings.model)
        return self._queue(StudyRun(self._name(owner), settings, study, owner=owner))

    def _name(self, owner: str) -> str:
        return f"{owner[:8]}{next(self._count)}"

    def _queue(self, job: J) -> J:
        with self._change:
            self._jobs[job.id] = job
            over = [k for k, r in self._jobs.items() if r.over]
            for old in over[: max(0, len(over) - REMEMBERED)]:
                del self._jobs[old]
            self._waiting.append(job)
            self._number()
            if not self._thread.is_alive():
                self._thread.start()
            self._change.notify()
        return job

    def stop(self, owner: str) -> None:
        """Stop whatever this visitor has running or waiting."""
        with self._change:
            for job in [r for r in self._jobs.values() if r.owner == owner and not r.over]:
                job.stop.set()
                if job in self._waiting:
                    self._waiting.remove(job)
                    job.end("done", "stopped")
                elif not job.over:
                    job.note = STOPPING
            self._number()

    def close(self) -> None:
        """Stop whatever is running or waiting, of every visitor."""
        for owner in {job.owner for job in list(self._jobs.values())}:
            self.stop(owner)

    def _number(self) -> None:
        """Tell each waiting job how many are before it."""
        for place, job in enumerate(self._waiting, 1 if self._current else 0):
            job.note = f"waiting:{place}"

    def _work(self) -> None:
        while True:
            with self._change:
                self._current = None
                self._number()
                self._change.wait_for(lambda: self._waiting)
                job = self._current = self._waiting.popleft()
                self._number()
            self._carry_out(job)

    def _carry_out(self, job: Job) -> None:
        if job.stop.is_set():
            job.end("done", "stopped")
            return
        job.state, job.note = "running", ""
        try:
            with stoppable(job.stop.is_set):
                job.work(self.lab)
            job.end("done", "stopped" if job.note == STOPPING else job.note)
        except Stopped:
            job.end("done", "stopped")
        except Refused as e:
            job.fail(str(e))
        except Exception as e:
            message = out_of_memory(e)
            if message is None:
                log.exception("job %s failed", job.id)
                name = type(e).__name__
                message = f"The run broke off with an internal error ({name}). Try again; report it if it stays."
            job.fail(message)

"""One job at a time, for many visitors: a fair queue, a thread that computes, and a tail of what happens to draw."""

from __future__ import annotations

import asyncio
import itertools
import logging
import statistics
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeVar, overload

from llmlab.errors import Refused
from llmlab.lab.experiment import Lab, out_of_memory
from llmlab.lab.settings import Settings
from llmlab.lab.study import Study, Subject, carry_out
from llmlab.measure.hardware import use_threads
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
SLICE = 0.5
"""Seconds after which a job that lets others go first lets another such job go on."""
WAITS = ", waiting for others"
"""What is added to the report of a job that lets others go first."""
TIMED = 9
"""Jobs of a kind whose durations tell how long the next one will take: the last so many."""


@dataclass
class Job:
    """What a visitor has asked the engine for, and what has become of it."""

    id: str
    settings: Settings
    owner: str = field(default="", kw_only=True)
    state: str = field(default="queued", init=False)
    note: str = field(default="", init=False)
    stop: threading.Event = field(default_factory=threading.Event, kw_only=True)
    ended: threading.Event = field(default_factory=threading.Event, init=False)
    began: float = field(default=0.0, init=False)
    steps: Iterator[None] | None = field(default=None, init=False)
    """What is left of it, once it has let others go first."""

    @property
    def kind(self) -> str:
        """Jobs of one kind take about as long."""
        return type(self).__name__

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

    def work(self, lab: Lab) -> Iterator[None]:
        """Do it, in the engine's thread. Where it yields, others may go first, and nothing of it is on any model."""
        raise NotImplementedError

    def give_way(self) -> None:
        """Others go first now."""

    def fail(self, message: str) -> None:
        self.end("error", message)

    async def beats(self, period: float, news: Callable[[], Any] = lambda: None) -> AsyncGenerator[bool, None]:
        """False while the job is not over, at most every `period` seconds and only where `news()` or what the job says
        of itself has changed, or nothing has for a while; then True once.

        Closing this generator stops the job: a visitor who has left needs no events. It takes no thread while it waits,
        for two hundred may wait at once.
        """
        seen: Any = None
        said = began = monotonic()
        try:
            while True:
                over, now = self.over, monotonic()
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
    own_text: str | None = None
    """A text to measure quality on, in place of the project's."""
    events: list[Event] = field(default_factory=list, init=False)

    @property
    def kind(self) -> str:
        return "compare" if self.compare else "run"

    def work(self, lab: Lab) -> Iterator[None]:
        prepared = lab.prepare(self.settings, self.report)
        if self.stop.is_set():
            self.note = "stopped"
            return
        if not self.compare:
            for e in lab.route(prepared, self.stop, report=self.report):
                self.events.append(e)
                self.note = ""
            return
        for happened in lab.compared_in_slices(prepared, self.stop, self.report, self.own_text):
            if happened is None:
                yield
                use_threads(self.settings.threads)  # another run may have wanted others
                continue
            self.events.append(happened)
            self.note = ""
        self.note = "stopped" if self.stop.is_set() else ""

    def give_way(self) -> None:
        what, *far = self.note.split("|")
        self.note = "|".join([what if what.endswith(WAITS) else what + WAITS, *far])

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

    @property
    def kind(self) -> str:
        return self.study.id

    def work(self, lab: Lab) -> Iterator[None]:
        self.findings = carry_out(self.study, Subject(lab, self.settings, self.report, self.stop))
        self.note = ""
        yield from ()


J = TypeVar("J", bound=Job)


class Engine:
    """Owns the lab and the one thread that computes. Jobs of every visitor and connection share one queue.

    One thread for good, because OpenMP keeps a team of workers for every thread that has computed, and as soon as there
    are more workers than processors it lets all of them sleep between products: half the speed, for all later runs.
    """

    def __init__(self, lab: Lab | None = None) -> None:
        self.lab = lab or Lab()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._asked: dict[str, list[threading.Event]] = {}
        self._waiting: deque[Job] = deque()
        self._later: deque[Job] = deque()  # jobs under way that let those that wait go first
        self._took: dict[str, deque[float]] = {}
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

    @contextmanager
    def asking(self, owner: str) -> Iterator[threading.Event]:
        """While a visitor's job is looked at and has no place in the queue yet: the `stop` to hand to it, so that Stop
        reaches it here too. Leaving the block by an error, as a visitor does who leaves, stops it."""
        stop = threading.Event()
        with self._change:
            self._asked.setdefault(owner, []).append(stop)
        try:
            yield stop
        except BaseException:
            stop.set()
            raise
        finally:
            with self._change:
                self._asked[owner].remove(stop)
                if not self._asked[owner]:
                    del self._asked[owner]

    def start(
        self,
        settings: Settings,
        compare: bool = False,
        owner: str = "",
        own_text: str | None = None,
        stop: threading.Event | None = None,
    ) -> Run:
        """Queue a run and return at once; `own_text` is what a comparison measures quality on, `stop` see `asking`.

        Raises Refused for what cannot work, before it takes a place in the queue.
        """
        self.lab.check(settings)
        stop = stop or threading.Event()
        return self._queue(Run(self._name(owner), settings, compare, own_text, owner=owner, stop=stop))

    def study(self, study: Study, settings: Settings, owner: str = "", stop: threading.Event | None = None) -> StudyRun:
        """Queue a study of the model that `settings` name. Raises Refused for a model that is not there."""
        self.lab.model_cache.capabilities(settings.model)
        return self._queue(StudyRun(self._name(owner), settings, study, owner=owner, stop=stop or threading.Event()))

    def _name(self, owner: str) -> str:
        return f"{owner[:8]}{next(self._count)}"

    def _queue(self, job: J) -> J:
        with self._change:
            self._jobs[job.id] = job
            over = [k for k, r in self._jobs.items() if r.over]
            for old in over[: max(0, len(over) - REMEMBERED)]:
                del self._jobs[old]
            if job.stop.is_set():
                job.end("done", "stopped")
                return job
            self._waiting.append(job)
            self._number()
            if not self._thread.is_alive():
                self._thread.start()
            self._change.notify()
        return job

    def stop(self, owner: str) -> None:
        """Stop whatever this visitor has running or waiting; what waits ends at once, whatever runs meanwhile."""
        with self._change:
            for asked in self._asked.get(owner, []):
                asked.set()
            for job in [r for r in self._jobs.values() if r.owner == owner and not r.over]:
                job.stop.set()
                for line in (self._waiting, self._later):
                    if job in line:
                        line.remove(job)
                        job.steps = None
                        job.end("done", "stopped")
                if not job.over:
                    job.note = STOPPING
            self._number()

    def close(self) -> None:
        """Stop whatever is running or waiting, of every visitor."""
        for owner in {job.owner for job in list(self._jobs.values())}:
            self.stop(owner)

    # How long it takes --------------------------------------------------------------------------------------------

    def _number(self) -> None:
        """Tell each waiting job how many are before it, and for how long, where such jobs have been timed."""
        current = self._current if self._current and self._current.steps is None else None
        ahead = self._typical(current.kind) if current else 0.0
        if ahead is not None and current:
            ahead = max(0.0, ahead - (monotonic() - current.began))
        for place, job in enumerate(self._waiting, 1 if current else 0):
            job.note = f"waiting:{place}" if ahead is None else f"waiting:{place}:{ahead:.0f}"
            each = self._typical(job.kind)
            ahead = None if ahead is None or each is None else ahead + each

    def _typical(self, kind: str) -> float | None:
        """Seconds that a job of a kind takes before it lets others go first: the median of the last ones; of all kinds
        where none of this kind has been timed, None where none at all has."""
        times = self._took.get(kind) or [t for line in self._took.values() for t in line]
        return statistics.median(times) if times else None

    def _time(self, job: Job) -> None:
        self._took.setdefault(job.kind, deque(maxlen=TIMED)).append(monotonic() - job.began)

    # The thread that computes -------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._change:
                self._current = None
                self._number()
                self._change.wait_for(lambda: self._waiting or self._later)
                job = self._current = (self._waiting or self._later).popleft()
                self._number()
            if self._carry_out(job):
                continue
            with self._change:
                if job.stop.is_set():
                    job.end("done", "stopped")
                else:
                    job.give_way()
                    self._later.append(job)

    def _carry_out(self, job: Job) -> bool:
        """Work on a job until it is over (True), or until it lets another one go first (False)."""
        if job.stop.is_set():
            job.end("done", "stopped")
            return True
        until = monotonic() + SLICE
        if job.steps is None:
            job.state, job.note, job.began = "running", "", monotonic()
        try:
            with stoppable(job.stop.is_set):
                if not self._advance(job, until):
                    return False
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
        job.steps = None
        return True

    def _advance(self, job: Job, until: float) -> bool:
        """Take a job on to its end (True), or to where others go first (False)."""
        steps = job.steps or job.work(self.lab)
        for _ in steps:
            if job.steps is None:
                job.steps = steps
                self._time(job)
                with self._change:
                    self._number()
            if self._waiting or (self._later and monotonic() > until):
                return False
        if job.steps is None and not job.stop.is_set():
            self._time(job)
        return True

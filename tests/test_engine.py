"""One run at a time for many visitors: the queue, stopping, leaving, failing, and models let go while they are used."""

from __future__ import annotations

import asyncio
import itertools
import pkgutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import filelock
import pytest
import torch

from llmlab.errors import Refused
from llmlab.lab.experiment import Lab
from llmlab.lab.model_cache import ModelCache
from llmlab.lab.queue import Engine, Job, StudyRun
from llmlab.lab.settings import Settings
from llmlab.lab.study import make_study
from llmlab.measure.trace import lanes
from llmlab.models.loading.progress import Stopped, stoppable
from llmlab.models.loading.sources import mirror
from llmlab.runtime.events import Committed, Compared, Event, Failed, Finished, Started
from llmlab.runtime.stack import Stack
from tests import made
from tests.held import PATIENCE, Gate, HeldLab, awaited, until
from tests.ui.tiny_count import TinyCount


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(made.folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def engine() -> Engine:
    return Engine()


J = TypeVar("J", bound=Job)


def wait(run: J) -> J:
    assert run.ended.wait(PATIENCE), f"the run did not end: {run.state} {run.note}"
    return run


@pytest.fixture
def lab() -> HeldLab:
    """A lab whose runs stand still after their fourth event, so that a test can act while one is under way."""
    lab = HeldLab()
    lab.gate.shut(after=3)
    return lab


@pytest.fixture
def steps() -> Iterator[Gate]:
    """The gate that the counting study passes at each step."""
    yield TinyCount.gate
    TinyCount.gate.open()


def test_a_comparison_runs_the_baseline_then_the_stack_then_compares(engine: Engine, model: str) -> None:
    settings = Settings(model, "abc abc abc", max_new_tokens=12, stack=Stack.from_arguments(["prompt-lookup"]))
    run = wait(engine.start(settings, compare=True, owner="a"))
    assert run.state == "done"
    assert list(lanes(run.events)) == ["baseline", "stack"]
    assert isinstance(run.events[-1], Compared)
    assert run.events[-1].quality["identical"] is True
    assert engine.latest("a") is run
    assert engine.find(run.id) is run


def test_the_second_visitor_sees_a_place_in_the_queue_and_then_runs(lab: HeldLab, model: str) -> None:
    engine = Engine(lab)
    first = engine.start(Settings(model, "hello", max_new_tokens=60), owner="a")
    second = engine.start(Settings(model, "hello", max_new_tokens=3), owner="b")
    third = engine.start(Settings(model, "hello", max_new_tokens=3), owner="c")
    lab.gate.wait_until_held()
    assert second.state == "queued"
    assert second.note == "waiting:1"
    assert third.note == "waiting:2"
    engine.stop("a")
    assert wait(first).state == "done"
    lab.gate.open()
    for run in (second, third):
        assert wait(run).state == "done"
    assert next(e for e in reversed(first.events) if isinstance(e, Finished)).reason == "stopped"
    assert next(e for e in second.events if isinstance(e, Finished)).reason == "limit"
    starts = [next(e for e in r.events if isinstance(e, Started)) for r in (second, third)]
    assert len(starts) == 2


def test_stopping_a_run_that_waits(lab: HeldLab, model: str) -> None:
    engine = Engine(lab)
    first = engine.start(Settings(model, "hello", max_new_tokens=60), owner="a")
    second = engine.start(Settings(model, "hello", max_new_tokens=3), owner="b")
    lab.gate.wait_until_held()
    engine.stop("b")
    assert wait(second).events == []
    engine.stop("a")
    wait(first)


def test_a_visitor_who_leaves_stops_the_run(lab: HeldLab, model: str) -> None:
    engine = Engine(lab)
    run = engine.start(Settings(model, "hello", max_new_tokens=300), owner="a")

    async def visit() -> int:
        tail = run.tail(0.05)
        while not await anext(tail):
            pass
        await asyncio.to_thread(lab.gate.wait_until_held)
        before = len(run.events)
        await tail.aclose()
        return before

    before = awaited(visit())
    wait(run)
    assert isinstance(run.events[-1], Finished)
    assert run.events[-1].reason == "stopped"
    late = [e for e in run.events[before:] if isinstance(e, Committed)]
    assert len(late) <= 1, "the pass under way ends, and no other begins"


@pytest.mark.parametrize(
    ("place", "stack"),
    [("building.Builder.tensor", []), ("block.Block.store", ["wanda"]), ("block.Block.store", ["magnitude"])],
)
def test_stopping_while_a_model_is_made_ready_acts_at_once(
    model: str, monkeypatch: pytest.MonkeyPatch, place: str, stack: list[str]
) -> None:
    """Each tensor takes a while here; what was half made is not kept, and the next run makes it whole."""
    settings = Settings(model, "hello", max_new_tokens=8, stack=Stack.from_arguments(stack))
    want = [e.tokens for e in wait(Engine().start(settings)).events if isinstance(e, Committed)]
    begun, whole = threading.Event(), pkgutil.resolve_name(f"llmlab.models.{place.replace('.', ':', 1)}")

    def slow(*given: Any, **named: Any) -> Any:
        begun.set()
        time.sleep(0.1)
        return whole(*given, **named)

    engine = Engine()
    module, cls, name = place.split(".")
    with monkeypatch.context() as patched:
        patched.setattr(pkgutil.resolve_name(f"llmlab.models.{module}:{cls}"), name, slow)
        run = engine.start(settings, owner="a")
        assert begun.wait(PATIENCE)
        start = time.monotonic()
        engine.stop("a")
        assert run.note in ("stopping", "stopped")
        assert run.ended.wait(PATIENCE)
        assert time.monotonic() - start < 0.3
    assert (run.state, run.note, run.events) == ("done", "stopped", [])
    kept = {key[0] for key in engine.lab.model_cache._held}
    assert kept == ({"loaded"} if stack else set())
    again = wait(engine.start(settings, owner="a"))
    assert [e.tokens for e in again.events if isinstance(e, Committed)] == want


@pytest.mark.parametrize(
    "name", ["skip-layer", "self-speculation", "early-exit:epsilon=0.1", "hash-exit:assign=cluster"]
)
def test_what_a_technique_fits_on_a_model_can_be_stopped(model: str, name: str) -> None:
    lab = Lab()
    stack = Stack.from_arguments([name])
    prepared = lab.prepare(Settings(model, "hello", max_new_tokens=4, stack=stack))
    asked = itertools.count()
    with stoppable(lambda: next(asked) >= 2), pytest.raises(Stopped):
        list(lab.run(prepared))
    events = list(lab.run(prepared))
    assert isinstance(events[-1], Finished), "what was half fitted is fitted whole"


def test_a_download_is_broken_off_when_it_is_asked_to_stop(tmp_path: Path) -> None:
    """The process that downloads ends, and so does waiting for somebody else's download."""
    asked: list[str] = []

    def report(what: str, done: int, total: int) -> None:
        asked.append(what)
        if len(asked) > 2:
            raise Stopped

    start = time.monotonic()
    with pytest.raises(Stopped):
        mirror._followed([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, "a", 1, report)
    asked.clear()
    with filelock.FileLock(tmp_path / "lock"), pytest.raises(Stopped), mirror._locked(tmp_path / "lock", "a", report):
        raise AssertionError("it is held by another")
    assert time.monotonic() - start < 20
    said = [sys.executable, "-c", "import sys; print('no', file=sys.stderr); sys.exit(3)"]
    assert mirror._followed(said, tmp_path, "a", 1, lambda *_: None) == (3, "no\n")


def test_a_job_that_ended_is_found_however_many_wait(lab: HeldLab, model: str) -> None:
    engine = Engine(lab)
    settings = Settings(model, "hello", max_new_tokens=30)
    first = engine.start(settings, owner="first")
    lab.gate.wait_until_held()
    waiting = [engine.start(settings, owner=f"w{i}") for i in range(100)]
    engine.stop("first")
    wait(first)
    waiting += [engine.start(settings, owner="late")]
    assert engine.latest("first") is first
    for job in waiting:
        engine.stop(job.owner)
        wait(job)
    engine.start(settings, owner="last")
    assert engine.latest("first") is None, "only so many are kept"
    engine.close()


def test_two_hundred_who_wait_take_no_thread(lab: HeldLab, model: str) -> None:
    engine = Engine(lab)
    settings = Settings(model, "hello", max_new_tokens=30)
    before = threading.active_count()

    async def visit(owner: str) -> int:
        tail = engine.start(settings, owner=owner).tail(0.05)
        messages = [await anext(tail), await anext(tail)]
        await tail.aclose()
        return len(messages)

    async def all_of_them() -> list[int]:
        followed = asyncio.gather(*(visit(str(i)) for i in range(200)))
        await asyncio.sleep(0.2)
        assert threading.active_count() <= before + 2, "only the engine's and this loop's"
        return await followed

    assert awaited(all_of_them()) == [2] * 200
    engine.close()


def test_the_tail_brings_every_event_once(engine: Engine, model: str) -> None:
    run = engine.start(Settings(model, "hello", max_new_tokens=20), owner="a")

    async def follow() -> list[Event]:
        return [e async for events in run.tail(0.01) for e in events]

    seen = awaited(follow())
    assert seen == run.events
    assert isinstance(seen[-1], Finished)


def test_refusals_come_before_the_queue(engine: Engine, model: str) -> None:
    with pytest.raises(Refused, match="is empty"):
        engine.start(Settings(model, " "))
    both = Stack.from_arguments(["prompt-lookup", "early-exit"])
    with pytest.raises(Refused, match="Switch one of them off"):
        engine.start(Settings(model, "hello", stack=both))
    assert engine.latest("") is None


def test_a_refusal_while_loading_ends_the_run_with_its_sentence(engine: Engine, model: str) -> None:
    run = wait(engine.start(Settings(model, "x" * 600), owner="a"))
    assert run.state == "error"
    assert isinstance(run.events[-1], Failed)
    assert "reads at most 512" in run.events[-1].message
    assert wait(engine.start(Settings(model, "hello", max_new_tokens=2), owner="a")).state == "done"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "The run ran out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory at secret path /x"), "The GPU ran out of memory"),
        (ZeroDivisionError("secret path /x"), "internal error"),
    ],
)
def test_an_error_within_a_run_leaves_the_engine_usable(
    engine: Engine, model: str, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise error

    with monkeypatch.context() as m:
        m.setattr(Lab, "run", broken)
        run = wait(engine.start(Settings(model, "hello"), owner="a"))
    assert run.state == "error"
    assert says in run.note
    assert "secret" not in run.note
    assert wait(engine.start(Settings(model, "hello", max_new_tokens=2), owner="a")).state == "done"


def test_a_study_waits_its_turn_and_computes_in_the_same_thread(lab: HeldLab, model: str) -> None:
    engine = Engine(lab)
    first = engine.start(Settings(model, "hello", max_new_tokens=40), owner="a")
    study = engine.study(TinyCount(steps=3), Settings(model), owner="b")
    last = engine.start(Settings(model, "hello", max_new_tokens=3), owner="a")
    lab.gate.wait_until_held()
    assert (study.state, study.note) == ("queued", "waiting:1")
    assert (last.state, last.note) == ("queued", "waiting:2")
    lab.gate.open()
    assert wait(study).state == "done"
    assert first.over
    assert study.findings is not None
    assert len(study.findings["rows"]) == 3
    assert TinyCount.threads[-1] == "engine"
    assert wait(last).state == "done"
    assert engine.latest("b", StudyRun) is study
    assert engine.latest("b") is None
    assert engine.find(study.id) is None, "the live panel knows only runs"


def test_a_study_tells_how_far_it_is_and_stops_when_asked(engine: Engine, model: str, steps: Gate) -> None:
    steps.shut(after=3)
    study = engine.study(TinyCount(steps=900), Settings(model), owner="a")
    until(lambda: study.note.startswith("Counting|"), "the study does not tell how far it is")
    assert study.note.endswith("|900")
    engine.stop("a")
    assert wait(study).state == "done"
    assert study.note == "stopped"
    assert study.findings is None


def test_a_visitor_who_leaves_stops_the_study(engine: Engine, model: str, steps: Gate) -> None:
    steps.shut(after=3)
    study = engine.study(TinyCount(steps=900), Settings(model), owner="a")

    async def visit() -> None:
        beats = study.beats(0.05)
        assert await anext(beats) is False
        await beats.aclose()

    awaited(visit())
    assert wait(study).findings is None


def test_a_study_that_cannot_work_ends_with_its_sentence(engine: Engine, model: str) -> None:
    with pytest.raises(Refused, match="Did you mean smollm2-135m"):
        engine.study(TinyCount(), Settings("smolm2-135m"))
    study = wait(engine.study(make_study("sweep", technique="eagle", kind="chat", tokens=8), Settings(model)))
    assert study.state == "error"
    assert "EAGLE" in study.note
    assert wait(engine.study(TinyCount(), Settings(model))).state == "done"


def test_a_model_let_go_while_a_run_uses_it(model: str, tmp_path: Path) -> None:
    other = str(made.folder(tmp_path / "other", seed=1))
    lab = HeldLab(ModelCache(most=1))  # room for nothing: each load lets all others go
    lab.gate.shut(after=3)
    engine = Engine(lab)
    first = engine.start(Settings(model, "hello", max_new_tokens=30), owner="a")
    lab.gate.wait_until_held()
    loader = threading.Thread(target=lambda: lab.model_cache.load(other, "dense-fp32", "cpu"))
    loader.start()
    loader.join()
    assert [key[1] for key in lab.model_cache._held] == [other], "the run's model has been let go under it"
    lab.gate.open()
    assert wait(first).state == "done"
    assert sum(len(e.tokens) for e in first.events if hasattr(e, "path")) == 30
    again = wait(engine.start(Settings(model, "hello", max_new_tokens=30), owner="a"))
    assert again.state == "done"

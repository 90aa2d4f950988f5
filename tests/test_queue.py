"""What a comparison does after its two runs: it lets others go first, says so, stops at once, and leaks nothing."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from typing import Any

import pytest

from llmlab.lab.experiment import Lab
from llmlab.lab.queue import Engine, Run
from llmlab.lab.settings import Settings
from llmlab.measure import pairs, trace
from llmlab.runtime.events import Committed, Compared, Finished, Started
from llmlab.runtime.generate import committed_tokens
from llmlab.runtime.stack import Stack
from llmlab.ui.playground.account import quality_table
from llmlab.ui.run_summary import run_summary
from tests import made
from tests.held import PATIENCE, Gate, HeldLab, HeldQuality, awaited, until


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(made.folder(tmp_path_factory.mktemp("models") / "tiny"))


def wait(run: Run) -> Run:
    assert run.ended.wait(PATIENCE), f"the run did not end: {run.state} {run.note}"
    return run


def settings(model: str, *techniques: str, tokens: int = 12) -> Settings:
    return Settings(model, "abc abc abc", max_new_tokens=tokens, stack=Stack.from_arguments(techniques))


@pytest.fixture
def lab() -> HeldQuality:
    """A lab whose measurements of quality stand still after their third pass."""
    lab = HeldQuality()
    lab.gate.shut(after=2)
    return lab


@pytest.mark.parametrize("leaves", [False, True], ids=["stop", "leave"])
def test_what_is_stopped_before_it_has_a_place_in_the_queue_never_runs(
    monkeypatch: pytest.MonkeyPatch, model: str, leaves: bool
) -> None:
    """A model is looked for before a run takes a place, which may last: Stop and leaving count by then."""
    engine, here, go_on, found = Engine(), threading.Event(), threading.Event(), list[Run]()
    monkeypatch.setattr(engine.lab, "check", lambda settings: here.set() or go_on.wait(PATIENCE))

    def ask() -> None:
        with contextlib.suppress(KeyError), engine.asking("a") as stop:
            start = threading.Thread(target=lambda: found.append(engine.start(settings(model), owner="a", stop=stop)))
            start.start()
            here.wait(PATIENCE)
            if leaves:
                raise KeyError
            engine.stop("a")
        go_on.set()
        start.join(PATIENCE)

    ask()
    assert (wait(found[0]).state, found[0].note, found[0].events) == ("done", "stopped", [])
    monkeypatch.undo()
    assert wait(engine.start(settings(model), owner="a")).note != "stopped"


@pytest.mark.parametrize("technique", ["magnitude:ratio=0.5", "streaming-llm:budget=32", "skip-layer"])
def test_quality_lets_runs_go_first_and_comes_to_the_same(lab: HeldQuality, model: str, technique: str) -> None:
    plain = settings(model, tokens=8)
    alone = committed_tokens(list(Lab().run(Lab().prepare(plain))))
    engine = Engine(lab)
    first = engine.start(settings(model, technique), compare=True, owner="a")
    lab.gate.wait_until_held()
    assert first.state == "running"
    assert first.note.startswith("Measuring quality|")
    second = engine.start(plain, owner="b")
    lab.gate.shut(after=1)  # the pass under way ends, and the next one stands still
    assert wait(second).state == "done"
    assert not first.over, "the run has gone first"
    assert committed_tokens(second.events) == alone, "nothing of the comparison is on the model"
    lab.gate.open()
    compared = wait(first).events[-1]
    assert isinstance(compared, Compared)
    assert compared.quality["scored_tokens"] >= 2000
    whole = Lab()
    events = list(whole.compare(whole.prepare(settings(model, technique))))
    assert isinstance(events[-1], Compared)
    for name in ("perplexity_ratio", "kl_mean", "kl_text"):
        assert compared.quality[name] == pytest.approx(events[-1].quality[name], rel=1e-3, abs=1e-6)


def test_a_comparison_that_waits_for_others_says_so_and_stops_at_once(model: str) -> None:
    class Both(HeldLab, HeldQuality):
        """Runs and measurements, each with a gate."""

        def __init__(self) -> None:
            super().__init__()
            self.runs, self.passes = Gate(), Gate()

        def run(self, *args: Any, **kwargs: Any) -> Any:
            self.gate = self.runs
            return super().run(*args, **kwargs)

        def quality(self, *args: Any, **kwargs: Any) -> Any:
            self.gate = self.passes
            return super().quality(*args, **kwargs)

    lab = Both()
    lab.passes.shut(after=5)
    engine = Engine(lab)
    first = engine.start(settings(model, "magnitude"), compare=True, owner="a")
    lab.passes.wait_until_held()
    lab.runs.shut(after=2)
    second = engine.start(settings(model), owner="b")
    lab.passes.open()
    lab.runs.wait_until_held()
    what, done, total = first.note.split("|")
    assert what == "Measuring quality, waiting for others"
    assert 0 < int(done) < int(total)
    before = time.monotonic()
    engine.stop("a")
    assert first.ended.wait(0.3), "it does not wait for the run that goes on"
    assert time.monotonic() - before < 0.3
    assert (first.state, first.note) == ("done", "stopped")
    assert not second.over
    lab.runs.open()
    assert wait(second).state == "done"
    assert_both_runs_stand(first)


def assert_both_runs_stand(run: Run) -> None:
    """After a stop in its quality: both runs, what they alone tell, and that the rest was not measured."""
    lanes = trace.lanes(run.events)
    assert list(lanes) == ["baseline", "stack"]
    assert all(any(isinstance(e, Finished) for e in lane) for lane in lanes.values())
    found = trace.quality(run.events)
    assert found is not None
    assert (found["withheld"], found["scored_tokens"], found["kl_mean"]) == ("unfinished", 0, None)
    assert trace.loads(trace.dumps(run.events)) == run.events
    assert "stopped before quality was measured" in run_summary(run.events, "en")
    assert "Not measured" in quality_table(found, "en")


def test_a_stop_ends_quality_within_a_pass(lab: HeldQuality, model: str) -> None:
    engine = Engine(lab)
    run = engine.start(settings(model, "magnitude"), compare=True, owner="a")
    lab.gate.wait_until_held()
    engine.stop("a")
    lab.gate.shut(after=1)
    assert wait(run).note == "stopped"
    assert_both_runs_stand(run)


def test_a_visitor_who_leaves_ends_the_quality(lab: HeldQuality, model: str) -> None:
    engine = Engine(lab)
    run = engine.start(settings(model, "magnitude"), compare=True, owner="a")

    async def visit() -> None:
        tail = run.tail(0.01)
        await anext(tail)
        await asyncio.to_thread(lab.gate.wait_until_held)
        await tail.aclose()

    awaited(visit())
    lab.gate.shut(after=1)
    assert_both_runs_stand(wait(run))
    assert wait(engine.start(settings(model), owner="b")).state == "done"


def test_two_comparisons_take_turns(model: str) -> None:
    engine = Engine()
    both = [engine.start(settings(model, "magnitude"), compare=True, owner=o) for o in "ab"]
    for run in both:
        last = wait(run).events[-1]
        assert isinstance(last, Compared)
        assert last.quality["scored_tokens"] >= 2000
        assert list(trace.lanes(run.events)) == ["baseline", "stack"]
    assert trace.quality(both[0].events) is not None


def test_pairs_are_alternated_and_add_no_lanes(model: str) -> None:
    lanes: list[str] = []

    class Noted(Lab):
        def run(self, prepared: Any, stop: Any = None, lane: str = "", report: Any = None) -> Any:
            lanes.append(lane)
            return super().run(prepared, stop, lane, report)

    lab, notes = Noted(), []
    prepared = lab.prepare(settings(model, "prompt-lookup"))
    events = list(lab.compare(prepared, report=lambda what, done, total: notes.append((what, done, total))))
    assert lanes[:6] == ["baseline", "stack", "stack", "baseline", "baseline", "stack"]
    assert len(lanes) >= 2 * pairs.LEAST
    compared = events[-1]
    assert isinstance(compared, Compared)
    found = pairs.Pairs.from_json(compared.pairs)
    assert found is not None
    assert len(found) == len(lanes) / 2
    assert found.tokens == 12
    assert compared.verdict["quality"] == "same"
    assert sum(isinstance(e, Started) for e in events) == 2
    assert sum(len(e.tokens) for e in events if isinstance(e, Committed)) == 24
    assert ("Pair", 2, pairs.MOST) in notes


def test_a_comparison_s_events_say_which_of_its_runs_goes_on(model: str) -> None:
    lab = HeldLab()
    lab.gate.shut(after=4)
    engine = Engine(lab)
    run = engine.start(settings(model, "prompt-lookup"), compare=True, owner="a")
    lab.gate.wait_until_held()
    assert {e.lane for e in run.events if isinstance(e, Started)} == {"baseline"}
    lab.gate.shut(after=14)
    until(lambda: any(isinstance(e, Started) and e.lane == "stack" for e in run.events), "its second run never begins")
    engine.stop("a")
    wait(run)


def test_who_waits_is_told_for_how_long_once_runs_have_been_timed(model: str) -> None:
    lab = HeldLab()
    engine = Engine(lab)
    for seconds in (20.0, 40.0, 30.0):
        engine._took.setdefault("run", deque()).append(seconds)
    engine._took["compare"] = deque([100.0])
    lab.gate.shut(after=3)
    first = engine.start(settings(model, tokens=40), owner="a")
    lab.gate.wait_until_held()
    second = engine.start(settings(model, "prompt-lookup"), compare=True, owner="b")
    third = engine.start(settings(model), owner="c")
    place, about = second.note.split(":")[1:]
    assert place == "1"
    assert 0 < int(about) <= 30, "the median run, less what the one that goes on has taken"
    place, later = third.note.split(":")[1:]
    assert place == "2"
    assert 95 <= int(later) - int(about) <= 105, "and the comparison before it"
    engine.stop("b")
    assert third.note.startswith("waiting:1:"), "the queue has moved on"
    assert int(third.note.split(":")[2]) <= 30
    engine.stop("a")
    lab.gate.open()
    wait(first)
    assert wait(third).state == "done"


def test_before_anything_was_timed_only_the_place_is_told(model: str) -> None:
    lab = HeldLab()
    lab.gate.shut(after=3)
    engine = Engine(lab)
    first = engine.start(settings(model, tokens=40), owner="a")
    lab.gate.wait_until_held()
    second = engine.start(settings(model), owner="b")
    assert second.note == "waiting:1"
    lab.gate.open()
    wait(first)
    wait(second)
    assert len(engine._took["run"]) == 2

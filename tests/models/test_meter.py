"""The roofline against figures computed by hand, and never a bound that a run has beaten."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from llmlab.measure import hardware, rates, trace
from llmlab.measure.roofline import BUSY, Rates, flops_per_token, roofline
from llmlab.runtime.events import Committed, Event, Finished, Prefilled, Started, from_json, to_json
from llmlab.ui.playground.samples import RUNS, recordings
from llmlab.ui.run_summary import run_summary
from tests import tiny

QUIET = Rates(bytes_per_second=1000.0, flops_per_second=1e6, threads=2, others=2.0, buffer=500)


def test_the_roofline_is_the_higher_of_its_two_roofs() -> None:
    machine = Rates(bytes_per_second=100.0, flops_per_second=1000.0)
    assert machine.seconds(200, 500) == 2.0
    assert machine.seconds(10, 5000) == 5.0


def test_a_token_s_operations_are_twice_its_weights_and_its_attention() -> None:
    model = tiny.decoder("llama-plain")
    s = model.shape
    weights = sum(
        m.dense().numel()
        for block in model.layers
        for m in (block.linears()["qkv"], block.linears()["out"], block.linears()["gate_up"], block.linears()["down"])
    )
    head = s.vocab * s.width
    assert flops_per_token(s, s.layers, 0) == 2 * (weights + head)
    more = flops_per_token(s, s.layers, 10) - flops_per_token(s, s.layers, 0)
    assert more == s.layers * 10 * 4 * s.heads * s.head_size


def test_the_least_time_is_that_of_the_median_pass() -> None:
    found = roofline(QUIET, [(3.0, 2000, 10.0), (1.0, 1000, 10.0), (9.0, 4000, 10.0)])
    assert found is not None
    assert found.bound
    assert found.seconds == 2.0


@pytest.mark.parametrize(
    ("why", "measured", "passes"),
    [
        ("busy", replace(QUIET, others=BUSY + 1), [(9.0, 2000, 1.0)]),
        ("cache", QUIET, [(9.0, 400, 1.0), (9.0, 400, 1.0), (9.0, 2000, 1.0)]),
        ("beaten", QUIET, [(9.0, 2000, 1.0), (1.9, 2000, 1.0)]),
        ("", QUIET, [(2.0, 2000, 1.0)]),
    ],
)
def test_what_a_run_could_beat_is_called_an_estimate(why: str, measured: Rates, passes: list[Any]) -> None:
    found = roofline(measured, passes)
    assert found is not None
    assert found.why == why
    assert found.bound == (not why)


def test_there_is_none_where_it_was_not_recorded() -> None:
    assert roofline(None, [(1.0, 1000, 1.0)]) is None
    assert roofline(QUIET, []) is None
    assert roofline(QUIET, [(1.0, 1000, 1.0), (1.0, 0, 0.0)]) is None
    assert Rates.from_json(QUIET.to_json()) == QUIET
    for broken in ({}, [], None, {**QUIET.to_json(), "others": "x"}, {**QUIET.to_json(), "bytes_per_second": 0}):
        assert Rates.from_json(broken) is None
    assert Rates.from_json({**QUIET.to_json(), "flops_per_second": float("nan")}) is None


# The account ------------------------------------------------------------------------------------------------------


def run(measured: Rates | None, passes: list[tuple[float, int]]) -> list[Event]:
    told = measured.to_json() if measured else {}
    start = Started(0.0, "m", "baseline", "cpu", "int4", [], {}, 5, 4, 9000, True, rates=told)
    events: list[Event] = [start, Prefilled(0.5, 4, 4, 10, [4] * 4)]
    for i, (seconds, read) in enumerate(passes):
        rows = 4 if read else 0
        events.append(Committed(i + 1.0, [7], [], seconds, [5] * 4, 10, 4.0, ["a"], rows, 0, 0, 1.0, read))
    return [*events, Finished(9.0, "limit")]


def test_the_account_calls_a_bound_only_what_is_one() -> None:
    told = run_summary(run(QUIET, [(3.0, 2000)]), "en")
    assert "at least **2000.0 ms**" in told
    assert "estimate" not in told
    for measured, passes, why in (
        (replace(QUIET, others=40.0), [(3.0, 2000)], "other programs used 40 % of a core"),
        (QUIET, [(3.0, 400)], "cache may hold it"),
        (QUIET, [(3.0, 2000), (1.0, 2000), (3.0, 2000)], "a pass of this run was faster"),
    ):
        told = run_summary(run(measured, passes), "en")
        assert "an estimate and no bound" in told
        assert why in told
        assert "at least **" not in told


def test_a_bound_of_an_earlier_version_is_not_shown() -> None:
    """It counted copies that no pass reads, so that runs were faster than it."""
    start, *rest = run(None, [(0.005, 0)])
    old = [from_json(to_json(start) | {"least_seconds": 0.0058}), *rest]
    for lang in ("en", "zh-CN"):
        told = run_summary(old, lang)
        assert "5.8" not in told
        assert "GB/s" not in told
    assert trace.ledger(old)["roofline_seconds"] is None


@pytest.mark.parametrize("name", [item["file"] for item in recordings()])
def test_no_recorded_run_beats_what_is_called_its_bound(name: str) -> None:
    for events in trace.lanes(trace.load(RUNS / name)).values():
        m = trace.ledger(events)
        if m["roofline_is_bound"]:
            assert m["seconds_per_pass_median"] >= m["roofline_seconds"]
        else:
            assert "at least **" not in run_summary(events, "en")


def test_recorded_runs_have_bounds() -> None:
    """Or the law above would hold for want of any: the recordings are made where nothing disturbs."""
    called = [
        trace.ledger(lane)["roofline_is_bound"]
        for path in RUNS.glob("*.jsonl")
        for lane in trace.lanes(trace.load(path)).values()
    ]
    assert len(called) >= 10
    assert called.count(True) > len(called) / 2


# Measuring --------------------------------------------------------------------------------------------------------


def test_this_machine_has_rates() -> None:
    found = rates.measured("cpu", 1 << 22, torch.float32)
    assert 1e8 < found.bytes_per_second < 1e13
    assert 1e8 < found.flops_per_second < 1e15
    assert found.threads == torch.get_num_threads()
    assert found.buffer == 1 << 22
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


def test_the_buffer_is_no_larger_than_what_a_pass_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measured(device: str, buffer: int, takes: torch.dtype) -> Rates:
        asked.append(buffer)
        return replace(QUIET, buffer=buffer)

    monkeypatch.setattr(rates, "measured", measured)
    monkeypatch.setattr(rates, "_seen", {})
    model = tiny.decoder("llama").private_copy()
    for reads, want in ((3 << 20, 2 << 20), ((64 << 20) + 1, 64 << 20), (1 << 33, rates.LARGEST)):
        monkeypatch.setattr(type(model), "pass_bytes", reads)
        rates.rates(model)
        assert asked[-1] == want
    assert len(asked) == 3
    rates.rates(model)
    assert len(asked) == 3, "what was measured at a quiet moment stays"


def test_a_busy_machine_is_measured_again_and_the_best_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    results = iter(
        [
            replace(QUIET, bytes_per_second=500.0, others=60.0),
            replace(QUIET, bytes_per_second=800.0, others=30.0),
            replace(QUIET, bytes_per_second=700.0, others=1.0),
        ]
    )
    monkeypatch.setattr(rates, "measured", lambda *_: next(results))
    monkeypatch.setattr(rates, "_seen", {})
    now = [0.0]
    monkeypatch.setattr(rates, "_clock", lambda: now[0])
    model = tiny.decoder("llama")
    first = rates.rates(model)
    assert (first.bytes_per_second, first.others) == (800.0, 30.0)
    assert not first.quiet
    assert rates.rates(model) == first, "not before a minute is over"
    now[0] += rates.AGAIN + 1
    later = rates.rates(model)
    assert (later.bytes_per_second, later.quiet) == (800.0, True)


def test_others_are_everybody_but_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class Times:
        idle = iowait = guest = guest_nice = 0.0

        def __init__(self, user: float, steal: float) -> None:
            self.user, self.steal, self.system = user, steal, 0.0

        def __iter__(self) -> Any:
            return iter((self.user, self.steal))

    whole, own = iter([Times(10.0, 1.0), Times(11.5, 1.5)]), iter([Times(4.0, 0.0), Times(5.0, 0.0)])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(whole))
    monkeypatch.setattr(psutil, "Process", lambda: type("P", (), {"cpu_times": lambda self: next(own)})())
    meter = hardware.OthersMeter()
    assert meter.percent(2.0) == pytest.approx(50.0)


def test_a_run_says_what_its_machine_was_measured_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmlab.lab.experiment import Lab
    from llmlab.lab.settings import Settings
    from tests import made

    monkeypatch.setattr(rates, "measured", lambda d, buffer, t: replace(QUIET, buffer=1))
    monkeypatch.setattr(rates, "_seen", {})
    lab = Lab()
    folder = made.folder(tmp_path / "model")
    events = list(lab.run(lab.prepare(Settings(model=str(folder), prompt="a b c", max_new_tokens=4))))
    assert isinstance(events[0], Started)
    assert events[0].rates == replace(QUIET, buffer=1).to_json()
    m = events[-1].metrics  # type: ignore[attr-defined]
    assert m["roofline_seconds"] > 0

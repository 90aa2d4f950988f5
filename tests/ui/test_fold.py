"""The panel's fold of a run, in true ES modules, against Python's: the same events, the same figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmlab.measure import trace
from llmlab.runtime.events import Committed, Drafted, Event, Evicted, Exited, Failed, Finished, Prefilled, Started
from llmlab.ui.live.panel import HERE, LivePanel, message, recorded
from llmlab.ui.playground.samples import RUNS, recordings

pytestmark = pytest.mark.browser

NOT_SHOWN = {"accepted_by_depth", "acceptance_by_position", "seconds_per_pass_p95"} | {
    "roofline_seconds",
    "roofline_is_bound",
}
"""Figures that the panel has no place for. Any other that Python's ledger has, the panel's has too."""

FOLD = """async message => {
    const [{ State }, { ledger }, { decode }] = await Promise.all(
        ["state", "ledger", "protocol"].map(name => import(`/${name}.js`)));
    const state = new State();
    state.ingest(decode(message));
    const all = state.lanes.map(l => ({ name: l.name, whole: ledger(l), parts: l.passes.map((_, i) => ledger(l, i)) }));
    return { lanes: all, passes: state.order.map(p => [p.drafted, p.path.length, p.tokens.length, p.kv, p.layers]),
             failed: state.failed, differs: state.compare() };
}"""


@pytest.fixture(scope="module")
def modules(browser: Any) -> Iterator[Any]:
    """A page that can import the panel's modules; nothing is served, so nothing else can be reached."""
    page = browser.new_page()
    home = "http://modules.test/"

    def answer(route: Any) -> None:
        name = route.request.url.removeprefix(home)
        if not name:
            route.fulfill(content_type="text/html", body="")
        else:
            route.fulfill(content_type="text/javascript", body=(HERE / name).read_text(encoding="utf-8"))

    page.route("**/*", answer)
    page.goto(home)
    yield page
    page.close()


def fold(modules: Any, events: list[Event]) -> Any:
    """What JavaScript makes of the events as they travel."""
    return modules.evaluate(FOLD, LivePanel().postprocess(recorded(events, "x")))


def agree(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert set(got) == set(want) - NOT_SHOWN
    for name, value in got.items():
        if want[name] is None:
            assert value is None, name
        else:  # times travel in steps of 10 microseconds, layers in hundredths
            assert value == pytest.approx(want[name], rel=2e-3, abs=2e-5), name


def start(lane: str = "stack", t: float = 0.0) -> Started:
    return Started(t, "tiny", lane, "cpu", "int4", [], {}, 5, 3, 1000, True, ["a"])


def by_hand() -> dict[str, list[Event]]:
    """What no recorded run has: rows dropped before the first pass, uneven layers, no pass at all, a failure."""
    pressed = [
        start(t=1.0),
        Prefilled(1.5, 3, 5, 900, [3, 3, 3]),
        Prefilled(2.0, 5, 5, 700, [5, 5, 5]),
        Evicted(2.0, [5, 5, 5], [2, 3, 4]),
        Drafted(2.1, [7, 8, 9], [-1, 0, 0], 0.1, ["x", "y", "z"]),
        Exited(2.5, 2, 3, 0.5),
        Committed(3.0, [7, 8, 5], [0, 1], 1.0, [5, 6, 7], 820, 2.25, ["x", "y", "q"]),
        Evicted(3.0, [5, 6, 7], [4, 4, 4]),
        Drafted(3.1, [1], [-1], 0.1),
        Committed(5.0, [6], [], 2.0, [5, 5, 5], 600, 3.0),
        Committed(5.5, [], [], 0.5, [], 0, 0.0),
        Finished(5.5, "limit", {"a": 1}),
    ]
    return {
        "pressed": pressed,
        "counted": [
            replace(start(), weight_bytes=1000, copies_bytes=300, auxiliary_bytes=100),
            Prefilled(0.5, 5, 5, 70, [5, 5, 5], 10, 5, 0, 2.5e9, 400, 50),
            Drafted(0.6, [7, 8], [-1, 0], 0.1),
            Committed(1.0, [7, 9], [0], 0.5, [7, 7, 7], 90, 3.0, [], 11, 2, 4, 3.5e9, 900, 30),
            Committed(2.0, [6], [], 0.5, [8, 8, 8], 60, 2.0, [], 3, 0, 0, 1e9, 900, 20),
            Finished(2.0, "limit"),
        ],
        "nothing": [start(), Finished(0.0, "limit")],
        "failed": [start(), Prefilled(0.5, 5, 5, 10, [5, 5, 5]), Failed(0.75, "It broke.")],
        "no prefill": [start(), Committed(1.0, [1], [], 1.0, [1, 1, 1], 10, 3.0), Finished(1.0, "limit")],
    }


TRACES = [item["id"] for item in recordings()] + list(by_hand())


def events_of(id: str) -> list[Event]:
    made = by_hand()
    if id in made:
        return made[id]
    return trace.load(next(RUNS / item["file"] for item in recordings() if item["id"] == id))


@pytest.mark.parametrize("id", TRACES)
def test_both_folds_give_the_same_figures(modules: Any, id: str) -> None:
    events = events_of(id)
    got = fold(modules, events)
    lanes = trace.lanes(events)
    assert [lane["name"] for lane in got["lanes"]] == list(lanes)
    for lane in got["lanes"]:
        agree(lane["whole"], trace.ledger(lanes[lane["name"]]))
    rounds = [row for lane in lanes.values() for row in trace.rounds(lane)]
    assert got["passes"] == [
        [drafted, accepted, tokens, kv, pytest.approx(layers, abs=0.006)]
        for _, _, _, drafted, accepted, tokens, _, _, kv, layers, *_ in rounds
    ]
    assert got["failed"] == ("It broke." if id == "failed" else "")


@pytest.mark.parametrize("id", TRACES)
def test_the_figures_at_the_cursor_are_those_of_the_run_up_to_there(modules: Any, id: str) -> None:
    events = events_of(id)
    lanes = trace.lanes(events)
    for lane in fold(modules, events)["lanes"]:
        whole = lanes[lane["name"]]
        ends = [i for i, e in enumerate(whole) if isinstance(e, Committed)]
        for shown, figures in enumerate(lane["parts"]):
            # Up to the next pass's first event: what is dropped after a pass belongs to it, a draft to the next one.
            until = ends[shown]
            part = [e for e in whole[:until] if not isinstance(e, Drafted)]
            part += [e for e in whole[: ends[shown - 1] if shown else 0] if isinstance(e, Drafted)]
            agree(figures, trace.ledger(sorted(part, key=whole.index)))


@pytest.mark.parametrize("id", [item["id"] for item in recordings()])
def test_both_say_the_same_of_the_texts(modules: Any, id: str) -> None:
    events = events_of(id)
    quality = trace.quality(events)
    if quality is None:
        pytest.skip("this recording holds no comparison")
    differs = fold(modules, events)["differs"]
    assert differs["same"] == quality["identical"]
    if not differs["same"]:
        assert differs["at"] == quality["first_difference"]


def test_events_that_the_panel_does_not_know_do_nothing(modules: Any) -> None:
    known = events_of("pressed")
    value = recorded(known, "x")
    strange = [{"event": "Exploded", "t": 1.0}, {"event": "constructor", "t": 2.0}, {"event": 7}, None, "text", []]
    odd = value | {"ev": [value["ev"][0], *strange, *value["ev"][1:]]}
    assert modules.evaluate(FOLD, odd) == fold(modules, known)


def test_a_snapshot_and_what_comes_after_are_joined(modules: Any) -> None:
    wire = message("r", 0, events_of("pressed"), "running")["ev"]
    overlap = "async ([known, list]) => (await import('/protocol.js')).overlap(known, list)"
    for cut in range(1, len(wire)):
        for back in range(cut + 1):
            assert modules.evaluate(overlap, [wire[:cut], wire[cut - back : cut + 2]]) == back, (cut, back)
    assert modules.evaluate(overlap, [wire, wire[3:5]]) == 2, "all of it is known"
    assert modules.evaluate(overlap, [[], wire]) == 0


def test_the_race_orders_passes_by_each_lanes_own_clock(modules: Any) -> None:
    events = events_of(recordings()[0]["id"])
    got = modules.evaluate(
        """async message => {
            const { State } = await import("/state.js");
            const state = new State();
            Object.assign(state, { status: "recorded", race: true });
            state.ingest(JSON.parse(message.ev));
            state.move(7);
            const shown = state.lanes.map(l => l.shown);
            state.move(1e9);
            return { times: state.order.map(p => p.t), shown, all: state.lanes.map(l => l.shown),
                     passes: state.lanes.map(l => l.passes.length) };
        }""",
        LivePanel().postprocess(recorded(events, "x")),
    )
    assert got["times"] == sorted(got["times"])
    assert sum(got["shown"]) == 7
    assert got["all"] == got["passes"]


def test_messages_come_in_order_and_each_once(modules: Any) -> None:
    """Twice the same, one missing and asked for, one of a run that is over: the fold has every event once."""
    events = events_of("pressed")
    pieces = [events[:3], events[3:6], events[6:8], events[8:]]
    sent = [message("r", seq, piece, "running", reset=seq == 0) for seq, piece in enumerate(pieces)]
    old = message("old", 0, events[:5], "running", reset=True)
    late = message("old", 1, events[5:], "done")
    snapshot = message("r", 0, events[:8], "running", reset=True)
    got = modules.evaluate(
        """async ([messages, snapshot]) => {
            const [{ State }, { Feed }] = await Promise.all([import("/state.js"), import("/feed.js")]);
            const state = new State();
            const asked = [];
            const server = { snapshot_of: run => (asked.push(run), Promise.resolve(snapshot)) };
            const feed = new Feed(state, server, { began() {}, changed() {} });
            for (const m of messages) feed.take(m);
            await new Promise(done => setTimeout(done));
            return { asked, events: state.events, updates: feed.updates, run: state.run };
        }""",
        [[old, sent[0], sent[0], late, sent[1], sent[3], sent[3], {"v": 1, "run": "r"}, None], snapshot],
    )
    assert got["asked"] == ["r"]
    assert got["run"] == "r"
    assert got["updates"] == 4
    assert got["events"] == json.loads(json.dumps(message("r", 0, events, "running")["ev"]))


def test_every_module_stays_readable() -> None:
    for path in Path(HERE).glob("*.js"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 300, path.name
        assert max(map(len, lines)) <= 120, path.name

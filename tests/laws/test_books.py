"""Ledger, replay, fresh, undo, identity: what a run reports is so, and what it leaves behind is nothing."""

from __future__ import annotations

import itertools
import json
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import Refused
from llmlab.kv.memory import Memory
from llmlab.kv.rows import Rows
from llmlab.measure import trace
from llmlab.models.decoder import Decoder
from llmlab.models.mixers.attention import Attention
from llmlab.runtime.events import Committed, Compared, Drafted, Evicted, Failed, Finished, Prefilled, WeightsChanged
from llmlab.runtime.generate import bare_start, generate
from llmlab.runtime.sampling import Sampler
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make, registry
from tests import tiny
from tests.laws import laws

STACKS = [Stack(), *(laws.alone(id) for id in registry())]
PAIRS = [
    s for a, b in itertools.combinations(STACKS[1:], 2) if not (s := Stack({*a, *b})).refusals(Attention.capabilities)
]
PROMPT = tiny.prompts(1, 21)[0]


Memories = Callable[[], list[Memory]]


@pytest.fixture
def memories(monkeypatch: pytest.MonkeyPatch) -> Memories:
    """Every key-value store made during the test and still alive, partners' included; the engine is not asked."""
    alive: weakref.WeakSet[Memory] = weakref.WeakSet()
    original = Memory.__init__

    def noted(self: Memory, layers: list[Rows]) -> None:
        original(self, layers)
        alive.add(self)

    monkeypatch.setattr(Memory, "__init__", noted)
    return lambda: list(alive)


# Ledger ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", STACKS + PAIRS, ids=repr)
def test_the_books_balance(llama: Decoder, stack: Stack, memories: Memories) -> None:
    model = laws.changed(llama, stack, tiny.tools())
    assert laws.books(model, PROMPT, 30, stack, memories) == []


@pytest.mark.parametrize("stack", STACKS, ids=repr)
def test_the_books_balance_when_sampling(llama: Decoder, stack: Stack, memories: Memories) -> None:
    model = laws.changed(llama, stack, tiny.tools())
    assert laws.books(model, PROMPT, 30, stack, memories, sampler=Sampler(1.0)) == []


@pytest.mark.parametrize("id", [None, *registry()])
def test_a_stop_token_ends_the_run_and_is_the_last_token(llama: Decoder, id: str | None, memories: Memories) -> None:
    stack = laws.alone(id) if id else Stack()
    model = laws.changed(llama, stack, tiny.tools())
    whole = laws.text(model, PROMPT, 30, stack)
    stop = whole[11]
    assert laws.books(model, PROMPT, 30, stack, memories, stop_tokens=[stop]) == []
    events = laws.run(model, PROMPT, 30, stack, stop_tokens=[stop])
    assert laws.committed_tokens(events) == whole[: whole.index(stop) + 1]
    assert events[-1].reason == "stop token"


@pytest.mark.parametrize("length", [1, 2, 17, 200])
@pytest.mark.parametrize("id", [None, *registry()])
def test_prompts_of_any_length(llama: Decoder, id: str | None, length: int, memories: Memories) -> None:
    stack = laws.alone(id) if id else Stack()
    model = laws.changed(llama, stack, tiny.tools())
    assert laws.books(model, tiny.text(length), 9, stack, memories) == []


def test_a_policy_holds_its_line(llama: Decoder) -> None:
    for id in laws.lossy_ids():
        policy = laws.sharp(id)
        if policy.role != "CachePolicy":
            continue
        budget, every = policy.budget_and_slack()
        events = laws.run(llama, PROMPT, 60, Stack([policy]))
        rows = [n for e in events if isinstance(e, Committed) for n in e.kv_rows]
        evictions = [e for e in events if isinstance(e, Evicted)]
        assert max(rows) < budget + every
        assert len(evictions) >= 60 // every - 1
        assert {n for e in evictions for n in e.after} == {budget}


def test_the_ledger_adds_up(llama: Decoder) -> None:
    """The fold against a run written by hand."""
    start = replace(bare_start(llama, Stack(), [1] * 5), t=1.0)
    events = [
        start,
        Prefilled(1.5, 2, 4, 70, [2, 2]),
        Prefilled(2.0, 4, 4, 90, [4, 4]),
        Drafted(2.1, [7, 8, 9], [-1, 0, 1], 0.1),
        Committed(3.0, [7, 8, 5], [0, 1], 1.0, [7, 7], 120, 2.0),
        Evicted(3.0, [7, 7], [3, 4]),
        Committed(5.0, [6], [], 2.0, [5, 4], 100, 1.0),
        Finished(5.0, "limit"),
    ]
    want = {
        "prompt_tokens": 5,
        "new_tokens": 4,
        "passes": 2,
        "tokens_per_pass": 2.0,
        "drafted": 3,
        "accepted": 2,
        "acceptance_rate": 2 / 3,
        "prefill_seconds": 1.0,
        "ttft_seconds": 2.0,
        "decode_seconds": 3.0,
        "decode_tokens_per_second": 4 / 3,
        "seconds_per_pass_median": 1.5,
        "weight_bytes": llama.nbytes,
        "kv_bytes_peak": 120,
        "kv_rows_peak": 7,
        "layers_run_mean": 1.5,
        "evicted_rows": 7,
    }
    got = trace.ledger(events)
    assert {k: got[k] for k in want} == pytest.approx(want)
    assert [row[3:6] for row in trace.rounds(events)] == [(3, 2, 3), (0, 0, 1)]


def test_drafts_are_counted_as_other_engines_count_them(llama: Decoder) -> None:
    """Three drafts of 4, 2 and 3 tokens (the last a tree two deep), of which 3, 0 and 1 are accepted, and a plain pass.

    vLLM: acceptance rate 4/9; mean acceptance length 1 + 4/3; per position (2, 1, 1, 0) of three drafts."""

    def passed(t: float, path: int) -> Committed:
        return Committed(t, list(range(path + 1)), list(range(path)), 1.0, [1], 1, 2.0)

    events = [
        bare_start(llama, Stack(), [1]),
        Drafted(1.0, [1, 2, 3, 4], [-1, 0, 1, 2], 0.1),
        passed(1.0, 3),
        Drafted(2.0, [1, 2], [-1, 0], 0.1),
        passed(2.0, 0),
        passed(3.0, 0),
        Drafted(4.0, [1, 2, 3], [-1, -1, 0], 0.1),
        passed(4.0, 1),
        Finished(5.0, "limit"),
    ]
    got = trace.ledger(events)
    assert (got["drafts"], got["drafted"], got["accepted"]) == (3, 9, 4)
    assert got["acceptance_rate"] == pytest.approx(4 / 9)
    assert got["mean_acceptance_length"] == pytest.approx(1 + 4 / 3)
    assert got["acceptance_by_position"] == pytest.approx([2 / 3, 1 / 3, 1 / 3, 0])
    assert got["tokens_per_pass"] == 2.0
    assert got["accepted_by_depth"] == [[1, 3, 2], [2, 3, 1], [3, 1, 1], [4, 1, 0]]


# Replay ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", STACKS, ids=repr)
def test_a_trace_comes_back(llama: Decoder, stack: Stack, tmp_path: Path) -> None:
    events = laws.run(laws.changed(llama, stack, tiny.tools()), PROMPT, 20, stack)
    events.insert(1, WeightsChanged(0.0, "Wanda", 10, 9, "naïve – 一 \u2028 {}"))
    again = trace.loads(trace.dumps(events))
    assert again == events
    assert trace.ledger(again) == trace.ledger(events)
    assert Stack.from_json(again[0].stack) == stack
    (tmp_path / "t.jsonl").write_text(trace.dumps(events), encoding="utf-8")
    assert trace.load(tmp_path / "t.jsonl") == events


def test_lanes_are_told_apart(llama: Decoder) -> None:
    a, b = laws.run(llama, PROMPT, 5), laws.run(llama, PROMPT, 5, Stack([laws.sharp("prompt-lookup")]))
    assert trace.lanes(trace.loads(trace.dumps([*a, *b]))) == {"baseline": a, "stack": b}
    compared = Compared(9.0, {"identical": True, "margin": None, "kl_mean": 0.25})
    assert trace.loads(trace.dumps([*a, *b, compared]))[-1] == compared


@cache
def _lines() -> list[str]:
    model = tiny.decoder("llama")
    return trace.dumps(laws.run(model, PROMPT, 6, Stack([laws.sharp("h2o")]))).splitlines()


HUGE = "9" * 5000
BROKEN = {
    "empty": lambda lines: [],
    "header only": lambda lines: lines[:1],
    "no header": lambda lines: lines[1:],
    "another schema": lambda lines: ['{"schema": "llmlab.trace/2"}', *lines[1:]],
    "breaks off": lambda lines: lines[:-1],
    "cut within a line": lambda lines: [*lines[:-1], lines[-1][: len(lines[-1]) // 2]],
    "does not start": lambda lines: [lines[0], *lines[2:]],
    "not JSON": lambda lines: [*lines[:2], "no", *lines[2:]],
    "not an object": lambda lines: [*lines[:2], "[1]", *lines[2:]],
    "unknown event": lambda lines: [*lines[:2], '{"event": "Exploded", "t": 1}', *lines[2:]],
    "field missing": lambda lines: [*lines[:2], '{"event": "Evicted", "t": 1.0}', *lines[2:]],
    "wrong type": lambda lines: [*lines[:2], '{"event": "Evicted", "t": "x", "before": [], "after": []}', *lines[2:]],
    "wrong element": lambda lines: [
        *lines[:2],
        '{"event": "Evicted", "t": 1, "before": ["a"], "after": [1]}',
        *lines[2:],
    ],
    "truth for time": lambda lines: [*lines[:2], '{"event": "Finished", "t": true, "reason": "x"}', *lines[2:]],
    "no time": lambda lines: [*lines[:2], '{"event": "Finished", "t": NaN, "reason": "x"}', *lines[2:]],
    "huge number": lambda lines: [*lines[:2], f'{{"event": "Failed", "t": {HUGE}, "message": ""}}', *lines[2:]],
    "deep": lambda lines: [*lines[:2], "[" * 100_000, *lines[2:]],
    "too many": lambda lines: [*lines[:2], *[lines[-1]] * trace.MOST, lines[-1]],
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_a_broken_trace_is_refused(damage: Callable[[list[str]], list[str]]) -> None:
    lines = _lines()
    assert trace.loads("\n".join(lines))
    with pytest.raises(Refused):
        trace.loads("\n".join(damage(lines)))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "x", tmp_path / "absent", tmp_path):
        with pytest.raises(Refused):
            trace.load(path)


@settings(max_examples=200)
@given(st.data())
def test_any_damage_is_refused_or_read(data: st.DataObject) -> None:
    """Change one value of one line: either the trace is refused, or what is read is of the right types throughout."""
    lines = _lines()
    at = data.draw(st.integers(1, len(lines) - 1))
    event = json.loads(lines[at])
    key = data.draw(st.sampled_from(sorted(event)))
    junk = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=4,
    )
    event[key] = data.draw(junk)
    try:
        events = trace.loads("\n".join([*lines[:at], json.dumps(event), *lines[at + 1 :]]))
    except Refused:
        return
    trace.ledger(events)
    trace.rounds_csv(events)


def test_a_spreadsheet_gets_no_formulas(llama: Decoder) -> None:
    events = laws.run(llama, PROMPT, 4)
    events = [replace(e, text=["=1+1"]) if isinstance(e, Committed) else e for e in events]
    assert ",'=1+1," in trace.rounds_csv(events)


def test_a_failed_run_is_a_trace_too(llama: Decoder) -> None:
    events = [bare_start(llama, Stack(), PROMPT), Failed(0.5, "It broke.")]
    assert trace.loads(trace.dumps(events)) == events
    assert trace.ledger(events)["new_tokens"] == 0


# Fresh and undo -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", STACKS + PAIRS, ids=repr)
def test_a_run_leaves_nothing_behind(stack: Stack) -> None:
    assert laws.undo(tiny.decoder("llama").private_copy(), stack, PROMPT, 10) == []


@pytest.mark.parametrize("weights", ["int4", "int8", "nf4"])
@pytest.mark.parametrize("id", [id for id, cls in registry().items() if cls.role == "WeightTransform"])
def test_a_transform_leaves_the_shared_model_alone(id: str, weights: str) -> None:
    assert laws.undo(tiny.decoder("llama", weights), Stack([laws.sharp(id)]), PROMPT, 4) == []


@pytest.mark.parametrize("stack", STACKS, ids=repr)
def test_a_run_that_is_broken_off_leaves_nothing_behind(llama: Decoder, stack: Stack) -> None:
    model = laws.changed(llama, stack, tiny.tools())
    before = laws.fingerprint(model)
    events = generate(model, PROMPT, 20, stack, tools=tiny.tools())
    for _ in itertools.islice(events, 7):
        pass
    events.close()
    assert laws.fingerprint(model) == before


@pytest.mark.parametrize("first", STACKS, ids=repr)
def test_what_ran_before_does_not_matter(llama: Decoder, first: Stack) -> None:
    prompts = tiny.prompts(2, 21)
    for second in STACKS:
        assert laws.fresh(llama, first, second, prompts, 12) == []


# Identity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", laws.lossy_ids())
def test_every_lossy_technique_has_a_setting_that_changes_nothing(llama: Decoder, id: str) -> None:
    neutral = make(id, **registry()[id].noop_settings)
    assert neutral.lossless()
    assert not laws.sharp(id).lossless()
    stack, prompts = laws.accompanied(neutral), tiny.prompts(10, 21)
    model = laws.changed(llama, stack, tiny.tools())
    same = laws.texts(llama, Stack(), prompts, 20, tiny.tools), laws.texts(model, stack, prompts, 20, tiny.tools)
    assert laws.differences(*same) == []
    assert laws.fingerprint(model) == laws.fingerprint(llama)


@pytest.mark.parametrize("id", laws.exact_ids())
def test_an_exact_technique_is_lossless_at_any_setting(id: str) -> None:
    assert registry()[id].noop_settings is None
    assert all(t.lossless() for t in laws.ends(id))


def test_a_stack_is_lossless_when_all_its_members_are() -> None:
    drafter = laws.sharp("prompt-lookup")
    assert Stack([drafter]).lossless()
    assert not Stack([drafter, laws.sharp("h2o")]).lossless()
    assert math.isclose(make("h2o", budget=registry()["h2o"].noop_settings["budget"]).budget, 65536)

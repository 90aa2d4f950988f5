"""The server and its load: the same text per request under every policy, and figures worked out by hand."""

from __future__ import annotations

import statistics
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import count

import pytest

from llmlab.errors import Refused
from llmlab.kv.rows import Rows
from llmlab.lab.experiment import Lab
from llmlab.lab.settings import Settings
from llmlab.lab.study import Stopped, Subject, carry_out, make_study
from llmlab.measure.statistics import percentile
from llmlab.runtime.draft import Draft, Verdict
from llmlab.runtime.roles import Drafter
from llmlab.runtime.session import Session
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make
from llmlab.runtime.tools import Tools
from llmlab.serving.scheduler import Request, Scheduler, Share
from llmlab.serving.server import Pass, Server
from llmlab.studies.idle_speculation import POLICIES, Speculating, always_falls, idle_only_never_falls
from llmlab.studies.support.serving_load import HEADINGS, Served, figures, poisson
from tests import made, tiny
from tests.laws import laws

LIMIT = 14
PROMPTS = [*tiny.prompts(7, 23), [5], [9, 9, 9, 9]]


@pytest.fixture(scope="module")
def alone() -> list[list[int]]:
    """What each prompt's text is when nobody else is served."""
    return laws.texts(tiny.decoder("llama"), Stack(), PROMPTS, LIMIT, tiny.tools)


def ticks() -> Server:
    """A server whose clock goes on by one with every pass."""
    return Server(tiny.decoder("llama"), 4, count().__next__)


def requests(gap: float) -> list[Request]:
    return [Request(p, LIMIT, gap * i) for i, p in enumerate(PROMPTS)]


# The law --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [0.0, 2.5, 40.0], ids=["at once", "crossing", "one by one"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("drafter", ["prompt-lookup", "draft-model"])
def test_a_request_gets_the_same_text_under_every_policy(
    gap: float, policy: str, drafter: str, alone: list[list[int]]
) -> None:
    served, server = requests(gap), ticks()
    passes = list(server.serve(served, Speculating(policy, 3, 4, 4), Stack([laws.sharp(drafter)]), tiny.tools()))
    assert [r.text for r in served] == alone
    assert [len(r.times) for r in served] == [LIMIT] * len(PROMPTS)
    assert sum(p.mandatory + p.accepted for p in passes) == LIMIT * len(PROMPTS)
    assert sum(p.read for p in passes) == sum(len(p) - 1 for p in PROMPTS)
    assert all(p.accepted <= p.drafted for p in passes)
    if policy == "off":
        assert not any(p.drafted for p in passes)
    elif policy == "always" or gap:
        assert any(p.accepted for p in passes)
    # The server is as it was: another load gets its seats, and its texts.
    again = requests(gap)
    assert len(list(server.serve(again, Scheduler()))) >= LIMIT
    assert [r.text for r in again] == alone


@dataclass(frozen=True)
class Scripted(Drafter):
    """Knows the texts, and spoils its guess after as many tokens as its turn says: every length is accepted."""

    texts: tuple[tuple[int, ...], ...] = ()

    def drafts(self, session: Session, tools: Tools) -> Generator[Draft, Verdict, None]:
        known = [(p, t) for p, t in zip(PROMPTS, self.texts, strict=True) if session.tokens[: len(p)] == p]
        prompt, text = max(known, key=lambda one: len(one[0]))
        start = len(prompt)
        for turn in count(start):
            right = turn % 6
            ahead = list(text[len(session.tokens) - start :][:5])
            guess = ahead[:right] + [(t + 1) % tiny.VOCAB for t in ahead[right:]]
            verdict = yield Draft.chain(guess)
            held = verdict.draft.tokens
            assert verdict.path == tuple(range(min(right, len(held))))
            assert verdict.tokens[:-1] == held[: len(verdict.path)]


def test_every_accepted_length_keeps_the_text(alone: list[list[int]]) -> None:
    served = requests(1.5)
    scripted = Scripted(tuple(map(tuple, alone)))
    passes = list(ticks().serve(served, Speculating("always", 5, 4, 4), Stack([scripted])))
    assert [r.text for r in served] == alone
    assert 0 < sum(p.accepted for p in passes) < sum(p.drafted for p in passes)


def test_forgetting_to_take_rows_back_would_be_noticed(monkeypatch: pytest.MonkeyPatch, alone: list[list[int]]) -> None:
    monkeypatch.setattr(Rows, "commit", lambda self, mark, passed, kept, first: None)
    served = requests(0)
    list(ticks().serve(served, Speculating("always", 3, 4, 4), Stack([laws.sharp("prompt-lookup")]), tiny.tools()))
    assert [r.text for r in served] != alone


@pytest.mark.parametrize("gap", [0.0, 2.5], ids=["at once", "crossing"])
@pytest.mark.parametrize(
    "ids",
    [
        *[("streaming-llm",), ("h2o",), ("sliding-window",), ("early-exit",), ("skip-decode",), ("token-drop",)],
        *[("lenience", "prompt-lookup"), ("h2o", "prompt-lookup"), ("typical", "suffix-matching"), ("jacobi",)],
    ],
    ids="+".join,
)
def test_every_role_acts_in_the_server_as_it_does_alone(ids: tuple[str, ...], gap: float) -> None:
    stack = Stack([laws.sharp(id) for id in ids])
    want = laws.texts(tiny.decoder("llama"), stack, PROMPTS, LIMIT, tiny.tools)
    served = requests(gap)
    list(ticks().serve(served, Speculating("always", 8, 4, 4), stack, tiny.tools()))
    if "lenience" in ids or "typical" in ids:  # which tokens stand depends on the draft, and drafts share the pass
        assert all(len(r.text) == LIMIT for r in served)
    else:
        assert [r.text for r in served] == want


def test_a_stack_that_the_model_cannot_run_is_refused() -> None:
    both = Stack([laws.sharp("h2o"), laws.sharp("streaming-llm")])
    with pytest.raises(Refused, match="does the same job"):
        next(ticks().serve(requests(0), Scheduler(), both))


@dataclass(frozen=True)
class Chunked(Scheduler):
    """Reads three tokens of every prompt that needs it beside the requests that decode, which is what may come."""

    def plan(self, waiting: Sequence[Request], running: Sequence[Request], free: int) -> list[Share]:
        return [Share(r, min(r.unread, 3)) for r in (*running, *waiting[:free])]


@dataclass(frozen=True)
class Static(Scheduler):
    """Waits for a whole batch and lets nobody in until it is done."""

    def plan(self, waiting: Sequence[Request], running: Sequence[Request], free: int) -> list[Share]:
        if not running and len(waiting) < 3:
            return []
        begun = any(r.text for r in running)
        return super().plan(() if begun else waiting[: 3 - len(running)], running, free)


@pytest.mark.parametrize("scheduler", [Chunked(), Static()], ids=["chunked", "static"])
def test_other_schedulers_keep_the_texts_too(scheduler: Scheduler, alone: list[list[int]]) -> None:
    served = requests(3)
    list(ticks().serve(served, scheduler))
    assert [r.text for r in served] == alone


def test_a_scheduler_that_leaves_requests_waiting_for_ever_is_told_of() -> None:
    with pytest.raises(RuntimeError, match="Static plans nothing"):
        list(ticks().serve(requests(3)[:2], Static()))


def test_a_text_ends_at_a_stop_token_and_where_the_context_does(alone: list[list[int]]) -> None:
    ends = {alone[0][4], alone[2][9]}
    served = requests(0)
    list(
        ticks().serve(served, Speculating("always", 3, 4, 4), Stack([laws.sharp("prompt-lookup")]), tiny.tools(), ends)
    )
    for request, text in zip(served, alone, strict=True):
        over = [i for i, token in enumerate(text) if token in ends]
        assert request.text == (text[: over[0] + 1] if over else text)
    model = tiny.decoder("llama")
    long = Request(tiny.text(model.context - 3), 50)
    list(Server(model, 1).serve([long], Speculating("always", 4, 1, 4), Stack([make("prompt-lookup")])))
    assert long.text == laws.text(model, long.prompt, 50)
    assert len(long.text) == 4


# Who gets rows --------------------------------------------------------------------------------------------------


def test_idle_rows_by_hand() -> None:
    """Blocks of 4 in passes of at most 6 rows."""
    idle = Speculating("idle-only", 3, 6, 4)
    assert [idle.spare(m, 0) for m in range(1, 7)] == [3, 2, 1, 0, 1, 0]
    assert [idle.spare(m, 1) for m in range(1, 7)] == [0] * 6
    assert [Speculating("off", 3, 6, 4).spare(m, 0) for m in range(1, 7)] == [0] * 6
    assert [Speculating("always", 3, 6, 4).spare(m, 5) for m in range(1, 7)] == [3, 6, 9, 12, 15, 18]


def test_guesses_never_take_a_row_that_is_not_idle(alone: list[list[int]]) -> None:
    scripted = Scripted(tuple(map(tuple, alone)))
    served = [Request(p, LIMIT, 0 if i < 6 else 90 * i) for i, p in enumerate(PROMPTS)]
    passes = list(ticks().serve(served, Speculating("idle-only", 5, 4, 4), Stack([scripted])))
    assert any(p.waiting for p in passes)
    for p in passes:
        assert p.mandatory + p.drafted <= 4
        assert not (p.waiting and p.drafted)
    assert {p.drafted for p in passes if p.mandatory == 1 and not p.waiting} & {3}


# Load and figures -----------------------------------------------------------------------------------------------


def test_arrivals_are_those_of_a_poisson_process() -> None:
    times = poisson(4000, 5.0, 1)
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    assert times == poisson(4000, 5.0, 1) != poisson(4000, 5.0, 2)
    assert min(gaps) > 0
    # Exponential: the mean and the standard deviation are both 1 / rate.
    assert statistics.fmean(gaps) == pytest.approx(0.2, rel=0.06)
    assert statistics.pstdev(gaps) == pytest.approx(0.2, rel=0.1)
    assert poisson(50, 10.0, 3) == pytest.approx([t / 2 for t in poisson(50, 5.0, 3)]), "a load only stretches time"


def test_a_clock_of_whole_passes() -> None:
    """Two requests of one token each to read: the second arrives during the first's reading, at 0.5."""
    a, b = Request([3, 4], 2), Request([5, 6], 1, 0.5)
    passes = list(ticks().serve([b, a], Scheduler()))
    assert [(p.now, p.read, p.mandatory, p.waiting) for p in passes] == [
        (1, 1, 0, 0),
        (2, 1, 0, 0),
        (3, 0, 2, 0),
        (4, 0, 1, 0),
    ]
    assert (a.times, b.times) == ([3, 4], [3])
    late = Request([3, 4], 1, 100.0)
    assert [p.now for p in ticks().serve([late], Scheduler())] == [101, 102]


def test_figures_by_hand() -> None:
    """Two requests, four passes: one reads, one decodes both, one checks two guesses, and the last decodes one."""
    passes = [
        Pass(2.0, 1.0, 0, 5, 0, 0, 0),
        Pass(3.0, 1.0, 0, 0, 2, 0, 0),
        Pass(5.0, 1.5, 0, 0, 2, 2, 1),
        Pass(6.0, 1.0, 0, 0, 1, 0, 0),
    ]
    a = Request([1], 4, 1.0, [7, 8, 9, 9], [3.0, 5.0, 5.0, 6.0])
    b = Request([1], 2, 2.0, [7, 8], [3.0, 5.0])
    served = Served(passes, [a, b])
    assert served.span == 5.0
    assert served.throughput == 6 / 5
    assert served.latencies == [5.0, 3.0]
    assert served.waits == [1.0, 1.0, 1.0, 2.0]
    got = figures([served])
    assert tuple(got) == tuple(HEADINGS)
    assert got == pytest.approx(
        {
            "throughput": 1.2,
            "busy": 0.9,
            "latency": 4.0,
            "latency_p50": 3.0,
            "latency_p99": 5.0,
            "first": 1.5,
            "token": 1250.0,
            "token_p50": 1000.0,
            "token_p99": 2000.0,
            "rows": 7 / 3,
            "drafted": 2.0,
            "wasted": 1.0,
        }
    )


def test_quantiles_by_hand() -> None:
    assert [percentile([4, 1, 3, 2], q) for q in (0.25, 0.26, 0.5, 0.99, 1)] == [1, 2, 2, 4, 4]


# The study ------------------------------------------------------------------------------------------------------


def rounds(*throughputs: float) -> list[Served]:
    """Rounds of ten tokens with these throughputs."""
    return [
        Served([Pass(10 / t, 1, 0, 0, 1, 0, 0)], [Request([1], 10, 0, [1] * 10, [10 / t] * 10)]) for t in throughputs
    ]


STEADY = (10.0, 10.04, 10.02, 9.98, 10.01)


@pytest.mark.parametrize(
    ("idle", "always", "never_falls", "falls"),
    [
        ((10.01, 10.03, 10.02, 9.99, 10.01), (7.5, 7.6, 7.7, 7.5, 7.6), "confirmed", "confirmed"),
        ((10.1, 9.8, 10.2, 9.7, 10.0), (10.2, 9.9, 10, 9.8, 10.1), "undecided", "undecided"),
        ((8.5, 8.6, 8.55, 8.5, 8.6), (14, 14.5, 14.4, 14.1, 14.2), "refuted", "refuted"),
        # A single bad round, or two good ones, tell nothing.
        ((9.0, 10.0, 10.0, 10.0, 10.0), (7.0, 12.0, 8.0, 9.0, 11.0), "undecided", "undecided"),
        ((10.0, 10.1), (9.5, 9.8), "undecided", "undecided"),
    ],
)
def test_claims_follow_the_rounds(idle: Sequence[float], always: Sequence[float], never_falls: str, falls: str) -> None:
    by = {"off": rounds(*STEADY[: len(idle)]), "always": rounds(*always), "idle-only": rounds(*idle)}
    calm = {policy: rounds(*STEADY) for policy in POLICIES}
    found = {0.5: calm, 1.5: by}
    assert idle_only_never_falls(found).verdict == never_falls
    assert always_falls(found).verdict == falls
    assert "at load 1.5" in idle_only_never_falls(found).evidence


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = made.folder(tmp_path_factory.mktemp("models") / "tiny")
    return Subject(Lab(), Settings(str(folder), threads=1))


SMALL = {"requests": 4, "tokens": 6, "loads": 2, "rounds": 2, "rows": 3}


@pytest.mark.parametrize("drafter", ["prompt-lookup", "draft-model"])
def test_the_study_runs_and_tells_all(subject: Subject, drafter: str) -> None:
    told: list[tuple[str, int, int]] = []
    subject.report = lambda *what: told.append(what)
    found = carry_out(make_study("idle-speculation", drafter=drafter, **SMALL), subject)
    assert [(r["load"], r["policy"]) for r in found["rows"]] == [(x, p) for x in (2, 4) for p in POLICIES]
    assert all(set(r) == set(found["columns"]) for r in found["rows"])
    for r in found["rows"]:
        assert r["throughput"] > 0
        assert 0 < r["busy"] <= 1.000001
        assert r["other"] == 0, "in float32 no policy changes a text"
        if r["policy"] == "off":
            assert (r["drafted"], r["ratio"]) == (0, 1)
    for chart in found["charts"]:
        assert {chart["x"], chart["y"], chart["group"]} <= set(found["columns"])
    assert len(found["claims"]) == 2
    assert found["notes"][0].startswith("Without guesses the server manages")
    assert told
    assert subject.tools.kv_bytes() == 0


def test_a_study_stops_when_asked(subject: Subject) -> None:
    subject.stop.set()
    try:
        with pytest.raises(Stopped):
            carry_out(make_study("idle-speculation", **SMALL), subject)
    finally:
        subject.stop.clear()


# Refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_served_is_refused() -> None:
    model = tiny.decoder("llama")
    with pytest.raises(Refused, match="this model takes one"):
        Server(object(), 2)
    for prompt in ([], tiny.text(model.context + 1)):
        with pytest.raises(Refused, match="this model reads 1 to"):
            next(Server(model, 2).serve([Request([3], 2), Request(prompt, 2)], Scheduler()))


@dataclass(frozen=True)
class Branching(Drafter):
    def drafts(self, session: Session, tools: Tools) -> Generator[Draft, Verdict, None]:
        while True:
            yield Draft((3, 4), (-1, -1), (None, None))


def test_a_tree_of_guesses_keeps_the_text(alone: list[list[int]]) -> None:
    served = requests(0)
    passes = list(ticks().serve(served, Speculating("always", 2, 4, 4), Stack([Branching()])))
    assert [r.text for r in served] == alone
    assert any(p.drafted for p in passes)

"""The sweep: what it counts, its formulas, and one run of it on a tiny model."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from llmlab.assets import ASSETS
from llmlab.errors import Refused
from llmlab.lab.experiment import Lab
from llmlab.lab.settings import Settings
from llmlab.lab.study import Subject, carry_out, make_study
from llmlab.runtime.events import Committed, Drafted, Event
from llmlab.studies.support.sweep.claims import claims
from llmlab.studies.support.sweep.drafts import HALVES, Chains, Drafts, expected_tokens
from llmlab.studies.support.sweep.knobs import swept
from llmlab.studies.support.sweep.prompts import KINDS, held_out, known_prompts
from tests import made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(made.folder(tmp_path_factory.mktemp("models") / "tiny"))


def test_equation_1_by_hand() -> None:
    """1 + ½ + ¼ = (1 − ⅛) / (1 − ½); at a = 1, where the fraction is 0 / 0, every draft is taken: g + 1."""
    assert expected_tokens(0.5, 2) == pytest.approx(1.75) == pytest.approx((1 - 0.5**3) / (1 - 0.5))
    assert expected_tokens(1.0, 4) == 5
    assert expected_tokens(0.0, 4) == 1


def passes(*shapes: tuple[int, int], parents: list[int] | None = None) -> list[Event]:
    """Passes of (tokens drafted, accepted), each with one token of the model's own; 3 s, of which 1 s drafting."""
    events: list[Event] = []
    for n, accepted in shapes:
        if n:
            events.append(Drafted(0.0, [7] * n, parents or list(range(-1, n - 1)), 1.0))
        events.append(Committed(0.0, [7] * (accepted + 1), list(range(accepted)), 3.0, [1], 1, 4.0))
    return events


def test_drafts_are_counted_by_hand() -> None:
    drafts = Drafts()
    drafts.count(passes((2, 2), (2, 0), (2, 1), (1, 1)), limit=8)  # the last draft is short: only 2 tokens were left
    assert drafts.length == 2
    counts = drafts.all
    assert (counts.passes, counts.tokens, counts.accepted, counts.rejected) == (3, 6, 3, 2)
    assert (counts.drafted, counts.draft_seconds, counts.seconds) == (6, 3.0, 9.0)
    assert (drafts.drafted, drafts.seconds) == (7, 4.0)
    ((one, other),) = drafts.runs
    # With the first draft the drafter reads the prompt, so that it times no step: (2, 2) is in neither half.
    assert [(h.passes, h.tokens, h.acceptance) for h in (one, other)] == [(1, 2, 0.5), (1, 1, 0.0)]


def test_formulas_are_for_chains_of_one_length_only() -> None:
    for events in (passes((2, 1), (3, 1)), passes((0, 0), (2, 1)), passes((2, 1), parents=[-1, -1]), passes((0, 0))):
        drafts = Drafts()
        drafts.count(events, limit=100)
        assert drafts.length is None


def test_held_out_prompts_are_of_six_kinds_and_judge_or_choose() -> None:
    every = held_out("all", 5)
    assert all(len(held_out(kind, 4)) == 4 for kind in KINDS)
    both = [*known_prompts("judging"), *known_prompts("choosing")]
    assert every == sorted(known_prompts(), key=lambda p: KINDS.index(p["kind"])), "what is published chose nothing"
    assert len({p["id"] for p in both}) == len({p["prompt"] for p in both}) == len(both) == 60
    for use in ("judging", "choosing"):
        assert Counter(p["kind"] for p in both if p["use"] == use) == dict.fromkeys(KINDS, 5)


def strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(part)


def runs_of(text: str, n: int = 8) -> set[tuple[str, ...]]:
    """Every n words in a row, without case and punctuation."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def test_held_out_prompts_stand_nowhere_else() -> None:
    """No eight words in a row of one are in a text that something learns from or is calibrated or scored on, nor in
    another held-out prompt."""
    texts = ASSETS / "texts"
    others: set[tuple[str, ...]] = set()
    for name in ("training_prompts.json", "prompts.json", "calibration.txt", "evaluation.txt"):
        whole = (texts / name).read_text(encoding="utf-8")
        for text in strings(json.loads(whole)) if name.endswith("json") else [whole]:
            others |= runs_of(text)
    assert len(others) > 5000
    for p in [*known_prompts("judging"), *known_prompts("choosing")]:
        shared = runs_of(p["prompt"]) & others
        assert not shared, f"{p['id']}: {shared}"
        others |= runs_of(p["prompt"])


def test_what_is_turned_is_within_every_technique_s_range() -> None:
    for name in swept():
        tried = list(make_study("sweep", technique=name).settings_of(name))
        assert len(tried) >= 2, name
        assert len({t for _, _, t in tried}) == len(tried), name


def chains(g: int, a: float, speed: float = 1.0, prompts: int = 12, c: float = 0.1, seed: int = 0) -> Chains:
    """Drafts of g tokens, each accepted with probability a as equation 1 has it; a plain pass takes 1 s, and one with a
    draft what makes the speed-up `speed` times that of theorem 3.8."""
    rng = random.Random(seed)
    drafts = Drafts()
    per_pass = (g * c + 1) / speed
    for _ in range(prompts):
        events: list[Event] = []
        for i in range(61):
            n = next((i for i in range(g) if rng.random() >= a), g)
            events.append(Drafted(0.0, [7] * g, list(range(-1, g - 1)), g * c if i else 50.0))
            events.append(Committed(0.0, [7] * (n + 1), list(range(n)), per_pass if i else 60.0, [1], 1, 4.0))
        drafts.count(events, 10**6)
    return Chains("D", g, drafts.runs, [1.0] * prompts)


ROW = {"same_text": 1.0, "lossless": True, "knob": "length"}


def test_claims_are_confirmed_and_refuted_by_what_was_measured() -> None:
    good = claims([ROW], [chains(1, 0.5), chains(2, 0.5)], "dense-fp32")
    assert [c.verdict for c in good] == ["confirmed"] * 4
    slow = claims([ROW | {"same_text": 0.5}], [chains(1, 0.5, 0.6), chains(2, 0.5, 0.6)], "dense-fp32")
    assert [c.verdict for c in slow] == ["confirmed", "refuted", "refuted", "refuted"]
    none = claims([{"lossless": False, "knob": "ratio"}], [], "int4")
    assert [c.verdict for c in none] == ["untestable"] * 4
    sure = claims([ROW], [chains(1, 1.0), chains(4, 1.0)], "int4")
    assert [c.verdict for c in sure] == ["untestable", "confirmed", "confirmed", "confirmed"]
    assert "was accepted" in sure[0].evidence
    few = claims([ROW], [chains(4, 0.5, prompts=1)], "int4")
    assert [c.verdict for c in few] == ["undecided", "undecided", "untestable", "confirmed"]


def test_equation_1_is_refuted_where_acceptances_are_not_alike() -> None:
    """All or nothing, and half of the drafts all: a is 4 / (4 + 1) = 0.8, and 3.36 tokens where there are 3."""
    drafts = Drafts()
    for _ in range(12):
        drafts.count(passes(*[(4, 4), (4, 4), (4, 0), (4, 0)] * 15), limit=10**6)
    (claim, *_) = claims([ROW], [Chains("D", 4, drafts.runs, [1.0] * 12)], "int4")
    assert claim.verdict == "refuted"


def test_what_is_judged_gave_no_acceptance() -> None:
    """Passes in turn take everything and nothing: fitted on the same drafts, a = 1/2 would be exact for one token."""
    drafts = Drafts()
    for _ in range(12):
        drafts.count(passes((1, 1), *[(1, 0), (1, 1)] * 20), limit=10**6)
    every = torch.arange(12)
    own = Chains("D", 1, drafts.runs, [1.0] * 12)
    assert [own.a(h, every) for h in HALVES] == [1.0, 0.0]
    assert own.tokens_ratio(every) == pytest.approx((2 / 1 + 1 / 2) / 2)


@pytest.mark.parametrize("technique", ["prompt-lookup", "early-exit"])
def test_a_sweep_of_a_tiny_model(model: str, technique: str) -> None:
    study = make_study("sweep", technique=technique, kind="mathematics", tokens=8)
    value = carry_out(study, Subject(Lab(), Settings(model=model)))
    plain, *rows = value["rows"]
    assert plain["top1"] == plain["same_text"] == 1
    assert plain["kl"] == 0
    assert len(rows) >= 3
    for r in rows:
        assert r["ms"] > 0
        assert r["lossless"] == (technique == "prompt-lookup")
        if r["lossless"]:
            assert (r["top1"], r["kl"], r["same_text"], r["layers"]) == (1, 0, 1, pytest.approx(4 * r["passes"]))
    charted = {c["y"] for c in value["charts"]} | {c["x"] for c in value["charts"]}
    assert charted <= set(value["columns"])


def test_a_chosen_knob_and_value_are_all_that_is_tried(model: str) -> None:
    study = make_study("sweep", technique="draft-model", kind="chat", tokens=16, turn="length", values="2")
    value = carry_out(study, Subject(Lab(), Settings(model=model)))
    (r,) = value["rows"][1:]
    assert (r["technique"], r["knob"], r["value"]) == ("Draft model", "length", 2)
    assert r["same_text"] == 1
    assert r["top1"] == 1


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"technique": "h2o", "turn": "bugdet"}, "has no knob called 'bugdet'"),
        ({"technique": "h2o", "values": "0/1"}, "whole number from 4"),
        ({"technique": "h2o", "turn": "every"}, "no usual values"),
        ({"technique": "all", "values": "1"}, "Choose a technique"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused_before_it_loads(knobs: dict[str, str], says: str) -> None:
    with pytest.raises(Refused, match=says):
        make_study("sweep", **knobs).run(Subject(Lab(), Settings(model="smollm2-135m")))

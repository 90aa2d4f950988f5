"""The sweep: what it counts, its formulas, and one run of it on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmlab.errors import Refused
from llmlab.lab.experiment import Lab
from llmlab.lab.settings import Settings
from llmlab.lab.study import Subject, carry_out, make_study
from llmlab.runtime.events import Committed, Drafted, Event
from llmlab.studies.support.sweep.claims import claims
from llmlab.studies.support.sweep.drafts import Drafts, expected_tokens
from llmlab.studies.support.sweep.knobs import swept
from llmlab.studies.support.sweep.prompts import KINDS, held_out
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
    assert (drafts.passes, drafts.tokens, drafts.accepted, drafts.rejected) == (3, 6, 3, 2)
    assert (drafts.drafted, drafts.seconds) == (7, 4.0)


def test_formulas_are_for_chains_of_one_length_only() -> None:
    for events in (passes((2, 1), (3, 1)), passes((0, 0), (2, 1)), passes((2, 1), parents=[-1, -1]), passes((0, 0))):
        drafts = Drafts()
        drafts.count(events, limit=100)
        assert drafts.length is None


def test_held_out_prompts_are_of_six_kinds_and_stand_nowhere_else() -> None:
    every = held_out("all", 5)
    assert {p["kind"] for p in every} == set(KINDS)
    assert all(len(held_out(kind, 4)) == 4 for kind in KINDS)
    assert len({p["id"] for p in every}) == len(every)
    texts = Path(__file__).parents[2] / "assets" / "texts"
    others = "".join(f.read_text(encoding="utf-8") for f in texts.iterdir() if f.name != "held_out.json")
    for p in every:
        for line in p["prompt"].splitlines():
            assert len(line) < 60 or line not in others, p["id"]


def test_what_is_turned_is_within_every_technique_s_range() -> None:
    for name in swept():
        tried = list(make_study("sweep", technique=name).settings_of(name))
        assert len(tried) >= 2, name
        assert len({t for _, _, t in tried}) == len(tried), name


def row(technique: str, g: int, measured: float, speedup: float, a: float = 0.5, c: float = 0.1) -> dict[str, object]:
    tokens = expected_tokens(a, g)
    rest = {"acceptance": a, "c": c, "pass_cost": 1.2, "same_text": 1.0, "lossless": True, "knob": "length"}
    formulas = {"expected_tokens": tokens, "expected_speedup": tokens / (g * c + 1)}
    return {"technique": technique, "g": g, "tokens_pass": measured, "speedup": speedup, **formulas, **rest}


def test_claims_are_confirmed_and_refuted_by_what_was_measured() -> None:
    """a = ½, c = 0.1: 1.5 tokens for g = 1 and 1.75 for g = 2; speed-ups 1.36 and 1.46; at least 1.5 / 1.1 = 1.36."""
    good = claims([row("D", 1, 1.5, 1.35), row("D", 2, 1.8, 1.45)], "dense-fp32")
    assert [c.holds for c in good] == [True, True, True, True]
    bad = claims([row("D", 1, 1.5, 0.8), row("D", 2, 2.4, 0.7) | {"same_text": 0.5}], "dense-fp32")
    assert [c.holds for c in bad] == [False, False, False, False]
    assert "37.1% apart" in bad[0].evidence
    none = claims([{"lossless": False, "knob": "ratio"}], "int4")
    assert [c.holds for c in none] == [None] * 4


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

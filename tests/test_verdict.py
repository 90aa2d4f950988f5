"""Pairs in turn and the verdict: what counts as a difference, and what may be called better."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from llmlab.cli.compare import differences
from llmlab.measure.pairs import LEAST, Pairs, decode_speed, length_of
from llmlab.measure.quality import unmeasured
from llmlab.measure.verdict import judge, pairs_of, verdict_of
from llmlab.runtime.events import Committed, Compared, Event, Finished, Prefilled, Started, from_json, to_json
from llmlab.ui.run_summary import run_summary

EQUAL = Pairs((24.0, 31.0, 27.0, 29.0, 25.0), (27.0, 25.0, 30.0, 24.5, 28.0), 16)
FASTER = Pairs((24.0, 25.0, 26.0), (31.0, 30.0, 33.0), 16)
SAME = {"identical": True, "perplexity_ratio": 1.0, "withheld": "lossless"}


def lost(identical: bool, ratio: float, error: float | None) -> dict[str, object]:
    return {"identical": identical, "perplexity_ratio": ratio, "perplexity_ratio_error": error, "withheld": ""}


def test_equal_runs_that_lie_far_apart_are_no_difference() -> None:
    assert EQUAL.ratio == pytest.approx(27 / 25, rel=0.1)
    assert EQUAL.faster is None
    assert judge(EQUAL, 100, 100, SAME, lossless=True).verdict == "none"


def test_runs_apart_whose_ratios_scatter_are_no_difference() -> None:
    """Every run of the stack was faster; the ratios 3.00, 1.55 and 3.10 are 4.0 errors from 1, of three that is
    little: Student's t asks for 4.5."""
    apart = Pairs((10.0, 20.0, 29.0), (30.0, 31.0, 90.0), 16)
    assert min(apart.stack) > max(apart.baseline)
    assert apart.faster is None
    assert Pairs((10.0, 20.0, 29.0), (30.0, 61.0, 90.0), 16).faster is True


def test_by_chance_no_more_than_two_of_all_orders_of_three_equal_pairs_are_told_apart() -> None:
    """Over all ways in which six equal runs may fall into two threes: 2 of 20 lie apart."""
    told = [
        Pairs(tuple(float(x) for x in range(1, 7) if x not in mine), tuple(map(float, mine)), 1).faster
        for mine in itertools.combinations(range(1, 7), 3)
    ]
    assert (told.count(True), told.count(False), len(told)) == (1, 1, 20)


def test_a_pair_or_two_decide_nothing() -> None:
    for n in range(1, LEAST):
        few = Pairs(FASTER.baseline[:n], FASTER.stack[:n], 16)
        assert few.faster is None
        assert judge(few, 100, 100, SAME, lossless=True).verdict == "undecided"
    assert judge(None, 100, 100, SAME, lossless=True).speed == "undecided"


def test_only_a_gain_that_costs_nothing_is_better() -> None:
    assert judge(FASTER, 100, 100, SAME, lossless=True).verdict == "better"
    # An early exit that changes the text, whether or not a loss shows, is no more than a trade.
    assert judge(FASTER, 100, 100, lost(False, 1.001, 0.01), lossless=False).verdict == "trade"
    assert judge(EQUAL, 100, 100, lost(False, 1.001, 0.01), lossless=False).verdict == "worse"
    # StreamingLLM with another text saves memory: a trade.
    found = judge(EQUAL, 100, 80, lost(False, 1.03, 0.01), lossless=False)
    assert (found.verdict, found.memory, found.quality) == ("trade", "less", "lost")
    # A drafter's weights are a cost too.
    assert judge(FASTER, 100, 170, SAME, lossless=True).verdict == "trade"
    assert judge(FASTER, 100, 101, SAME, lossless=True).verdict == "better"
    # The same text here, and clearly worse predictions on long texts.
    assert judge(FASTER, 100, 100, lost(True, 1.03, 0.01), lossless=False).verdict == "trade"
    assert judge(FASTER, 100, 100, lost(True, 1.01, 0.01), lossless=False).verdict == "better"
    # The same text, and nobody knows the rest.
    unknown = {"identical": True, "perplexity_ratio": None, "withheld": "acceptance"}
    assert judge(FASTER, 100, 100, unknown, lossless=False).verdict == "undecided"
    slower = Pairs(FASTER.stack, FASTER.baseline, 16)
    assert judge(slower, 100, 100, SAME, lossless=True).verdict == "worse"
    assert judge(slower, 100, 50, SAME, lossless=True).verdict == "trade"


def test_what_did_not_act_in_a_run_does_not_make_it_worse() -> None:
    """StreamingLLM on a text shorter than its budget: long texts lose, but nothing was evicted here."""
    idle = lost(True, 1.03, 0.01) | {"kl_mean": 1e-7}
    found = judge(EQUAL, 100, 100, idle, lossless=False)
    assert (found.verdict, found.quality) == ("none", "later")
    assert judge(FASTER, 100, 100, idle, lossless=False).verdict == "trade"
    assert judge(Pairs(FASTER.stack, FASTER.baseline, 16), 100, 100, idle, lossless=False).verdict == "worse"
    acted = lost(True, 1.03, 0.01) | {"kl_mean": 1e-3}
    assert judge(EQUAL, 100, 100, acted, lossless=False).verdict == "worse"


def test_a_loss_on_few_blocks_takes_more_than_two_errors() -> None:
    """An own text of 128 tokens has four blocks: three degrees of freedom, 3.3 errors."""
    few = lost(True, 1.025, 0.01)
    assert judge(EQUAL, 100, 100, few, lossless=False).quality == "lost"
    assert judge(EQUAL, 100, 100, few | {"perplexity_ratio_freedom": 3}, lossless=False).quality == "same"


def test_drawn_tokens_leave_a_loss_undecided_that_is_not_ruled_out() -> None:
    for ratio, error, verdict in ((1.0, 0.005, "better"), (1.1, 0.1, "undecided"), (1.1, 0.01, "trade")):
        drawn = lost(False, ratio, error)
        assert judge(FASTER, 100, 100, drawn, lossless=False, sampled=True).verdict == verdict


def test_another_text_says_nothing_where_tokens_are_drawn() -> None:
    drawn = SAME | {"identical": False}
    assert judge(FASTER, 100, 100, drawn, lossless=True, sampled=True).verdict == "better"
    assert judge(FASTER, 100, 100, drawn, lossless=True).verdict == "trade"


def lane(name: str, seconds: float, tokens: int, lossless: bool = True) -> list[Event]:
    start = Started(0.0, "m", name, "cpu", "dense-fp32", [], {}, 4, 2, 100, lossless)
    ends = [1.0 + seconds * (i + 1) for i in range(tokens)]
    passes = [Committed(t, [i], [], seconds, [4, 4], 10, 2.0, ["x"]) for i, t in enumerate(ends)]
    return [start, Prefilled(1.0, 3, 3, 10, [3, 3]), *passes, Finished(ends[-1], "limit")]


def test_the_speed_of_a_run_s_first_tokens() -> None:
    run = lane("stack", 0.5, 8)
    assert decode_speed(run) == pytest.approx(2.0)
    slowed = [replace(e, t=e.t + 10) if isinstance(e, Committed) and e.tokens[0] >= 4 else e for e in run]
    assert decode_speed(slowed, 4) == pytest.approx(2.0)
    assert decode_speed(slowed) < 1
    assert decode_speed([]) == 0


def test_short_pairs_are_as_long_as_time_allows() -> None:
    quick = {"baseline": lane("baseline", 0.001, 40), "stack": lane("stack", 0.001, 40)}
    assert length_of(quick) == 40, "whole runs, where they take no time"
    slow = {"baseline": lane("baseline", 0.1, 200), "stack": lane("stack", 0.1, 200)}
    assert 16 <= length_of(slow) < 20
    hopeless = {"baseline": lane("baseline", 9.0, 40), "stack": lane("stack", 9.0, 40)}
    assert length_of(hopeless) == 0


def test_a_trace_keeps_pairs_and_verdict_and_an_earlier_one_still_opens() -> None:
    runs = [*lane("baseline", 0.2, 8), *lane("stack", 0.1, 8)]
    quality = {"identical": True, "first_difference": None, "margin": None, "withheld": "lossless"}
    whole = [*runs, Compared(3.0, quality, FASTER.to_json())]
    assert pairs_of(whole) == FASTER
    assert [from_json(to_json(e)) for e in whole] == whole
    verdict = verdict_of(whole)
    assert verdict is not None
    assert verdict.verdict == "better"
    old = from_json({"event": "Compared", "t": 3.0, "quality": {"identical": True}})
    assert isinstance(old, Compared)
    assert (old.pairs, old.verdict) == ({}, {})
    one = pairs_of([*runs, old])
    assert one is not None
    assert one.ratio == pytest.approx(2.0)
    verdict = verdict_of([*runs, old])
    assert verdict is not None
    assert verdict.verdict == "undecided", "one pair decides nothing"
    assert verdict_of(lane("stack", 0.1, 8)) is None


@pytest.mark.parametrize("damaged", [{}, {"baseline": [1]}, {"baseline": [0], "stack": [1]}, {"baseline": "x"}])
def test_a_stranger_s_pairs_are_passed_over(damaged: dict[str, object]) -> None:
    assert Pairs.from_json(damaged) is None


@pytest.mark.parametrize("lang", ["en", "zh-CN"])
def test_the_account_gives_the_spread_and_calls_what_lies_inside_it_none(lang: str) -> None:
    stack = [{"id": "prompt-lookup", "knobs": {}}]
    start, *rest = lane("stack", 0.1, 8)
    assert isinstance(start, Started)
    runs = [*lane("baseline", 0.2, 8), replace(start, stack=stack), *rest]
    quality = {"identical": True, "first_difference": None, "margin": None, "withheld": "lossless"}
    told = run_summary([*runs, Compared(3.0, quality, EQUAL.to_json())], lang)
    low, high = EQUAL.spread
    assert f"{EQUAL.ratio:.2f}" in told
    assert f"{low:.2f}" in told
    assert f"{high:.2f}" in told
    none = {"en": "no difference in speed within the spread of 5 pairs", "zh-CN": "5 对运行的波动范围内"}[lang]
    assert none in told
    told = run_summary([*runs, Compared(3.0, quality, FASTER.to_json())], lang)
    assert none not in told
    assert {"en": "Verdict: better", "zh-CN": "结论：更好"}[lang] in told


def test_the_command_says_what_is_known_of_a_comparison_that_was_broken_off() -> None:
    value: dict[str, Any] = {
        "quality": unmeasured([1, 2], [1, 2], "unfinished"),
        "pairs": {},
        "verdict": judge(None, 100, 100, {"identical": True}, lossless=False).to_json(),
        "baseline": {"metrics": {"decode_tokens_per_second": 1.0}},
        "metrics": {"decode_tokens_per_second": 2.0},
    }
    told = differences(value)
    assert "quality: stopped before it was measured" in told
    value["verdict"]["quality"] = "later"
    assert "same here, lost on longer texts" in differences(value)[-1]

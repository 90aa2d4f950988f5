"""Cascades, caches and word problems: everything that decides by hand, and the studies on a tiny model."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llmlab.errors import Refused
from llmlab.lab.experiment import Lab
from llmlab.lab.settings import Settings
from llmlab.lab.study import Subject, carry_out, make_study
from llmlab.measure.roofline import flops_per_token
from llmlab.measure.statistics import Estimate, percentile
from llmlab.runtime.batched import Text, generate_batch
from llmlab.runtime.stack import Stack
from llmlab.studies import cascade_bert, mot_cascade
from llmlab.studies.reasoning import gains
from llmlab.studies.support.cascades import arithmetic, caching, calibration, cascade, difficulty, embeddings, problems
from llmlab.studies.support.cascades import models as cascade_models
from llmlab.studies.support.cascades.cascade import Level, Scorer
from llmlab.studies.support.cascades.problems import KINDS, STYLES, corrected, equations, read
from llmlab.studies.support.cascades.replies import Reply
from llmlab.studies.support.tabi import levels, pruning
from llmlab.ui.figures import study as figures
from tests import made, tiny

# The calculator -----------------------------------------------------------------------------------------------------


def test_a_program_is_worked_out_exactly() -> None:
    got = arithmetic.run("a = 3 * 4  # boxes\nb = a // 5 + 7 % 4\nans = -a + b ** 2 / 8\nans -= 0.1")
    assert got == {"a": 12, "b": 5, "ans": Fraction(-12) + Fraction(25, 8) - Fraction(1, 10)}
    assert arithmetic.run("x = 0.1 + 0.2; y = max(x, 1) + min(2, 3, 4) - abs(-5); z = round(7 / 2 + 0.26, 1)") == {
        "x": Fraction(3, 10),
        "y": -2,
        "z": Fraction(38, 10),
    }
    assert arithmetic.value("(a + 1) * 2", {"a": Fraction(4)}) == 10
    assert arithmetic.value("2 ** -2 + 1_000") == Fraction(4001, 4)


PROMPTLY = 60
"""Seconds for what takes a fraction of one where it is guarded, and for ever where it is not."""
ATTACKS = {
    "a power tower": "x = 9 ** 9 ** 9",
    "a huge power": "x = 2 ** 64 ** 8",
    "powers in steps": "\n".join(["x = 10"] + ["x = x ** 9"] * 9),
    "products in steps": "\n".join(["x = 10 ** 9"] + ["x = x * x"] * 9),
    "small denominators": "\n".join(["x = 1 / 10 ** 9"] + ["x = x * x"] * 9),
    "a long number": "x = " + "9" * 60,
    "an infinite number": "x = 1e999",
    "a tiny number": "x = 1e-300",
    "a broken exponent": "x = 2 ** 0.5",
    "a negative exponent of zero": "x = 0 ** -1",
    "zero below": "x = 1 / 0",
    "zero below %": "x = 1 % 0",
    "a call": "x = print(1)",
    "an import": "import os",
    "an imported call": "x = __import__('os').system('true')",
    "an attribute": "x = (1).__class__",
    "an attribute called": "x = (1).bit_length()",
    "a name from outside": "x = __builtins__",
    "text": "x = 'a' * 9",
    "text by format": "x = f'{1}'",
    "truth": "x = True + 1",
    "a complex number": "x = 1j",
    "a list": "x = [1] * 9",
    "a comprehension": "x = [i for i in (1, 2)]",
    "a generator": "x = max(i for i in (1, 2))",
    "stars": "x = max(*[1, 2])",
    "keywords": "x = round(1, ndigits=2)",
    "a lambda": "x = (lambda: 1)()",
    "a walrus": "x = (y := 1)",
    "a condition": "x = 1 if 2 else 3",
    "a comparison": "x = 1 < 2",
    "bits": "x = 1 << 99",
    "a matrix product": "x = 1 @ 2",
    "a loop": "while 1: x = 1",
    "a definition": "def f(): pass",
    "two targets": "x = y = 1",
    "a pair": "x, y = 1, 2",
    "an item": "x = 1\nx[0] = 2",
    "an attribute set": "x = 1\nx.y = 2",
    "a bare expression": "1 + 1",
    "nothing assigned before": "x = y + 1",
    "rounding far": "x = round(1, 10 ** 9)",
    "deep brackets": "x = " + "(" * 200 + "1" + ")" * 200,
    "many signs": "x = " + "-" * 500 + "1",
    "spaced signs": "x = " + "- " * 500 + "1",
    "a long sum": "x = " + "+".join(["1"] * 400),
    "many steps": "\n".join(["x = 1"] * 600)[:1992],
    "length": "x = 1 " * 5000,
    "nots": "x = " + "not " * 450 + "1",
    "letters that look alike": "ａns = 1",
    "a zero byte": "x = 1\0",
    "half a program": "x = (1",
    "tabs": "\tx = 1\n  y = 2",
}


@pytest.mark.parametrize("program", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.timeout(PROMPTLY)
def test_the_calculator_refuses(program: str) -> None:
    if program == ATTACKS["many steps"]:
        arithmetic.run(program)  # within the steps: the same text with fewer must not be
        with pytest.raises(Refused, match="steps"):
            arithmetic.run(program, caps=arithmetic.Caps(steps=100))
        return
    with pytest.raises(Refused):
        arithmetic.run(program)


@pytest.mark.timeout(PROMPTLY)
def test_the_calculator_survives_noise() -> None:
    """Whatever is thrown at it, it answers or refuses; nothing else may come out."""
    dice = random.Random(1)
    pieces = ["x", "=", "1", "9", "**", "*", "/", "//", "%", "-", "(", ")", "\n", ";", " ", "max", ",", ".", "e", "if"]
    worked = 0
    for _ in range(3000):
        text = "".join(dice.choices(pieces, k=dice.randint(1, 40)))
        try:
            arithmetic.run("x = 3\n" + text)
            worked += 1
        except Refused:
            pass
    assert 0 < worked < 3000


# The problems -------------------------------------------------------------------------------------------------------


def test_every_solution_is_right_in_every_style() -> None:
    found = problems.asked("all", 60, seed=4)
    assert len({p.question for p in found}) == len(found) == 180
    assert {p.kind for p in found} == set(KINDS)
    for p in found:
        assert p.answer.denominator == 1
        assert p.answer >= 0
        assert corrected(p.chain) == p.answer
        for style in STYLES:
            assert read(style, f" {p.solution(style)}\n\nQ: And 7?\nA: 9", p.answer) == problems.Reading(
                p.answer, "right"
            )
            assert not read(style, p.solution(style), p.answer + 1).right


def test_problems_are_repeatable_and_none_is_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems.asked("dates", 20, 7) == problems.asked("dates", 20, 7)
    assert problems.asked("dates", 20, 7) != problems.asked("dates", 20, 8)
    shown = {p.question for k in KINDS for p in problems.shots(k, 8, 7)}
    assert not shown & {p.question for p in problems.asked("all", 100, 7, 8)}
    only = problems.Template("dates", "What is {a} and {a}?", (("It is", "ans", "a + a"),), {"a": (1, 3)})
    monkeypatch.setattr(problems, "TEMPLATES", (only,))
    assert len(problems.problems(3, 0, ("dates",))) == 3
    with pytest.raises(Refused, match="fewer"):
        problems.problems(4, 0, ("dates",))


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("The bags hold: 3 * 4 = 12. With 5: 12 + 5 = 17. The answer is 17.", "right"),
        ("The bags hold: 3 x 4 = 12, and 12 + 5 = 17 in all", "right"),
        # The slip is carried on: 13 stands for 12 in the second sum.
        ("The bags hold: 3 * 4 = 13. With 5: 13 + 5 = 18. The answer is 18.", "wrong arithmetic"),
        ("The bags hold: 3 * 4 = 12. With 5: 12 + 5 = 16. The answer is 16.", "wrong arithmetic"),
        ("The bags hold: 3 * 4 = 12. The answer is 12.", "wrong plan"),
        ("The bags hold: 3 + 4 = 7. With 5: 7 + 5 = 12. The answer is 12.", "wrong plan"),
        ("I think it is 9.", "wrong plan"),
        ("It is hard to say.", "unreadable"),
        ("", "unreadable"),
    ],
)
def test_what_went_wrong_in_a_chain(text: str, verdict: str) -> None:
    assert read("cot", text, Fraction(17)).verdict == verdict


def test_programs_and_bare_answers_are_read() -> None:
    assert read("pot", "bags = 3 * 4; ans = bags + 5\nans = 0", Fraction(17)).right
    assert read("pot", "ans = 3 + 4", Fraction(17)).verdict == "wrong plan"
    assert read("pot", "total = 17", Fraction(17)).verdict == "unreadable"
    assert read("pot", "ans = print(17)", Fraction(17)).verdict == "unreadable"
    assert read("direct", " $1,017 or so", Fraction(1017)).right
    assert read("direct", "16", Fraction(17)).verdict == "wrong"
    assert list(equations("First $3 * 4 = $12, then 12 ÷ 2 = 6. x = 5")) == [("3 * 4", "12"), ("12 / 2", "6")]


@pytest.mark.timeout(PROMPTLY)
def test_reading_long_noise_takes_no_time() -> None:
    for style in STYLES:
        read(style, "1+1-" * 20000 + "=", Fraction(1))


# Routes -------------------------------------------------------------------------------------------------------------


def level(name: str, score: list[float], correct: list[int], cost: float) -> Level:
    return Level(name, torch.tensor(score), torch.tensor(correct, dtype=torch.bool), torch.full((len(score),), cost))


SMALL = level("small", [0.9, 0.6, 0.4, 0.1], [1, 1, 0, 0], 1.0)
LARGE = level("large", [0.5, 0.5, 0.5, 0.5], [1, 0, 1, 1], 10.0)


def test_a_route_by_hand() -> None:
    """At 0.5 the small level keeps the first two; the others pay for both levels."""
    routed = cascade.route([SMALL, LARGE], [0.5])
    assert routed.level.tolist() == [0, 0, 1, 1]
    assert routed.correct.tolist() == [True, True, True, True]
    assert routed.cost.tolist() == [1, 1, 11, 11]
    assert list(routed.rows([SMALL, LARGE]))[2] == {
        "query": 2,
        "level": "large",
        "score": 0.5,
        "cost": 11.0,
        "correct": True,
    }
    assert cascade.route([SMALL, LARGE], [0.6]).level.tolist() == [0, 0, 1, 1]
    assert cascade.route([SMALL, LARGE], [2.0]).mean_cost == 11
    assert cascade.route([SMALL, LARGE, SMALL], [0.95, 0.55]).level.tolist() == [2, 2, 2, 2]
    with pytest.raises(ValueError, match="thresholds"):
        cascade.route([SMALL, LARGE], [])


def test_sending_on_by_chance() -> None:
    assert cascade.by_chance(SMALL, LARGE, 0.4) == pytest.approx((5.0, 0.6 * 0.5 + 0.4 * 0.75))
    assert cascade.by_chance(SMALL, LARGE, 0.4, cascade=False) == pytest.approx((4.6, 0.6))


def test_a_plan_is_learned_under_a_budget() -> None:
    found = cascade.plans([SMALL, LARGE], steps=4)
    assert {p.order for p in found} == {(0,), (1,), (0, 1), (1, 0)}
    best = cascade.best(found, 7.0)
    assert best is not None
    assert (best.order, best.accuracy, best.cost) == ((0, 1), 1.0, 6.0)
    assert 0.4 < best.thresholds[0] <= 0.6
    cheap = cascade.best(found, 1.0)
    assert cheap is not None
    assert (cheap.order, cheap.accuracy) == ((0,), 0.5)
    assert cascade.best(found, 0.5) is None
    for budget in (1.0, 4.0, 7.0, 11.0, 30.0):  # the grid has lost nothing that any threshold could give
        able = [cascade.route([SMALL, LARGE], [t]) for t in (-1, 0.2, 0.5, 0.7, 2)]
        most = max(r.accuracy for r in able if r.mean_cost <= budget)
        got = cascade.best(found, budget)
        assert got is not None
        assert got.accuracy >= most
    assert best.run([SMALL, LARGE]).accuracy == 1


def test_a_scorer_tells_right_from_wrong() -> None:
    dice = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=dice)
    correct = torch.rand(400, generator=dice) < torch.sigmoid(3 * x[:, 0])
    score = Scorer.fitted(100 + 5 * x[:200], correct[:200])(100 + 5 * x[200:])
    area = calibration.auc(score, correct[200:])
    assert area is not None
    assert area > 0.85
    assert float((score - correct[200:].double()).mean().abs()) < 0.08


def test_the_area_under_the_curve() -> None:
    """Right answers score 3 and 1, wrong ones 2 and 1: of four pairs two are in order and one is a tie."""
    assert calibration.auc(torch.tensor([3.0, 1, 2, 1]), torch.tensor([True, True, False, False])) == pytest.approx(
        2.5 / 4
    )
    assert calibration.auc(torch.ones(3), torch.ones(3, dtype=torch.bool)) is None


def test_an_area_is_ahead_by_so_much() -> None:
    right = torch.tensor([True, False] * 40)
    sure = Level("sure", right.double(), right, torch.ones(80))
    blind = Level("blind", torch.ones(80), right, torch.ones(80))
    assert calibration.ahead(sure, blind) == Estimate(0.5, 0.0, 79)
    assert calibration.ahead(blind, blind) == Estimate(0.0, 0.0, 79)
    noise = Level("noise", torch.rand(80, generator=torch.Generator().manual_seed(1)), right, torch.ones(80))
    ahead = calibration.ahead(sure, noise)
    assert ahead is not None
    assert 0.03 < ahead.error < 0.12
    assert (
        calibration.ahead(
            Level("", torch.ones(3), right[:1].repeat(3), torch.ones(3)), sure.part(torch.tensor([0, 2, 4]))
        )
        is None
    )


def test_temperature_by_hand() -> None:
    """Always 0.9 sure and right three times in four: ln 9 / T = ln 3, so that T is 2; and 1/2 the other way."""
    z = torch.tensor([[0.0, math.log(9)]]).repeat(4, 1)
    y = torch.tensor([1, 1, 1, 0])
    assert calibration.temperature(z, y) == pytest.approx(2, rel=1e-4)
    assert calibration.temperature(z / 4, y) == pytest.approx(0.5, rel=1e-4)


def test_calibration_error_by_hand() -> None:
    sure = torch.tensor([0.95, 0.95, 0.65, 0.65, 1.0])
    right = torch.tensor([True, False, True, True, True])
    found = calibration.reliability(sure, right)
    assert [(b.accuracy, b.count) for b in found] == [(1.0, 2), (pytest.approx(2 / 3), 3)]
    assert found[1].confidence == pytest.approx(2.9 / 3)
    assert calibration.ece(sure, right) == pytest.approx((2 * 0.35 + 3 * 0.3) / 5, abs=1e-6)


def test_operations_are_those_of_the_meter() -> None:
    model = tiny.decoder("llama")
    head = 2 * model.shape.vocab * model.shape.width
    step_by_step = sum(flops_per_token(model.shape, 4, 5 + i) - head for i in range(1, 8))
    assert cascade_models.flops(model, 5, 7, 0) == pytest.approx(step_by_step)
    assert cascade_models.flops(model, 5, 7, 3) == pytest.approx(step_by_step + 3 * head)
    twin = model.private_copy()
    for technique in Stack.from_arguments(["layer-drop:count=1", "neuron-drop:ratio=0.34"]):
        technique.apply(twin, tiny.tools())
    less = 3 * (step_by_step / 4) - 3 * 7 * 2 * 3 * model.shape.width * 32
    assert cascade_models.flops(twin, 5, 7, 0) == pytest.approx(less)


# Votes --------------------------------------------------------------------------------------------------------------


def reply(answer: int | None, verdict: str = "wrong plan", tokens: int = 10) -> Reply:
    said = None if answer is None else Fraction(answer)
    return Reply(0, "", problems.Reading(said, verdict), tokens, tokens, -1.0, -2.0, 1e9, 0.1)


def test_votes_by_hand() -> None:
    one, two = Fraction(1), Fraction(2)
    assert mot_cascade.vote([one, two, one, None]) == (1, 0.5)
    assert mot_cascade.vote([two, one]) == (2, 0.5)
    assert mot_cascade.vote([None, None]) == (None, 0.0)
    chains, programs = [reply(1), reply(1), reply(3)], [reply(3), reply(None), reply(1)]
    assert mot_cascade.decide("chains, vote", chains, []) == (1, pytest.approx(2 / 3))
    assert mot_cascade.decide("mixed, vote", chains, programs) == (1, 0.5)
    assert mot_cascade.decide("mixed, verify", chains, programs) == (3, 0.0)
    assert mot_cascade.decide("mixed, verify", chains, programs[1:]) == (1, 1.0)
    assert mot_cascade.decide("mixed, verify", [reply(None)], [reply(None)]) == (None, 0.0)


def test_every_method_looks_at_as_many_samples() -> None:
    cot, pot = [[reply(5)] * 4, [reply(1)] * 4], [[reply(5)] * 4, [reply(2)] * 4]
    for method in mot_cascade.METHODS:
        weak, taken = mot_cascade.weak_level(method, cot, pot, [Fraction(5), Fraction(2)])
        assert [len(t) for t in taken] == [4, 4]
        assert weak.cost.tolist() == [80, 80]
        assert weak.correct[0]
        assert weak.score[0] == 1
    weak, _ = mot_cascade.weak_level("mixed, vote", cot, pot, [Fraction(5), Fraction(2)])
    assert weak.score.tolist() == [1.0, 0.5]
    strong = Level("strong", torch.ones(2), torch.tensor([True, True]), torch.full((2,), 1000.0))
    rows = list(mot_cascade.sweep("m", weak, strong, torch.full((2,), 4.0), torch.full((2,), 7.0), 1000.0, None))
    assert [r["sent"] for r in rows] == [0, 0.5, 1]
    assert [r["price"] for r in rows] == pytest.approx([0.08, 0.58, 1.08])
    assert [r["gflops"] for r in rows] == [4, 7.5, 11]
    assert rows[1]["right"] == 1
    assert rows[1]["chance"] == pytest.approx(0.75)


def test_a_gain_counts_pairs() -> None:
    right, slip, wrong = reply(1, "right"), reply(1, "wrong arithmetic"), reply(1)
    assert gains([right, right, wrong, right], [right, slip, wrong, wrong]).tolist() == [0, 1, 0, 1]
    assert gains([right, right, wrong], [right, slip, right], slips=True).tolist() == [0, 0, -1]


# Caches -------------------------------------------------------------------------------------------------------------


def optimum(queries: list[int], costs: list[float], size: int) -> float:
    """The least total cost for somebody who knows the stream, trying every choice."""
    states: dict[frozenset[int], float] = {frozenset(): 0.0}
    for query in queries:
        after: dict[frozenset[int], float] = {}
        for kept, total in states.items():
            paid = total if query in kept else total + costs[query]
            ways = {kept} if query in kept else {kept, *(kept - {gone} | {query} for gone in kept)}
            if query not in kept and len(kept) < size:
                ways.add(kept | {query})
            for way in ways:
                after[way] = min(after.get(way, math.inf), paid)
        states = after
    return min(states.values())


def served(queries: list[int], costs: list[float], size: int, policy: str) -> float:
    return caching.serve(queries, [[c] for c in costs], size, policy, (0,)).cost * len(queries)


def test_least_expected_cost_on_a_tiny_stream() -> None:
    """One answer kept; query 0 costs 10, the others 1. LRU forgets 0 each time; LEC never, which is the optimum.

    0 1 0 2 0 1 0: LRU pays 10 four times and 1 three times. LFU too keeps 0 from the second time on, but at first 0
    and 1 have been asked once each and the later one stays, so that 0 is paid twice.
    """
    queries, costs = [0, 1, 0, 2, 0, 1, 0], [10.0, 1.0, 1.0]
    assert served(queries, costs, 1, "lru") == 43
    assert served(queries, costs, 1, "lfu") == 23
    assert served(queries, costs, 1, "lec") == 13 == optimum(queries, costs, 1)
    # Frequencies count as well: 1 takes the place of 0, which costs five times as much, once it was asked five times as
    # often. Before that it costs 1 each time: 5 + 5, where keeping it at once would have cost 5 + 1.
    often = [0, *[1] * 8]
    assert served(often, [5.0, 1.0], 1, "lec") == 10
    assert optimum(often, [5.0, 1.0], 1) == 6
    assert served([0, 0, 1], [1.0, 2.0], 0, "lru") == 4
    with pytest.raises(Refused, match="policy"):
        served([0], [1.0], 1, "fifo")


def test_no_policy_beats_who_knows_the_stream() -> None:
    dice = random.Random(2)
    for _ in range(40):
        costs = [dice.choice((1.0, 5.0, 20.0)) for _ in range(5)]
        queries = [dice.randrange(5) for _ in range(14)]
        size = dice.randint(1, 3)
        least = optimum(queries, costs, size)
        for policy in caching.POLICIES:
            assert served(queries, costs, size, policy) >= least - 1e-9


def test_a_long_stream_comes_near_the_best_fixed_cache() -> None:
    chances, costs = caching.zipf(10, 0.7), [1.0, 100.0] * 5
    assert sum(chances) == pytest.approx(1)
    assert chances[0] / chances[3] == pytest.approx(4**0.7)
    queries = caching.stream(chances, 20_000, 1)
    best = caching.ideal(chances, costs, 5)
    assert best == pytest.approx(sum(p for p, c in zip(chances, costs, strict=True) if c == 1))
    cost = {p: caching.serve(queries, [[c] for c in costs], 5, p, (0,)).cost for p in caching.POLICIES}
    assert cost["lec"] == pytest.approx(best, rel=0.1)
    assert cost["lru"] > 5 * cost["lec"]
    assert cost["lfu"] > 5 * cost["lec"]


def test_the_multiplexer_tries_both_and_keeps_the_cheaper() -> None:
    """Query 0 is cheap for the second model, query 1 for the first. Nothing is kept: 8 of each, one trial too many."""
    out = caching.serve([0, 1] * 8, [[9.0, 1.0], [1.0, 9.0]], 0, "lec", (0, 1))
    assert out.cost * 16 == (9 + 7 * 1) + (1 + 9 + 6 * 1)
    guessed = caching.serve([0, 1] * 8, [[9.0, 1.0], [1.0, 9.0]], 0, "lec", (0, 1), lambda q, m: [[9, 1], [1, 9]][q][m])
    assert guessed.cost == 1
    assert guessed.chosen == (0.5, 0.5)


def test_wrong_hits_are_counted() -> None:
    """Keys that look alike: 0 and 1 are one question in two wordings, 2 is another that looks like them."""
    find = embeddings.nearest_finder(torch.tensor([[1, 0.95, 0.9], [0.95, 1, 0.9], [0.9, 0.9, 1]]), 0.92)
    alike = caching.serve([0, 1, 2, 2], [[1.0]] * 3, 3, "lru", (0,), None, find, lambda q, f: q // 2 == f // 2, 0.5)
    assert (alike.hits, alike.wrong, alike.cost) == (0.5, 0.0, 1.0)
    loose = embeddings.nearest_finder(torch.tensor([[1, 0.95, 0.9], [0.95, 1, 0.9], [0.9, 0.9, 1]]), 0.85)
    out = caching.serve([0, 1, 2, 2], [[1.0]] * 3, 3, "lru", (0,), None, loose, lambda q, f: q // 2 == f // 2)
    assert (out.hits, out.wrong) == (0.75, 0.5)


# Calibrated classifiers ---------------------------------------------------------------------------------------------


def test_the_difficulty_margin_by_hand() -> None:
    """Confidences 0.8 and 0.6 of easy, 0.7 of hard sentences, ε = 0.2: (0.1 + 0.3) / 2 = 0.2, times λ."""
    z = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7]]).log()[None]
    y, hard = torch.tensor([0, 0, 0]), torch.tensor([False, False, True])
    plain = float(F.cross_entropy(z[0], y))
    assert float(difficulty.margin_loss(y, hard, 0.2, 3.0)(z)) == pytest.approx(plain + 3 * 0.2, abs=1e-5)
    assert float(difficulty.margin_loss(y, torch.zeros(3, dtype=torch.bool), 0.2, 3.0)(z)) == pytest.approx(plain)


def test_hard_sentences_are_those_that_others_get_wrong() -> None:
    """Two clear clouds, and one sentence of each class that lies in the other's."""
    dice = torch.Generator().manual_seed(0)
    y = torch.arange(40) % 2
    x = (2.0 * y - 1)[:, None].repeat(1, 4) + 0.1 * torch.randn(40, 4, generator=dice)
    x[[6, 7]] = -x[[6, 7]]
    assert difficulty.missed(x[None], y, 2).nonzero().flatten().tolist() == [6, 7]


def test_bars_reach_from_everything_to_nothing() -> None:
    found = cascade_bert.bars(torch.linspace(0.3, 0.9, 50), 5)
    assert found[0] == 0
    assert found[-1] > 1
    assert found == sorted(found)


def test_words_and_what_is_pruned() -> None:
    pieces = ["The", "Ġlong", "er", "Ġway", "Ġhome", "?"]
    assert pruning.words_of(pieces) == [0, 1, 1, 2, 3, 3]
    ids, word = [10, 11, 12, 13, 14, 15], pruning.words_of(pieces)
    given = torch.tensor([0.0, 0.1, 0.4, 0.2, 0.05, 0.0])
    assert pruning.pruned(ids, word, given, 0.34, 0) == [10, 11, 12, 13]  # of three words, "home?" got least
    assert pruning.pruned(ids, word, given, 0.67, 0) == [10, 11, 12]
    assert pruning.pruned(ids, word, given, 0.9, 2) == [10, 11, 12, 14, 15]  # of two words one; the question stays
    assert pruning.pruned(ids, word, given, 0.0, 2) == ids


def test_attention_of_the_last_token_is_what_is_looked_at() -> None:
    """The looked-at pass gives the same state, and weights that sum to one."""
    model = tiny.decoder("llama")
    ids = tiny.text(150)
    plain, none = pruning.read(model, ids, 4, False)
    looked, given = pruning.read(model, ids, 3, True)
    assert none is None
    assert given is not None
    assert torch.allclose(pruning.read(model, ids, 3, False)[0], looked, atol=1e-4)
    assert not torch.allclose(plain, looked, atol=1e-1)
    assert given.shape == (150,)
    assert float(given.sum()) == pytest.approx(1, abs=1e-4)


def test_percentiles_are_sentences_that_exist() -> None:
    assert percentile([5, 1, 3, 2, 4], 0.5) == 3
    assert percentile(list(range(1, 101)), 0.99) == 99
    assert percentile([1, 2, 3], 0.99) == 3


def test_mixing_finds_the_weight_that_helps() -> None:
    """What reaches the second level: it errs by a little where the first is right by much."""
    before = torch.tensor([[0.7, 0.3], [0.3, 0.7]])
    here = torch.tensor([[0.45, 0.55], [0.55, 0.45]])
    y = torch.tensor([0, 1])
    (w,) = levels.mixing([before, here], y, [0.9])
    assert (w * before + (1 - w) * here).argmax(-1).tolist() == [0, 1]
    assert levels.mixing([before, here], y, [0.1]) == (0.0,)


# A prefix that is read once -----------------------------------------------------------------------------------------


def test_a_shared_prefix_changes_no_text() -> None:
    model, head = tiny.decoder("llama"), tiny.text(20)
    tails = [tiny.text(n, seed=n) for n in (3, 5, 2, 9, 4)]

    def texts() -> Iterator[Text]:
        for i, tail in enumerate(tails):
            yield Text([*head, *tail], 20 + len(tail), 6 + i, tag=i)

    whole = {t.tag: t for t in generate_batch(model, texts(), together=2, taps=(4,))}
    shared = {t.tag: t for t in generate_batch(model, texts(), together=2, taps=(4,), prefix=head)}
    for i in range(len(tails)):
        assert whole[i].tokens == shared[i].tokens
        assert torch.allclose(whole[i].seen[20:], shared[i].seen, atol=1e-4)


# The studies --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.folder(tmp_path_factory.mktemp("cascade") / "tiny")


SMALLEST: dict[str, dict[str, Any]] = {
    "reasoning": {"each": 4, "examples": 1},
    "frugal-gpt": {"each": 10, "kind": "one step", "examples": 1, "styles": "direct+cot+pot"},
    "mot-cascade": {"each": 5, "kind": "dates", "examples": 1, "samples": 2},
    "answer-cache": {"each": 4, "examples": 1, "rounds": 200, "tables": 1, "layer": 2},
    "cascade-bert": {"train": 60, "calibrate": 20, "test": 30, "kept": "1/2"},
    "tabi": {"train": 60, "calibrate": 20, "test": 20, "kept": "1/2", "words": "short"},
}


WHO = {"frugal-gpt": 5, "mot-cascade": 5, "cascade-bert": 30, "tabi": 20}
"""Cascades, and how many queries each of the runs above answers."""


@pytest.mark.parametrize("name", SMALLEST)
def test_a_study_runs_and_says_what_it_found(name: str, folder: Path) -> None:
    found = carry_out(make_study(name, **SMALLEST[name]), Subject(Lab(), Settings(str(folder), threads=1)))
    assert found["rows"]
    assert found["claims"]
    assert all(c["evidence"] and c["holds"] in (True, False, None) for c in found["claims"])
    used = {c[axis] for c in found["charts"] for axis in ("x", "y", "group", "ideal") if c[axis]}
    assert used <= set(found["columns"])
    for row in found["rows"]:
        for value in row.values():
            assert value is None or isinstance(value, str | int | float | bool)
            assert not isinstance(value, float) or math.isfinite(value)
    who = figures.cascade(found, "en")
    if name in WHO:
        right, wrong, cost = who.data
        assert sum(right.y) + sum(wrong.y) == WHO[name]
        assert list(cost.y) == sorted(cost.y)
    for chart in found["charts"]:
        assert any(row.get(chart["x"]) is not None and row.get(chart["y"]) is not None for row in found["rows"])


def test_what_a_cascade_row_says_adds_up(folder: Path) -> None:
    """In a cascade of copies of one model, whoever is sent on pays twice, and nothing else changes."""
    study = make_study("frugal-gpt", each=10, kind="one step", examples=1, styles="pot", pay="flops", budget=5.0)
    found = carry_out(study, Subject(Lab(), Settings(str(folder), threads=1)))
    single = {r["name"]: r for r in found["rows"] if r["way"] == "one level"}
    assert single["pruned, pot"]["gflops"] < single["whole, pot"]["gflops"]
    assert single["whole, pot"]["cost"] == pytest.approx(single["whole, pot"]["gflops"])
    queries = [r for r in found["rows"] if r["way"] == "query"]
    (chosen,) = [r for r in found["rows"] if r["way"] == "cascade" and r["budget"] == 5.0]
    assert chosen["right"] == pytest.approx(sum(r["correct"] for r in queries) / len(queries))
    assert chosen["cost"] == pytest.approx(sum(r["cost"] for r in queries) / len(queries))


@pytest.mark.parametrize(
    ("name", "knobs", "says"),
    [
        ("reasoning", {"models": "smollm2-135m+"}, "Name two or more models"),
        ("frugal-gpt", {"prices": "1:2"}, "price table"),
        ("frugal-gpt", {"prices": "a:b/c:d"}, "price table"),
        ("mot-cascade", {"models": "no-such-model+smollm2-135m"}, "no-such-model"),
        ("cascade-bert", {"kept": "9"}, "below 4"),
        ("tabi", {"kept": "2/1"}, "below 4"),
        ("answer-cache", {"models": "one"}, "Name two or more models"),
    ],
)
def test_what_cannot_work_is_refused(name: str, knobs: dict[str, str], says: str, folder: Path) -> None:
    smallest = {**SMALLEST[name], **knobs}
    with pytest.raises(Refused, match=says):
        make_study(name, **smallest).run(Subject(Lab(), Settings(str(folder), threads=1)))

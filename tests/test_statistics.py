"""Estimates, their verdicts, and what they are made of, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from llmlab.measure.statistics import Estimate, all_above, all_below, bootstrap, errors, every, folds, mean, paired


def test_a_verdict_takes_two_errors() -> None:
    assert [Estimate(x, 0.1).above() for x in (0.21, 0.19, 0.0, -0.19, -0.21)] == [True, None, None, None, False]
    assert [Estimate(x, 0.1).below(1.0) for x in (0.79, 0.81, 1.21)] == [True, None, False]
    assert Estimate(-0.008, 0.009).above(-0.01) is None, "0.8 ± 0.9 points lost, of one allowed, is undecided"
    assert Estimate(9.0).above() is None, "one value has no error"


def test_two_errors_of_few_values_are_more() -> None:
    """Student's t at the tail of two errors of a normal distribution, against tables."""
    assert errors() == pytest.approx(2.0)
    assert errors(1) == pytest.approx(13.97, abs=0.01)
    assert errors(2) == pytest.approx(4.527, abs=0.001)
    assert errors(10) == pytest.approx(2.28, abs=0.02)
    assert errors(math.inf, 10) == pytest.approx(2.836, abs=0.01)
    assert mean(torch.tensor([1.0, 1.2, 1.4])).above(0.8) is None, (
        "twice the error of three values, 0.23, is too little"
    )
    assert mean(torch.tensor([1.0, 1.2, 1.4])).above(0.6) is True


def test_every_and_all() -> None:
    assert [every(True, True), every(True, None), every(None, False), every()] == [True, None, False, True]
    clear, fluke, none = Estimate(1.0, 0.1), Estimate(-0.23, 0.1), Estimate(0.1, 0.1)
    assert all_above([clear, clear]) is True
    assert all_above([clear, none]) is None
    assert all_above([fluke]) is False
    assert all_above([fluke, *[clear] * 9]) is None, "one of ten is as low by chance"
    assert all_below([Estimate(-1.0, 0.1), Estimate(1.0, 0.1)]) is False


def test_means_and_pairs_by_hand() -> None:
    assert mean(torch.tensor([1.0, 3.0])) == Estimate(2.0, 1.0, 1)
    one, other = torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert paired(one, other) == Estimate(0.5, pytest.approx(math.sqrt(1 / 12)), 3)
    assert paired(one[:1], other[:1]).above() is None
    same = paired(torch.ones(20), torch.ones(20))
    assert (same.value, same.error) == (0.0, 1 / 20), "that none of twenty differ does not say that none will"
    assert same.above(-0.02) is None
    assert paired(torch.tensor([5.0, 5.0]), torch.tensor([3.0, 3.0])).error == 0


def test_a_bootstrap_of_a_mean_has_its_error() -> None:
    x = torch.randn(200, generator=torch.Generator().manual_seed(1))
    found = bootstrap(lambda at: float(x[at].mean()), len(x))
    assert found.value == pytest.approx(float(x.mean()))
    assert found.error == pytest.approx(mean(x).error, rel=0.15)
    assert bootstrap(lambda at: math.nan, 50).above() is None
    assert math.isinf(bootstrap(lambda at: 1.0, 1).error)


def test_folds_judge_each_thing_once_by_what_did_not_see_it() -> None:
    for n, k in ((10, 2), (7, 3)):
        parts = folds(n, k)
        assert sorted(i for _, judge in parts for i in judge.tolist()) == list(range(n))
        for choose, judge in parts:
            assert sorted([*choose.tolist(), *judge.tolist()]) == list(range(n))

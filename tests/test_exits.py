"""The exit rules and their calibration, by hand."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from torch import Tensor

from llmlab.errors import Refused
from llmlab.models.cached import MOST, cached_on, kept_with
from llmlab.techniques.drafting.draft_heads import Heads
from llmlab.techniques.early_exit import hash_tables, rules, thresholds
from llmlab.techniques.early_exit import heads as early_heads
from llmlab.techniques.early_exit.hash_tables import Hash
from llmlab.techniques.early_exit.rules import Entropy, Margin, MultiView, NormalisedEntropy, PastFuture, Patience
from llmlab.techniques.early_exit.rules import Probability as Top
from llmlab.techniques.early_exit.thresholds import Consistency
from tests import tiny

HALVES = [0.5, 0.25, 0.125, 0.125]
"""Entropy: ½ ln 2 + ¼ ln 4 + 2 · ⅛ ln 8 = 1.75 ln 2."""
SURE, FLAT = [1.0, 0.0, 0.0, 0.0], [0.25] * 4


def p(*classifiers: list[list[float]]) -> Tensor:
    """(l, N, C) from l lists of N distributions."""
    return torch.tensor(classifiers)


def one(*said: list[float]) -> Tensor:
    """(l, 1, C): what l classifiers said of one thing."""
    return torch.tensor(said)[:, None]


# Rules of one look --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Entropy, PastFuture])
def test_entropy(rule: type[Entropy]) -> None:
    h = 1.75 * math.log(2)
    said = p([HALVES, SURE, FLAT])
    assert rule(h + 1e-5).leaves(said).tolist() == [True, True, False]
    assert rule(h - 1e-5).leaves(said).tolist() == [False, True, False]
    assert rule(0.0).leaves(said).tolist() == [False, False, False]
    assert rule(1.0).score(said).tolist() == pytest.approx([-h, 0, -math.log(4)])


def test_normalised_entropy() -> None:
    """1.75 ln 2 / ln 4 = 0.875."""
    said = p([HALVES, SURE, FLAT])
    assert NormalisedEntropy(0.88).leaves(said).tolist() == [True, True, False]
    assert NormalisedEntropy(0.87).leaves(said).tolist() == [False, True, False]
    assert NormalisedEntropy(0.0).leaves(said).tolist() == [False, False, False]
    assert NormalisedEntropy(0.5).score(said).tolist() == pytest.approx([0.125, 1, 0], abs=1e-6)


def test_probability_and_margin() -> None:
    said = p([HALVES, SURE, FLAT])
    assert Top(0.49).leaves(said).tolist() == [True, True, False]
    assert Top(0.5).leaves(said).tolist() == [False, True, False]
    assert Margin(0.24).leaves(said).tolist() == [True, True, False]
    assert Margin(0.25).leaves(said).tolist() == [False, True, False]
    assert Top(1.0).leaves(said).tolist() == Margin(1.0).leaves(said).tolist() == [False, False, False]


def test_only_the_newest_classifier_counts() -> None:
    for rule in (Entropy(0.5), NormalisedEntropy(0.5), Top(0.9), Margin(0.9)):
        assert rule.leaves(one(FLAT, SURE)).tolist() == [True]
        assert rule.leaves(one(SURE, FLAT)).tolist() == [False]


def test_past_and_future_states_stand_in_order() -> None:
    past, imitated = torch.arange(12.0).view(2, 3, 2), 100 + torch.arange(6.0).view(1, 3, 2)
    both = rules.gathered(past, imitated)
    assert both.shape == (3, 3, 2)
    assert both[1].tolist() == [[2, 3], [8, 9], [102, 103]]


# Rules that remember ------------------------------------------------------------------------------------------------


def test_patience() -> None:
    a, b = [0.6, 0.4], [0.4, 0.6]
    counts = [0, 1, 0, 1, 2]
    said = [a, a, b, b, b]
    for n in range(1, 6):
        assert Patience(1).score(one(*said[:n])).tolist() == [counts[n - 1]]
    assert [Patience(2).leaves(one(*said[:n])).item() for n in range(1, 6)] == [False] * 4 + [True]
    assert Patience(1).leaves(p([a, a, b], [a, b, b], [b, b, b])).tolist() == [False, True, True]


def test_multi_view() -> None:
    """Halves of the logits: ½ ln (0.8, 0.2) + ½ ln (0.5, 0.5) is ln (√0.4, √0.1), which is (2, 1) / 3."""
    rule = MultiView(0.65, recent=0.5)
    said = one([0.8, 0.2], [0.5, 0.5])
    assert rule.together(said)[0].tolist() == pytest.approx([2 / 3, 1 / 3])
    h = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))  # 0.6365
    assert rule.score(said).item() == pytest.approx(-h)
    assert rule.leaves(said).tolist() == [True]
    assert MultiView(0.63).leaves(said).tolist() == [False]
    assert MultiView(0.1, recent=1.0).together(said)[0].tolist() == pytest.approx([0.5, 0.5])
    # Three classifiers: m = ¼ z₁ + ¼ z₂ + ½ z₃.
    m = torch.tensor([0.8, 0.2]).log() / 4 + torch.tensor([0.5, 0.5]).log() / 4 + torch.tensor([0.9, 0.1]).log() / 2
    assert torch.allclose(rule.together(one([0.8, 0.2], [0.5, 0.5], [0.9, 0.1]))[0], torch.softmax(m, -1))
    assert torch.isfinite(rule.together(one([1.0, 0.0], [0.5, 0.5]))).all()


def test_one_threshold_for_all_rules() -> None:
    """At θ = 0.4: more than 0.4, a lead of 0.4, less than 0.6 nats or six tenths of the most."""
    said = one(HALVES)
    assert {name: rules.named(name, 0.4, 2) for name in ("probability", "margin", "entropy", "speed", "patience")} == {
        "probability": Top(0.4),
        "margin": Margin(0.4),
        "entropy": Entropy(0.6),
        "speed": NormalisedEntropy(0.6),
        "patience": Patience(2),
    }
    assert rules.named("learned", 0.4, 2).leaves(torch.tensor([[[0.5], [0.3]]])).tolist() == [True, False]
    assert rules.named("margin", 0.2, 2).leaves(said).tolist() == [True]
    with pytest.raises(Refused, match="Did you mean entropy"):
        rules.named("entorpy", 0.4, 2)


# Rules that were fitted ---------------------------------------------------------------------------------------------


def test_features_of_a_meta_classifier() -> None:
    assert rules.features(one(HALVES))[0].tolist() == pytest.approx([0.5, 0.25, 0.125, 0, 1])
    two = rules.features(one(HALVES, FLAT, [0.1, 0.7, 0.1, 0.1]))[0].tolist()
    assert two[:2] == pytest.approx([0.7, 0.6])
    assert two[3:] == pytest.approx([0.25, 3])


def test_a_consistency_classifier_by_hand() -> None:
    rule = Consistency(0.6, (2.0, 0.0, 0.0, 0.0, -1.0), 0.5)
    score = 1 / (1 + math.exp(-(2 * 0.5 - 1 + 0.5)))  # 0.6225
    assert rule.score(one(HALVES)).item() == pytest.approx(score)
    assert rule.leaves(one(HALVES)).tolist() == [True]
    assert Consistency(0.63, rule.weights, rule.bias).leaves(one(HALVES)).tolist() == [False]


def test_a_consistency_classifier_learns_the_odds() -> None:
    """With one two-valued feature, logistic regression is the two log odds: 30 of 40 and 10 of 40 consistent."""
    x = torch.tensor([[1.0]] * 40 + [[0.0]] * 40)
    consistent = torch.tensor([True] * 30 + [False] * 10 + [True] * 10 + [False] * 30)
    rule = Consistency.fitted(x, consistent, ridge=0.0)
    assert rule.bias == pytest.approx(math.log(1 / 3))
    assert rule.weights[0] == pytest.approx(math.log(3) - math.log(1 / 3))
    # What can be told apart without error must not run away.
    assert math.isfinite(Consistency.fitted(x, torch.tensor([True] * 40 + [False] * 40)).weights[0])


# Hashes -------------------------------------------------------------------------------------------------------------


def test_hash() -> None:
    rule = Hash(torch.tensor([2, 4, 4, 3]))
    tokens = torch.tensor([0, 1, 3, 0])
    assert rule.at(tokens).tolist() == [2, 4, 3, 2]
    assert rule.leaves(1, tokens).tolist() == [False, False, False, False]
    assert rule.leaves(3, tokens).tolist() == [True, False, True, True]


def test_random_hash_is_balanced_and_the_same_every_time() -> None:
    a, b = hash_tables.random_hash(90, (2, 3, 4), seed=1), hash_tables.random_hash(90, (2, 3, 4), seed=1)
    assert torch.equal(a.layers, b.layers)
    assert not torch.equal(a.layers, hash_tables.random_hash(90, (2, 3, 4), seed=2).layers)
    assert torch.bincount(a.layers).tolist() == [0, 0, 30, 30, 30]


def test_frequency_hash() -> None:
    counts = torch.tensor([5, 0, 9, 1, 7])
    assert hash_tables.frequency_hash(counts, (2, 6)).layers.tolist() == [6, 6, 2, 6, 2]


def test_buckets_of_equal_mass() -> None:
    """Of 20, the first token holds 10: it fills the first of two buckets by itself."""
    mass = torch.tensor([10.0, 5.0, 3.0, 2.0])
    assert hash_tables.buckets(torch.tensor([0, 1, 2, 3]), (1, 2), mass).tolist() == [1, 2, 2, 2]
    assert hash_tables.buckets(torch.tensor([3, 1, 2, 0]), (1, 2)).tolist() == [2, 1, 2, 1]


def test_information_hash() -> None:
    """Token 0 goes with class 0 alone, token 1 with both alike, token 2 never occurs."""
    tokens, classes = torch.tensor([0, 0, 1, 1, 3, 3]), torch.tensor([0, 0, 0, 1, 1, 1])
    assert hash_tables.information_hash(tokens, classes, 4, (1, 5)).layers.tolist() == [1, 5, 5, 1]


def test_cluster_hash() -> None:
    """Two clouds; the one nearer the origin leaves first."""
    near, far = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)) * 0.1, torch.full((10, 8), 9.0)
    layers = hash_tables.cluster_hash(torch.cat([far, near]), (2, 7)).layers
    assert layers.tolist() == [7] * 10 + [2] * 20


# Calibration --------------------------------------------------------------------------------------------------------


def test_conformal_by_hand() -> None:
    """The worst inconsistent scores of nine examples are 0.1 … 0.9; ⌈10 · 0.8⌉ = 8, so the bar is 0.8."""
    worst = torch.arange(1, 10) / 10
    scores = torch.stack([worst, torch.full((9,), 0.95)])
    consistent = torch.tensor([[False], [True]]).expand(2, 9)
    assert thresholds.conformal(scores, consistent, 0.2) == pytest.approx(0.8)
    assert thresholds.conformal(scores, consistent, 0.1) == pytest.approx(0.9)
    assert thresholds.conformal(scores, consistent, 0.05) == math.inf
    assert thresholds.conformal(scores, torch.ones(2, 9, dtype=torch.bool), 0.1) == -math.inf
    # With (1 - ε)ⁿ = 0.8⁹ = 0.134: the largest is promised at δ = 0.2, nothing at δ = 0.1.
    assert thresholds.conformal(scores, consistent, 0.2, delta=0.2) == pytest.approx(0.9)
    assert thresholds.conformal(scores, consistent, 0.2, delta=0.1) == math.inf


def test_conformal_keeps_its_promise() -> None:
    """Over many calibration sets of noise, fresh examples go wrong at most ε of the time, and seldom with δ."""
    dice = torch.Generator().manual_seed(3)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        scores = torch.rand(3, n, generator=dice)
        return scores, torch.rand(3, n, generator=dice) < scores

    marginal, bad = [], 0
    for _ in range(200):
        cal, fresh = draw(100), draw(2000)
        marginal.append(thresholds.trade(*fresh, (1, 2, 3), 4, thresholds.conformal(*cal, 0.2))[0])
        bad += thresholds.trade(*fresh, (1, 2, 3), 4, thresholds.conformal(*cal, 0.2, delta=0.1))[0] < 0.8
    assert sum(marginal) / 200 >= 0.79
    assert bad / 200 <= 0.15
    assert min(marginal) < 0.8, "without δ, single calibration sets do fall short"


def test_what_a_bar_costs() -> None:
    scores = torch.tensor([[0.9, 0.2, 0.3], [0.1, 0.8, 0.3]])
    consistent = torch.tensor([[True, False, False], [False, False, True]])
    assert thresholds.first_exit(scores, 0.5).tolist() == [0, 1, 2]
    same, depth = thresholds.trade(scores, consistent, (10, 20), 30, 0.5)
    assert (same, depth) == (pytest.approx(2 / 3), pytest.approx(20))
    assert thresholds.trade(scores, consistent, (10, 20), 30, 1.0) == (1.0, 30.0)
    assert thresholds.at_agreement(scores, consistent, 1.0) == pytest.approx(0.8)
    assert thresholds.at_agreement(scores, consistent, 0.6) == pytest.approx(0.3)
    assert thresholds.at_agreement(scores, consistent, 0.3) == -math.inf


def test_what_is_made_for_a_model_goes_with_it() -> None:
    model = tiny.decoder("llama").private_copy()
    early_heads.exit_heads(model, tiny.tools(), "logit-lens", range(1, 4), 0, "")
    tiny.tools().part("heads", model, "", Heads)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_what_is_made_for_a_model_is_bounded() -> None:
    model = tiny.decoder("llama").private_copy()
    for key in range(MOST + 3):
        assert cached_on(model, key, lambda key=key: [key]) == [key]
    assert len(kept_with(model)) == MOST
    assert cached_on(model, MOST + 2, lambda: ["made anew"]) == [MOST + 2]
    assert cached_on(model, 0, lambda: ["made anew"]) == ["made anew"]

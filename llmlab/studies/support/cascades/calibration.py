"""How well a confidence knows itself: temperature, reliability, calibration error, area under ROC."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llmlab.measure.statistics import Estimate, bootstrap
from llmlab.studies.support.cascades.cascade import Level


def auc(score: Tensor, correct: Tensor) -> float | None:
    """The chance that a right answer has a higher score than a wrong one, ties counted half; None without both."""
    good, bad = score[correct].double(), score[~correct].double()
    if not len(good) or not len(bad):
        return None
    gap = good[:, None] - bad[None]
    return float(((gap > 0).double() + 0.5 * (gap == 0).double()).mean())


def ahead(one: Level, other: Level) -> Estimate | None:
    """How much larger the area under ROC of one level is than another's of the same sentences.

    None where all answers of one are right, or all wrong: it has no area.
    """

    def gap(at: Tensor) -> float:
        a, b = (auc(level.score[at], level.correct[at]) for level in (one, other))
        return math.nan if a is None or b is None else a - b

    found = bootstrap(gap, len(one.score))
    return found if math.isfinite(found.value) else None


def temperature(logits: Tensor, y: Tensor) -> float:
    """T for which softmax(logits / T) has the least cross-entropy; logits (n, C), y (n,).

    Guo et al. (arXiv 1706.04599, section 4.2). By golden section over log T, in which the loss has one valley.
    """
    z = logits.double()

    def loss(t: float) -> float:
        return float(torch.nn.functional.cross_entropy(z / math.exp(t), y))

    low, high, g = math.log(0.05), math.log(20.0), (math.sqrt(5) - 1) / 2
    for _ in range(60):
        a, b = high - g * (high - low), low + g * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return math.exp((low + high) / 2)


@dataclass(frozen=True)
class Bin:
    """Answers of like confidence: how sure they are on average, how often right, and how many."""

    confidence: float
    accuracy: float
    count: int


def reliability(confidence: Tensor, correct: Tensor, bins: int = 10) -> list[Bin]:
    """The reliability diagram: answers by confidence, in `bins` intervals of equal width; empty ones are left out."""
    place = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1
    found = []
    for b in place.unique().tolist():
        here = place == b
        found.append(
            Bin(float(confidence[here].double().mean()), float(correct[here].double().mean()), int(here.sum()))
        )
    return found


def ece(confidence: Tensor, correct: Tensor, bins: int = 10) -> float:
    """Expected calibration error: Σ_b (n_b / n) |accuracy_b - confidence_b| (arXiv 1706.04599, equation 3)."""
    found = reliability(confidence, correct, bins)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in found) / len(confidence)

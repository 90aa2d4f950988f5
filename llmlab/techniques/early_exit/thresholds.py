"""What makes a threshold of an exit rule from calibration data: fitted rules, conformal bounds, agreement."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llmlab.techniques.early_exit.rules import Rule, features


@dataclass(frozen=True)
class Consistency:
    """Leave when a small meta-classifier thinks that the full model would say the same.

    CATs (arXiv 2104.08803, section 4.2): here a logistic regression over `features`, without the hidden state and the
    class that the paper's small network sees as well; `threshold` comes from `conformal`.
    """

    threshold: float
    weights: tuple[float, ...]
    bias: float

    @classmethod
    def along(cls, p: Tensor, consistent: Tensor, threshold: float) -> Consistency:
        """Fitted on the answers of l classifiers, p (l, n, C), and whether each was consistent (l, n)."""
        x = torch.cat([features(p[:asked]) for asked in range(1, len(p) + 1)])
        return cls.fitted(x.cpu(), consistent.flatten().cpu(), threshold)

    @classmethod
    def fitted(cls, x: Tensor, consistent: Tensor, threshold: float = math.inf, ridge: float = 1e-3) -> Consistency:
        """From x (n, F) `features` and consistent (n,) bool, by Newton's method with a small ridge."""
        X = torch.cat([x, torch.ones(len(x), 1)], 1).double()
        y, w = consistent.double(), torch.zeros(X.shape[1], dtype=torch.double)
        for _ in range(50):
            q = torch.sigmoid(X @ w)
            gradient = X.t() @ (q - y) / len(X) + ridge * w
            hessian = (X * (q * (1 - q))[:, None]).t() @ X / len(X) + ridge * torch.eye(len(w), dtype=torch.double)
            step = torch.linalg.solve(hessian, gradient)
            w -= step * min(1.0, 4.0 / float(step.norm().clamp_min(1e-12)))  # far steps overshoot where q is flat
            if step.norm() < 1e-9:
                break
        return cls(threshold, tuple(w[:-1].tolist()), float(w[-1]))

    def score(self, p: Tensor) -> Tensor:
        x = features(p)
        return torch.sigmoid(x @ torch.tensor(self.weights, device=x.device) + self.bias)

    def leaves(self, p: Tensor) -> Tensor:
        return self.score(p) > self.threshold


@dataclass(frozen=True)
class Above:
    """A rule whose bar has been set from calibration data: leave where its score is above `bar`."""

    rule: Rule
    bar: float

    def score(self, p: Tensor) -> Tensor:
        return self.rule.score(p)

    def leaves(self, p: Tensor) -> Tensor:
        return self.rule.score(p) > self.bar


# Bars from calibration data -----------------------------------------------------------------------------------------


def conformal(scores: Tensor, consistent: Tensor, epsilon: float, delta: float | None = None) -> float:
    """The bar above which exiting keeps to the full model's answer with probability at least 1 - epsilon, of examples
    that are exchangeable with those calibrated on. Words of a text that earlier exits have written are not: there the
    bar is a choice by a measured rate, and what it keeps has to be measured (`python -m benchmarks.exits --own-text`).

    scores (l, n) and consistent (l, n) bool: for each of n calibration examples and each classifier, how sure the rule
    was, and whether its answer is the full model's. An example goes wrong under a bar only if one of its inconsistent
    scores lies above it, so its worst is the highest of those, and the bar is the ⌈(n + 1)(1 - epsilon)⌉-th smallest
    worst: CATs, shared calibration (arXiv 2104.08803, section 4.4). Infinite where n is too small to promise anything.

    That promise is about a new example and a new calibration set together. With `delta`, it holds with probability at
    least 1 - delta over calibration sets, each taken by itself: the bar's coverage is at least that of a Beta(k, n + 1
    - k) variable, and k is the smallest with P(Binomial(n, 1 - epsilon) >= k) <= delta (Vovk, arXiv 1209.2673).

    Examples that no classifier gets wrong count as worst -∞; the authors' program leaves them out, which is stricter.
    """
    n = scores.shape[1]
    worst = scores.double().masked_fill(consistent, -math.inf).amax(0).sort().values
    if delta is None:
        k = math.ceil((n + 1) * (1 - epsilon) - 1e-9)
    else:
        at_least = 1.0  # P(Binomial(n, 1 - epsilon) >= k)
        k = 0
        while k <= n and at_least > delta:
            at_least -= _binomial(n, k, 1 - epsilon)
            k += 1
    return float(worst[max(k, 1) - 1]) if k <= n else math.inf


def _binomial(n: int, k: int, p: float) -> float:
    """P(Binomial(n, p) = k)."""
    if p in (0.0, 1.0):
        return float(k == n * p)
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log + k * math.log(p) + (n - k) * math.log1p(-p))


def scores_of(rule: Rule, p: Tensor) -> Tensor:
    """p (l, n, C) to (l, n): the rule's score after each classifier in turn."""
    return torch.stack([rule.score(p[:asked]).float() for asked in range(1, len(p) + 1)])


def first_exit(scores: Tensor, bar: float) -> Tensor:
    """scores (l, n) to (n,): the first classifier whose score is above the bar, l where none is."""
    above = scores > bar
    return torch.where(above.any(0), above.int().argmax(0), len(scores))


def trade(scores: Tensor, consistent: Tensor, depths: tuple[int, ...], full: int, bar: float) -> tuple[float, float]:
    """(share that answers as the full model, mean layers) when everything leaves at the first score above `bar`.

    scores, consistent (l, n); depths: after how many of the `full` layers each classifier sits.
    """
    at = first_exit(scores, bar)
    same = torch.cat([consistent, torch.ones_like(consistent[:1])]).gather(0, at[None])[0]
    return float(same.double().mean()), float(torch.tensor([*depths, full])[at].double().mean())


TRIED = 400
"""Bars that `at_agreement` tries at most."""


def at_agreement(scores: Tensor, consistent: Tensor, least: float) -> float:
    """The lowest bar under which at least this share of the calibration examples answers as the full model.

    Measured, with no promise for others: `conformal` gives that. Bars are tried at the scores themselves.
    """
    depths = tuple(range(len(scores)))
    tried = scores.double().flatten().unique()
    if len(tried) > TRIED:
        tried = tried[torch.linspace(0, len(tried) - 1, TRIED).long()]
    bars: list[float] = [-math.inf, *tried.tolist()]
    for bar in bars:
        if trade(scores, consistent, depths, len(scores), bar)[0] >= least - 1e-9:
            return bar
    return math.inf

"""Cascades: levels of rising cost answer one after the other until an answer is trusted.

Every level's answers to all queries are at hand beforehand, with a score each, so that any thresholds can be tried for
nothing. Shapes: n queries, K levels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmlab.lab.study import Cell
from llmlab.techniques.early_exit.thresholds import Consistency

# Levels -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """What one level says of n queries: how much its answers are believed, whether they are right, what they cost."""

    name: str
    score: Tensor
    """(n,) grows with belief."""
    correct: Tensor
    """(n,) bool."""
    cost: Tensor
    """(n,), in whatever is paid."""

    @property
    def accuracy(self) -> float:
        return float(self.correct.double().mean())

    def part(self, index: Tensor) -> Level:
        """The same of some queries."""
        return Level(self.name, self.score[index], self.correct[index], self.cost[index])


@dataclass(frozen=True)
class Routed:
    """Who answered each query (its place among the levels), whether rightly, and the cost of all who were asked."""

    level: Tensor
    correct: Tensor
    cost: Tensor
    score: Tensor

    @property
    def accuracy(self) -> float:
        return float(self.correct.double().mean())

    @property
    def mean_cost(self) -> float:
        return float(self.cost.double().mean())

    def rows(self, levels: Sequence[Level]) -> Iterator[dict[str, Cell]]:
        """One row per query."""
        for i, k in enumerate(self.level.tolist()):
            yield {
                "query": i,
                "level": levels[k].name,
                "score": float(self.score[i]),
                "cost": float(self.cost[i]),
                "correct": bool(self.correct[i]),
            }


def answered(names: Sequence[str], level: Tensor, correct: Tensor, cost: Tensor) -> Iterator[dict[str, Cell]]:
    """Per level and whether its answers were right: how many, and at what mean cost. No row where there are none.

    `names` of the levels; per query (n,) which of them answered, whether rightly, and what all who were asked cost.
    """
    for k, name in enumerate(names):
        for right in (True, False):
            here = (level == k) & (correct == right)
            if count := int(here.sum()):
                yield {"level": name, "correct": right, "count": count, "cost": float(cost[here].double().mean())}


def route(levels: Sequence[Level], thresholds: Sequence[float]) -> Routed:
    """Each query goes to the first level whose score reaches its threshold; the last level takes what is left.

    K levels, K - 1 thresholds. Whoever is asked is paid.
    """
    if len(thresholds) != len(levels) - 1:
        raise ValueError(f"{len(levels)} levels want {len(levels) - 1} thresholds, not {len(thresholds)}")
    scores = torch.stack([level.score.double() for level in levels])
    bars = torch.tensor([*thresholds, -math.inf], dtype=torch.double)[:, None]
    at = (scores >= bars).int().argmax(0)
    costs = torch.stack([level.cost.double() for level in levels]).cumsum(0)
    correct = torch.stack([level.correct for level in levels])
    pick = at[None]
    return Routed(at, correct.gather(0, pick)[0], costs.gather(0, pick)[0], scores.gather(0, pick)[0])


def by_chance(weak: Level, strong: Level, share: float, cascade: bool = True) -> tuple[float, float]:
    """(mean cost, accuracy) when a random `share` of the queries goes to the strong level.

    With `cascade` the weak level has been paid for those as well.
    """
    a, b = float(weak.cost.double().mean()), float(strong.cost.double().mean())
    cost = a + share * b if cascade else (1 - share) * a + share * b
    return cost, (1 - share) * weak.accuracy + share * strong.accuracy


# Learning -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """An order of levels with its thresholds, and what it promises on the queries it was learned from."""

    order: tuple[int, ...]
    thresholds: tuple[float, ...]
    accuracy: float
    cost: float

    def run(self, levels: Sequence[Level]) -> Routed:
        return route([levels[k] for k in self.order], self.thresholds)


def plans(levels: Sequence[Level], most: int = 3, steps: int = 12) -> list[Plan]:
    """Every order of up to `most` levels with thresholds from a grid over each level's own scores.

    FrugalGPT (arXiv 2305.05176, section 3): the pair (L, τ) is chosen for accuracy under a budget; `best` chooses.
    Thresholds are quantiles of the scores of the queries that reach a level.
    """
    found = []
    for size in range(1, most + 1):
        for order in itertools.permutations(range(len(levels)), size):
            chosen = [levels[k] for k in order]
            grids = [_grid(level.score, steps) for level in chosen[:-1]]
            for thresholds in itertools.product(*grids):
                routed = route(chosen, thresholds)
                found.append(Plan(order, thresholds, routed.accuracy, routed.mean_cost))
    return found


def _grid(score: Tensor, steps: int) -> list[float]:
    places = torch.linspace(0, 1, steps + 1, dtype=torch.double)[1:]
    bars: list[float] = torch.quantile(score.double(), places).unique().tolist()
    return bars


def best(found: Sequence[Plan], budget: float) -> Plan | None:
    """The most accurate plan whose mean cost keeps to the budget, the cheaper of equals; None where none does."""
    able = [p for p in found if p.cost <= budget + 1e-12]
    return max(able, key=lambda p: (round(p.accuracy, 9), -p.cost, -len(p.order)), default=None)


@dataclass(frozen=True)
class Scorer:
    """The probability that an answer is right, by logistic regression on features (n, F) that it puts on one scale."""

    mean: Tensor
    deviation: Tensor
    rule: Consistency

    @classmethod
    def fitted(cls, x: Tensor, correct: Tensor, ridge: float = 0.02) -> Scorer:
        mean, deviation = x.mean(0), x.std(0).clamp_min(1e-6)
        return cls(mean, deviation, Consistency.fitted((x - mean) / deviation, correct, ridge=ridge))

    def __call__(self, x: Tensor) -> Tensor:
        z = ((x - self.mean) / self.deviation).clamp(-8, 8).double()
        return torch.sigmoid(z @ torch.tensor(self.rule.weights, dtype=torch.double) + self.rule.bias)

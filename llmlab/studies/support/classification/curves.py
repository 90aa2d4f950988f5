"""Curves of accuracy against cost: their front, a point on them, and how far one lies above another.

Shapes: S settings of a method, n sentences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from llmlab.measure.statistics import Estimate, bootstrap


@dataclass(frozen=True)
class Curve:
    """A method's settings on the same sentences: what each costs (S, n), and 1 where its answer is right (S, n)."""

    cost: Tensor
    right: Tensor

    def points(self, at: Tensor | None = None) -> list[tuple[float, float]]:
        """(mean cost, accuracy) per setting, over the sentences `at` (indices), or all."""
        cost, right = (x if at is None else x[:, at] for x in (self.cost.double(), self.right.double()))
        return list(zip(cost.mean(1).tolist(), right.mean(1).tolist(), strict=True))

    def with_point(self, cost: Tensor, right: Tensor) -> Curve:
        """One more setting, (n,) each."""
        return Curve(torch.cat([self.cost, cost[None]]), torch.cat([self.right, right[None]]))

    def only(self, settings: Sequence[int], sentences: Tensor) -> Curve:
        """Some of the settings on some of the sentences."""
        return Curve(self.cost[list(settings)][:, sentences], self.right[list(settings)][:, sentences])


def at_most(curve: Sequence[tuple[float, float]], loss: float, full: float) -> int | None:
    """The index of the cheapest point of a (cost, accuracy) curve that is at most `loss` below `full`; None: none."""
    able = [i for i, (_, accuracy) in enumerate(curve) if accuracy >= full - loss - 1e-9]
    return min(able, key=lambda i: curve[i][0], default=None)


def between(curve: Sequence[tuple[float, float]], cost: float) -> float | None:
    """The accuracy of a (cost, accuracy) curve at a cost, on a straight line between neighbours; None outside."""
    points = sorted(curve)
    for (a, x), (b, y) in pairwise(points):
        if a <= cost <= b:
            return max(x, y) if a == b else x + (y - x) * (cost - a) / (b - a)
    return None


def lead(one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]], steps: int = 50) -> float | None:
    """How much more accurate one curve is than another at equal cost, on average over the costs that both have."""
    low = max(min(c for c, _ in one), min(c for c, _ in other))
    high = min(max(c for c, _ in one), max(c for c, _ in other))
    if high <= low:
        return None
    costs = [low + (high - low) * i / steps for i in range(steps + 1)]
    pairs = [(between(one, c), between(other, c)) for c in costs]
    gaps = [a - b for a, b in pairs if a is not None and b is not None]
    return sum(gaps) / len(gaps) if gaps else None


def led(one: Curve, other: Curve) -> Estimate | None:
    """`lead` of settings that nothing chose, with its error over the sentences; None without a cost in common."""

    def gap(at: Tensor) -> float:
        found = lead(one.points(at), other.points(at))
        return math.nan if found is None else found

    found = bootstrap(gap, one.cost.shape[1])
    return found if math.isfinite(found.value) else None


def front(curve: Curve) -> list[int]:
    """The settings of a curve that no cheaper one beats, cheapest first."""
    points, best, found = curve.points(), -1.0, []
    for i in sorted(range(len(points)), key=points.__getitem__):
        if points[i][1] > best:
            best = points[i][1]
            found.append(i)
    return found

"""Curves of accuracy against cost: their front, a point on them, and how far one lies above another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


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


def best_points(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, accuracy) points that no cheaper one beats."""
    best, found = -1.0, []
    for cost, accuracy in sorted(points):
        if accuracy > best:
            best = accuracy
            found.append((cost, accuracy))
    return found

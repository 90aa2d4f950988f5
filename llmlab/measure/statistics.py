"""The statistics of every comparison: pairs in turn, medians, quartiles, spread, standard errors, verdicts.

A verdict takes two standard errors, on data that chose nothing; a difference inside them is undecided, which is None.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ERRORS = 2.0
"""Standard errors that a verdict takes."""


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error, in the value's unit; an infinite error means that there is too little to tell."""

    value: float
    error: float = math.inf

    def above(self, bound: float = 0.0) -> bool | None:
        """Whether the true value is above `bound`: told where the estimate is two errors away from it, else None."""
        if self.value - ERRORS * self.error > bound:
            return True
        return False if self.value + ERRORS * self.error < bound else None

    def below(self, bound: float = 0.0) -> bool | None:
        """Whether the true value is below `bound`; None as in `above`."""
        return Estimate(-self.value, self.error).above(-bound)

    def points(self) -> str:
        """A difference between shares and its standard error, in percentage points."""
        return f"{100 * self.value:+.1f} ± {100 * self.error:.1f} points"


def mean(values: Tensor) -> Estimate:
    """The mean of independent values (n,) and its standard error."""
    values = values.double()
    return Estimate(float(values.mean()), float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.inf)


def paired(one: Tensor, other: Tensor) -> Estimate:
    """The mean difference of two outcomes (n,) of the same things."""
    return mean(one.double() - other.double())


def bootstrap(statistic: Callable[[Tensor], float], n: int, seed: int = 0, times: int = 400) -> Estimate:
    """`statistic` of all n things, and its standard error over resamples of them.

    `statistic` takes indices (n,) of things, with repetitions, so that all that belongs to one thing stays together:
    both sides of a pair, or every threshold's answer to one sentence. Efron, Tibshirani: An Introduction to the
    Bootstrap, 1993, chapter 6. Resamples for which it is not finite are left out.
    """
    rng = torch.Generator().manual_seed(seed)
    found = [statistic(torch.randint(n, (n,), generator=rng)) for _ in range(times)] if n > 1 else []
    finite = [x for x in found if math.isfinite(x)]
    error = statistics.stdev(finite) if len(finite) > times // 2 else math.inf
    return Estimate(statistic(torch.arange(n)), error)


def folds(n: int, k: int = 2, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """For cross-fitting: k times (indices to choose on, indices to judge on), each of n things judged exactly once."""
    parts = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).chunk(k)
    return [(torch.cat([p for j, p in enumerate(parts) if j != i]), parts[i]) for i in range(len(parts))]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third quartile; a single value is both."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least this share of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)]


def spread(values: Sequence[float]) -> float:
    """How far apart rounds of the same thing lie, as a share of their median: no comparison can be finer than that."""
    return (max(values) - min(values)) / statistics.median(values)


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Round by round, what two contestants that took turns are to each other. Raises ValueError for unequal lengths."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def paired_difference(one: Tensor, other: Tensor) -> tuple[float, float]:
    """(mean difference, its standard error) of two outcomes (n,) of the same things; the error of one pair is 0."""
    d = one.double() - other.double()
    return float(d.mean()), float(d.std() / len(d) ** 0.5) if len(d) > 1 else 0.0


def share_error(share: float, count: int) -> float:
    """The standard error of a share found in `count` independent trials."""
    return math.sqrt(share * (1 - share) / count)


def clearly_above(difference: float, error: float) -> bool | None:
    """Whether a difference is above zero by twice its standard error; None where it is above, and not so clearly."""
    if difference <= 0:
        return False
    return True if difference > 2 * error else None


def at_most_lost(gain: float, error: float, loss: float) -> bool | None:
    """Whether a share fell by at most `loss`; None where it fell by more, but within a standard error of it."""
    return True if gain >= -loss else None if gain + error >= -loss else False


def points(gain: float, error: float) -> str:
    """A difference between shares and its standard error, in percentage points."""
    return f"{100 * gain:+.1f} ± {100 * error:.1f} points"


def in_blocks(parts: Sequence[Tensor], size: int) -> Estimate:
    """The mean of values that follow one another in time, as a text's tokens do, and its standard error.

    Neighbours resemble each other, so blocks of `size` of them count as one draw each; a block never spans two of the
    `parts`, each (n,). Künsch: The Jackknife and the Bootstrap for General Stationary Observations, 1989.
    """
    whole = torch.cat([p.double() for p in parts])
    blocks = [b for p in parts for b in p.double().split(size)]
    value = float(whole.mean())
    if len(blocks) < 2:
        return Estimate(value)
    off = torch.stack([(b - value).sum() for b in blocks])
    return Estimate(value, float(off.square().sum().sqrt()) / len(whole) * math.sqrt(len(blocks) / (len(blocks) - 1)))

"""The statistics of every comparison: pairs in turn, medians, quartiles, standard errors, verdicts.

A verdict takes two standard errors, on data that chose nothing; a difference inside them is undecided, which is None.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

ERRORS = 2.0
"""Standard errors that a verdict takes; more where few values gave the error, or one of many tests may be a fluke."""
ALIKE = 0.02
"""Shares of right answers that differ by less count as the same."""


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error, in the value's unit; an infinite error means that there is too little to tell.

    `freedom`: of the error, in degrees; two errors of few values are made as rare as two of many (Student 1908).
    """

    value: float
    error: float = math.inf
    freedom: float = math.inf

    def above(self, bound: float = 0.0, tests: int = 1) -> bool | None:
        """Whether the true value is above `bound`: told where the estimate is two errors away from it, else None.

        `tests`: the estimates of which this one is looked at because of its value (Bonferroni's correction).
        """
        if math.isinf(self.error):
            return None
        slack = errors(self.freedom, tests) * self.error
        return True if self.value - slack > bound else False if self.value + slack < bound else None

    def below(self, bound: float = 0.0, tests: int = 1) -> bool | None:
        """Whether the true value is below `bound`; None as in `above`."""
        return replace(self, value=-self.value).above(-bound, tests)

    def points(self) -> str:
        """A difference between shares and its standard error, in percentage points."""
        return f"{100 * self.value:+.1f} ± {100 * self.error:.1f} points"


def errors(freedom: float = math.inf, tests: int = 1) -> float:
    """How many standard errors are as rare as `ERRORS` of a normal distribution, by Student's t of this freedom.

    Exact for one and two degrees, by Cornish and Fisher's expansion above (Abramowitz, Stegun, 26.7.5). Where one of
    several `tests` is looked at, its tail is divided among them.
    """
    normal = statistics.NormalDist()
    p = normal.cdf(-ERRORS) / tests
    if freedom <= 1:
        return math.tan(math.pi * (0.5 - p))
    if freedom <= 2:
        return (1 - 2 * p) / math.sqrt(2 * p * (1 - p))
    z = -normal.inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**i for i, term in enumerate(terms, 1))


def every(*verdicts: bool | None) -> bool | None:
    """Whether all of several things hold: not where one does not, undecided (None) where one of the rest is."""
    return False if False in verdicts else None if None in verdicts else True


def all_above(found: Sequence[Estimate], bound: float = 0.0) -> bool | None:
    """Whether every one of several true values is above `bound`.

    That each is takes two errors of each; that one is not, as many as the least of so many estimates takes.
    """
    if any(e.above(bound, len(found)) is False for e in found):
        return False
    return True if all(e.above(bound) for e in found) else None


def all_below(found: Sequence[Estimate], bound: float = 0.0) -> bool | None:
    """Whether every one of several true values is below `bound`, as `all_above`."""
    return all_above([replace(e, value=-e.value) for e in found], -bound)


def mean(values: Tensor) -> Estimate:
    """The mean of independent values (n,) and its standard error."""
    values, n = values.double(), len(values)
    return Estimate(float(values.mean()), float(values.std() / n**0.5), n - 1) if n > 1 else Estimate(float(values))


def paired(one: Tensor, other: Tensor) -> Estimate:
    """The mean difference of two outcomes (n,) of the same things.

    Of outcomes that are 0 or 1 the error is at least 1 / n: that none of n pairs differ does not say that none will.
    """
    d = one.double() - other.double()
    found = mean(d)
    return replace(found, error=max(found.error, 1 / len(d))) if set(d.unique().tolist()) <= {-1.0, 0.0, 1.0} else found


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
    return Estimate(statistic(torch.arange(n)), error, n - 1)


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


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Round by round, what two contestants that took turns are to each other. Raises ValueError for unequal lengths."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


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
    error = float(off.square().sum().sqrt()) / len(whole) * math.sqrt(len(blocks) / (len(blocks) - 1))
    return Estimate(value, error, len(blocks) - 1)

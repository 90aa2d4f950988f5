"""The statistics of every comparison: pairs in turn, medians, quartiles, spread, standard errors, verdicts.

A difference inside its error is called none: the functions that judge return None there.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from torch import Tensor


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

"""The one judgement of an A/B: speed, memory and quality weighed together, for the page, the account and the commands.

Nobody else decides a colour or a word: what says "better" anywhere reads it here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from llmlab.measure.pairs import LEAST, Pairs, first_pair
from llmlab.measure.quality import RATIO
from llmlab.measure.statistics import Estimate
from llmlab.measure.trace import comparison, lanes, ledger, quality
from llmlab.runtime.events import Event, Started

NOTABLE = 0.02
"""Share of the baseline's bytes that must come or go for memory to count."""
NO_LOSS = 0.02
"""Share by which perplexity may be higher and count as no loss where the text does not show that there is none."""
UNTOUCHED = 1e-5
"""Nats of mean KL on a run's own text below which nothing acted there: rounding, of passes of other widths."""

Word = Literal["better", "worse", "trade", "none", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """`verdict`: "better" (a gain that costs nothing), "worse" (a cost that brings nothing), "trade" (both), "none"
    (neither) or "undecided".

    `speed`: faster, slower, none (inside the spread) or undecided (too few pairs). `memory`: less, more, none.
    `quality`: same, lost (perplexity higher by two standard errors), later (lost on longer texts, where nothing acted
    in this run), changed (another text; no loss shown), or unknown.
    """

    verdict: Word
    speed: str
    memory: str
    quality: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def judge(
    pairs: Pairs | None, before: int, after: int, found: Mapping[str, Any], lossless: bool, sampled: bool = False
) -> Verdict:
    """The verdict on a stack by paired speeds, bytes of weights and cache and what `quality.measured` says.

    `lossless`: whether the stack promises the baseline's tokens; `sampled`: whether tokens were drawn, so that another
    text says nothing.
    """
    speed = _speed(pairs)
    change = after / before - 1 if before else 0.0
    memory = "less" if change < -NOTABLE else "more" if change > NOTABLE else "none"
    kept = _quality(found, lossless, sampled)
    gains = speed == "faster" or memory == "less"
    # What did not act in this run could not gain anything either: a loss elsewhere alone does not make the run worse.
    costs = speed == "slower" or kept in ("lost", "changed") or memory == "more"
    word: Word
    if gains and (costs or kept == "later"):
        word = "trade"
    elif speed == "undecided" or (kept == "unknown" and gains):
        word = "undecided"
    else:
        word = "better" if gains else "worse" if costs else "none"
    return Verdict(word, speed, memory, kept)


def _speed(pairs: Pairs | None) -> str:
    if pairs is None or len(pairs) < LEAST:
        return "undecided"
    return {True: "faster", False: "slower", None: "none"}[pairs.faster]


def _quality(found: Mapping[str, Any], lossless: bool, sampled: bool) -> str:
    same = found.get("identical") is True
    if lossless:
        return "same" if same or sampled else "changed"
    ratio = _ratio(found)
    if ratio is not None and ratio.above(1.0):
        kl = found.get("kl_mean")
        return "later" if same and isinstance(kl, int | float) and kl < UNTOUCHED else "lost"
    if not same and not sampled:
        return "changed"
    if ratio is None:
        return "unknown"
    return "same" if same or ratio.below(1 + NO_LOSS) else "unknown"


def _ratio(found: Mapping[str, Any]) -> Estimate | None:
    """The ratio of perplexities; None where it was not measured, or without its error."""
    ratio, error, freedom = (found.get(name) for name in RATIO)
    if not isinstance(ratio, int | float) or not isinstance(error, int | float):
        return None
    return Estimate(ratio, error, freedom if isinstance(freedom, int) and freedom > 0 else math.inf)


def total_bytes(events: Sequence[Event]) -> int:
    """Bytes that a run held at its most: the total that page and account show."""
    return int(ledger(events)["memory_bytes_peak"])


def pairs_of(events: Sequence[Event]) -> Pairs | None:
    """The pairs of a trace; the one that it shows where none were measured apart; None without two lanes."""
    compared = comparison(events)
    return (Pairs.from_json(compared.pairs) if compared else None) or first_pair(lanes(events))


def verdict_of(events: Sequence[Event]) -> Verdict | None:
    """The verdict on a trace of two lanes, made anew from what it holds; None of one lane, or where runs broke off."""
    runs, found = lanes(events), quality(events)
    if found is None or not {"baseline", "stack"} <= set(runs):
        return None
    started = next(e for e in runs["stack"] if isinstance(e, Started))
    before, after = total_bytes(runs["baseline"]), total_bytes(runs["stack"])
    return judge(pairs_of(events), before, after, found, started.lossless, bool(started.settings.get("temperature")))

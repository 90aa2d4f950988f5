"""The one judgement of an A/B: speed, memory and quality weighed together, for the page, the account and the commands.

Nobody else decides a colour or a word: what says "better" anywhere reads it here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from llmlab.measure.pairs import LEAST, Pairs, first_pair
from llmlab.measure.statistics import Estimate
from llmlab.measure.trace import lanes, ledger, quality
from llmlab.runtime.events import Compared, Event, Started

NOTABLE = 0.02
"""Share of the baseline's bytes that must come or go for memory to count."""

Word = Literal["better", "worse", "trade", "none", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """`verdict`: "better" (a gain that costs nothing), "worse" (a cost that brings nothing), "trade" (both), "none"
    (neither) or "undecided".

    `speed`: faster, slower, none (inside the spread) or undecided (too few pairs). `memory`: less, more, none.
    `quality`: same, lost (perplexity higher by two standard errors), changed (another text; no loss shown), or unknown.
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
    # A drafter's own bytes are what its speed costs; they alone do not turn a gain in speed into a trade.
    gains = speed == "faster" or memory == "less"
    costs = speed == "slower" or kept in ("lost", "changed") or (memory == "more" and speed != "faster")
    word: Word
    if gains and costs:
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
    ratio, error = found.get("perplexity_ratio"), found.get("perplexity_ratio_error")
    measured = isinstance(ratio, int | float) and isinstance(error, int | float)
    if isinstance(ratio, int | float) and isinstance(error, int | float) and Estimate(ratio, error).above(1.0):
        return "lost"
    if not same and not sampled:
        return "changed"
    return "same" if measured else "unknown"


def total_bytes(events: Sequence[Event]) -> int:
    """Bytes of a run's weights and of its keys and values at their most."""
    found = ledger(events)
    return int(found["weight_bytes"] + found["kv_bytes_peak"])


def pairs_of(events: Sequence[Event]) -> Pairs | None:
    """The pairs of a trace; the one that it shows where none were measured apart; None without two lanes."""
    compared = _compared(events)
    return (Pairs.from_json(compared.pairs) if compared else None) or first_pair(lanes(events))


def verdict_of(events: Sequence[Event]) -> Verdict | None:
    """The verdict on a trace of two lanes, made anew from what it holds; None of one lane, or where runs broke off."""
    runs, found = lanes(events), quality(events)
    if found is None or not {"baseline", "stack"} <= set(runs):
        return None
    started = next(e for e in runs["stack"] if isinstance(e, Started))
    before, after = total_bytes(runs["baseline"]), total_bytes(runs["stack"])
    return judge(pairs_of(events), before, after, found, started.lossless, bool(started.settings.get("temperature")))


def _compared(events: Sequence[Event]) -> Compared | None:
    return next((e for e in reversed(events) if isinstance(e, Compared)), None)

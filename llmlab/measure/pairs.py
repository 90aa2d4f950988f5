"""Baseline and stack in turn, several times: how much faster one is, and how far apart runs of the same thing lie."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmlab.measure.statistics import mean, ratios
from llmlab.runtime.events import Committed, Event, Prefilled, Started

LANES = ("baseline", "stack")
LEAST, MOST = 3, 5
"""Pairs that tell a difference from the spread, and pairs that are run where time allows."""
SECONDS, PATIENCE = 8.0, 30.0
"""What the further pairs may take together: beyond `LEAST` pairs, and up to them."""
SHORTEST = 16
"""New tokens in a run of a pair, at least, where the run has as many."""


@dataclass(frozen=True)
class Pairs:
    """Decoding speeds in tokens/s over the first `tokens` new tokens, of runs that took turns."""

    baseline: tuple[float, ...]
    stack: tuple[float, ...]
    tokens: int

    def __len__(self) -> int:
        return len(self.baseline)

    @property
    def ratios(self) -> list[float]:
        """Pair by pair, the stack's speed over the baseline's."""
        return ratios(self.stack, self.baseline)

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest of the ratios."""
        return min(self.ratios), max(self.ratios)

    @property
    def faster(self) -> bool | None:
        """Whether the stack is faster: told where the slowest run of one was faster than the fastest of the other, in
        at least `LEAST` pairs, and the mean of the ratios' logarithms is two errors from 0; None inside the spread, or
        of fewer."""
        if len(self) < LEAST:
            return None
        told = mean(torch.tensor([math.log(r) for r in self.ratios], dtype=torch.float64)).above()
        if min(self.stack) > max(self.baseline):
            return True if told is True else None
        return False if max(self.stack) < min(self.baseline) and told is False else None

    def to_json(self) -> dict[str, Any]:
        low, high = self.spread
        told = {"baseline": list(self.baseline), "stack": list(self.stack), "tokens": self.tokens}
        return {**told, "ratio": self.ratio, "low": low, "high": high}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Pairs | None:
        """The inverse; None for what is no list of pairs: a stranger's trace may hold anything."""
        sides = [value.get(lane) for lane in LANES]
        speeds = [s for side in sides if isinstance(side, list) for s in side]
        if not all(isinstance(s, int | float) and not isinstance(s, bool) and 0 < s < 1e9 for s in speeds):
            return None
        if not speeds or not all(isinstance(side, list) and 2 * len(side) == len(speeds) for side in sides):
            return None
        tokens = value.get("tokens")
        half = len(speeds) // 2
        return cls(tuple(speeds[:half]), tuple(speeds[half:]), tokens if isinstance(tokens, int) else 0)


def decode_speed(events: Sequence[Event], most: int | None = None) -> float:
    """Tokens/s of a run's first `most` new tokens (of all by default), after the prompt; 0 where it decoded nothing."""
    read = next((e.t for e in reversed(events) if isinstance(e, Started | Prefilled)), 0.0)
    tokens, last = 0, read
    for e in events:
        if isinstance(e, Committed):
            tokens, last = tokens + len(e.tokens), e.t
            if most is not None and tokens >= most:
                break
    return tokens / (last - read) if last > read else 0.0


def first_pair(runs: Mapping[str, Sequence[Event]], most: int | None = None) -> Pairs | None:
    """The pair that a trace shows, over its first `most` new tokens; None where a lane decoded nothing."""
    speeds = [decode_speed(runs.get(lane, ()), most) for lane in LANES]
    return Pairs((speeds[0],), (speeds[1],), most or 0) if all(speeds) else None


def length_of(runs: Mapping[str, Sequence[Event]]) -> int:
    """New tokens per run of further pairs, so that `LEAST` pairs take `SECONDS` where that is possible, or else
    `PATIENCE`; 0 where even short ones would take longer."""
    produced = min(sum(len(e.tokens) for e in runs[lane] if isinstance(e, Committed)) for lane in LANES)
    reading, each = 0.0, 0.0
    for lane in LANES:
        read = max([e.t for e in runs[lane] if isinstance(e, Prefilled)], default=0.0)
        speed = decode_speed(runs[lane])
        if not speed:
            return 0
        reading, each = reading + read, each + 1 / speed
    room = SECONDS / (LEAST - 1) - reading
    tokens = min(produced, max(SHORTEST, int(room / each)))
    return tokens if (LEAST - 1) * (reading + tokens * each) <= PATIENCE else 0

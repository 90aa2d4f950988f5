"""Load for a server, the same for whatever is compared, and what its users saw of it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from llmlab.assets import ASSETS
from llmlab.lab.study import Subject
from llmlab.measure.statistics import percentile
from llmlab.serving.scheduler import Request
from llmlab.serving.server import Pass

LONGEST = 600
"""Characters of the project's own prompts that serve as requests: longer ones would turn load into reading."""


def poisson(count: int, rate: float, seed: int) -> list[float]:
    """When `count` requests arrive at `rate` a second, each on its own: sums of exponential gaps."""
    gaps = torch.empty(count, dtype=torch.float64).exponential_(rate, generator=torch.Generator().manual_seed(seed))
    return gaps.cumsum(0).tolist()


def prompts(subject: Subject, count: int) -> list[list[int]]:
    """The project's own prompts in a seeded order, over and over, in the model's chat form where it has one."""
    texts = json.loads((ASSETS / "texts" / "prompts.json").read_text(encoding="utf-8"))
    texts = [t["prompt"] for t in texts if len(t["prompt"]) <= LONGEST]
    each = [subject.lab.tokens(subject.loaded, replace(subject.settings, prompt=t)) for t in texts]
    order = torch.randperm(len(each), generator=torch.Generator().manual_seed(subject.settings.seed)).tolist()
    return [each[order[i % len(order)]] for i in range(count)]


@dataclass
class Served:
    """A load carried out once: the passes it took, and the requests with their texts and times."""

    passes: list[Pass]
    requests: list[Request]

    @property
    def span(self) -> float:
        """Seconds from the first arrival to the last token."""
        return self.passes[-1].now - min(r.arrival for r in self.requests)

    @property
    def throughput(self) -> float:
        """Tokens a second over that time."""
        return sum(len(r.text) for r in self.requests) / self.span

    @property
    def latencies(self) -> list[float]:
        """Per request, seconds from its arrival to its last token."""
        return [r.times[-1] - r.arrival for r in self.requests]

    @property
    def latency(self) -> float:
        return statistics.fmean(self.latencies)

    @property
    def waits(self) -> list[float]:
        """Per token but each request's first, seconds since the one before; tokens of one pass share its wait."""
        found = []
        for r in self.requests:
            for before, now in pairwise(sorted(set(r.times))):
                n = r.times.count(now)
                found += [(now - before) / n] * n
        return found


HEADINGS = {
    "throughput": "tokens/s",
    "busy": "busy",
    "latency": "latency, mean s",
    "latency_p50": "median s",
    "latency_p99": "99th percentile s",
    "first": "first token, mean s",
    "token": "per token, mean ms",
    "token_p50": "median ms",
    "token_p99": "99th percentile ms",
    "rows": "rows per pass",
    "drafted": "guesses",
    "wasted": "wasted",
}
"""What `figures` gives, with the words for it."""


def figures(rounds: Sequence[Served]) -> dict[str, float]:
    """Rounds of the same load: medians of throughput and latency, quantiles over what all rounds saw, means of counts.

    `busy` is the share of the time in which a pass ran; `rows` counts a decoding pass's next tokens and guesses.
    """
    latencies = [x for r in rounds for x in r.latencies]
    waits = [1e3 * x for r in rounds for x in r.waits] or [0.0]
    decoding = [p for r in rounds for p in r.passes if p.mandatory]
    drafted, accepted = sum(p.drafted for p in decoding), sum(p.accepted for p in decoding)
    values = (
        statistics.median(r.throughput for r in rounds),
        statistics.median(sum(p.seconds for p in r.passes) / r.span for r in rounds),
        statistics.median(r.latency for r in rounds),
        percentile(latencies, 0.5),
        percentile(latencies, 0.99),
        statistics.fmean(request.times[0] - request.arrival for r in rounds for request in r.requests),
        statistics.fmean(waits),
        percentile(waits, 0.5),
        percentile(waits, 0.99),
        statistics.fmean(p.mandatory + p.drafted for p in decoding),
        drafted / len(rounds),
        (drafted - accepted) / len(rounds),
    )
    return dict(zip(HEADINGS, values, strict=True))

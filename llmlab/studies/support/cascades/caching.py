"""Answers kept for those who ask again: which to keep, which model answers the others, and what that costs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from llmlab.errors import Refused

POLICIES = ("lru", "lfu", "lec")


def zipf(count: int, skew: float) -> list[float]:
    """Probabilities of `count` queries: the k-th is asked in proportion to k^-skew; 0 asks all alike."""
    weights = [k**-skew for k in range(1, count + 1)]
    total = sum(weights)
    return [w / total for w in weights]


def stream(chances: Sequence[float], length: int, seed: int) -> list[int]:
    """`length` queries, each drawn by its chance."""
    return random.Random(seed).choices(range(len(chances)), chances, k=length)


@dataclass
class Known:
    """What has been seen of each query: how often and when it was asked last, and what each model cost for it."""

    guess: Callable[[int, int], float] | None = None
    """A predicted cost of (query, model) for what has never been paid; without one, 0: whatever is new is tried."""
    asked: dict[int, int] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)
    paid: dict[tuple[int, int], float] = field(default_factory=dict)
    times: dict[tuple[int, int], int] = field(default_factory=dict)

    def see(self, query: int, now: int) -> None:
        self.asked[query] = self.asked.get(query, 0) + 1
        self.last[query] = now

    def pay(self, query: int, model: int, cost: float) -> None:
        key = (query, model)
        self.paid[key] = self.paid.get(key, 0.0) + cost
        self.times[key] = self.times.get(key, 0) + 1

    def cost(self, query: int, model: int) -> float:
        """The mean of what was paid, the guess before anything was."""
        key = (query, model)
        if key in self.times:
            return self.paid[key] / self.times[key]
        return self.guess(query, model) if self.guess else 0.0

    def expected(self, query: int, models: Sequence[int]) -> float:
        """What the query would cost if asked again: the least of the models that may be chosen, of those paid."""
        paid = [self.cost(query, m) for m in models if (query, m) in self.times]
        return min(paid) if paid else min(self.cost(query, m) for m in models)


def worth(policy: str, known: Known, query: int, models: Sequence[int]) -> tuple[float, float]:
    """What is kept longest is worth most; of equals the one asked last. Only its first part is the policy's.

    "lru": when it was asked last. "lfu": how often it was asked. "lec": estimated frequency times estimated cost, of
    which the least expected cost goes (arXiv 2306.02003, section 3); counts stand for frequencies.
    """
    last = float(known.last[query])
    if policy == "lru":
        return last, last
    often = float(known.asked[query])
    return (often if policy == "lfu" else often * known.expected(query, models)), last


@dataclass(frozen=True)
class Outcome:
    """A stream served: mean cost per query, share of hits, and of queries answered with another query's answer."""

    cost: float
    hits: float
    wrong: float
    chosen: tuple[float, ...]
    """Share of the misses that each model answered."""


def serve(
    queries: Sequence[int],
    costs: Sequence[Sequence[float]],
    size: int,
    policy: str,
    models: Sequence[int],
    guess: Callable[[int, int], float] | None = None,
    find: Callable[[int, Sequence[int]], int | None] | None = None,
    right: Callable[[int, int], bool] | None = None,
    looking: float = 0.0,
) -> Outcome:
    """Serve a stream with a cache of `size` answers; `costs[query][model]`.

    `models`: one, or several between which the multiplexer chooses. `find(query, kept)` names the kept query whose
    answer is given, exact keys by default; `right(query, found)` says whether that was the answer wanted. `looking` is
    paid for every query. A new answer is kept only where it is worth more than the least of those kept.
    Raises Refused for an unknown policy.
    """
    if policy not in POLICIES:
        raise Refused("The cache", f"has no policy {policy[:20]!r}", f"Choose {', '.join(POLICIES)}")
    known, kept = Known(guess), list[int]()
    total, hits, wrong = 0.0, 0, 0
    chosen = [0] * len(costs[0])
    for now, query in enumerate(queries):
        known.see(query, now)
        total += looking
        found = (query if query in kept else None) if find is None else find(query, kept)
        if found is not None:
            hits += 1
            wrong += right is not None and not right(query, found)
            if found != query:
                known.see(found, now)
            continue
        model = min(models, key=partial(known.cost, query))
        known.pay(query, model, costs[query][model])
        total += costs[query][model]
        chosen[model] += 1
        if not size:
            continue
        kept.append(query)
        if len(kept) > size:
            kept.remove(min(kept, key=lambda q: worth(policy, known, q, models)))
    n, misses = len(queries), max(1, sum(chosen))
    return Outcome(total / n, hits / n, wrong / n, tuple(c / misses for c in chosen))


def ideal(chances: Sequence[float], costs: Sequence[float], size: int) -> float:
    """Mean cost of the best fixed cache: it keeps the `size` queries with the greatest chance times cost."""
    expected = sorted((p * c for p, c in zip(chances, costs, strict=True)), reverse=True)
    return sum(expected[size:])

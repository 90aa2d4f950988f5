"""Sentences through the levels, one at a time, and the time that each took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmlab.lab.study import Subject
from llmlab.measure.statistics import percentile
from llmlab.runtime.clock import Clock
from llmlab.studies.support.tabi.levels import Rank
from llmlab.studies.support.tabi.pruning import pruned, read, words_of

LAPS = 3


@dataclass(frozen=True)
class Answer:
    """What the level that answered says (C,), that mixed with what came before it, which one it was, the tokens it
    read, and the FLOPs of all who were asked."""

    own: Tensor
    mixed: Tensor
    level: int
    tokens: int
    flops: float


def serve(ranks: Sequence[Rank], thresholds: Sequence[float], i: int, prune: float, weights: Sequence[float]) -> Answer:
    """Test sentence i through the levels."""
    ids, asked = ranks[0].t.ids["test"][i], ranks[0].t.asked
    total, mixed = 0.0, torch.empty(0)
    for k, r in enumerate(ranks):
        if r.t.ids["test"][i] != ranks[0].t.ids["test"][i]:
            ids = r.t.ids["test"][i]  # another vocabulary: what was pruned cannot be carried over
        last = k == len(ranks) - 1
        h, given = read(r.t.model, ids, r.layers, prune > 0 and not last)
        total += r.cost(len(ids))
        own = r.says(h)
        mixed = weights[k - 1] * mixed + (1 - weights[k - 1]) * own if k else own
        if last or float(own.max()) >= thresholds[k]:
            return Answer(own, mixed, k, len(ids), total)
        if given is not None:
            ids = pruned(ids, words_of(r.tokenizer.convert_ids_to_tokens(ids)), given, prune, asked)
    raise AssertionError("the last level always answers")


@dataclass
class Served:
    """What a way of serving did to each test sentence; `mixed`: whether the mixed answer was right."""

    right: list[bool] = field(default_factory=list)
    mixed: list[bool] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    level: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)


def timed(subject: Subject, ways: dict[str, Callable[[int], Answer]], y: Tensor) -> dict[str, Served]:
    """Every way on every sentence, in turn and in changing order, after a round that does not count."""
    served = {way: Served() for way in ways}
    clock, order = Clock(subject.model.device), list(ways)
    for way in order:
        ways[way](0)
    for i in range(len(y)):
        subject.progress("Serving sentences", i, len(y))
        laps: dict[str, list[float]] = {way: [] for way in ways}
        for lap in range(LAPS):
            turn = (i + lap) % len(order)
            for way in order[turn:] + order[:turn]:
                start = clock()
                answer = ways[way](i)
                laps[way].append(clock() - start)
                if not lap:
                    s = served[way]
                    s.right.append(int(answer.own.argmax()) == int(y[i]))
                    s.mixed.append(int(answer.mixed.argmax()) == int(y[i]))
                    s.level.append(answer.level)
                    s.tokens.append(answer.tokens)
                    s.flops.append(answer.flops)
        for way in ways:
            served[way].seconds.append(percentile(laps[way], 0.5))
    return served

"""Magic Pyramid: early exits on the states that dropping left, so that one pass gives every pair of settings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import partial
from itertools import starmap
from typing import Any

import torch
from torch import Tensor

from llmlab.lab.study import Claim
from llmlab.measure.statistics import Estimate, all_above, bootstrap, folds
from llmlab.studies.support.classification.classify import Task, run_exits
from llmlab.studies.support.classification.curves import Curve, front, lead
from llmlab.studies.support.token_drop.outcomes import DropSetting, Results, row_of
from llmlab.techniques.early_exit.rules import Entropy

Points = Sequence[tuple[float, float]]
Surface = dict[str, Curve]
"""Exits alone ("exit"), dropping alone ("drop") and "both", each with every setting, GFLOP against right answers."""

UNSURE = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
"""Entropies below which sentences exit, as shares of the highest; 0: never."""


def halves_of(t: Task) -> dict[str, Tensor]:
    """(n,) bool for all test sentences, the shorter half and the longer one."""
    lengths = t.lengths("test")
    middle = lengths.median()
    return {"all": torch.ones(len(lengths), dtype=torch.bool), "short": lengths <= middle, "long": lengths > middle}


def surface(t: Task, r: Results) -> tuple[list[dict[str, Any]], Surface]:
    """Every dropping setting under every exit threshold, from the passes that have been made."""
    most, y = math.log(len(t.labels)), t.y["test"]
    rows: list[dict[str, Any]] = []
    found: dict[str, list[tuple[Tensor, Tensor]]] = {"exit": [], "drop": [], "both": []}
    for setting, out, judge in zip(r.settings, r.outs, r.judges, strict=True):
        p = torch.softmax(judge.logits(out.x), -1)
        for unsure in UNSURE:
            exits = run_exits(Entropy(unsure * most), p, range(1, t.layers + 1))
            cost = out.cost(t, exits.layers.tolist())
            right = (exits.labels == y).double()
            kind = "both" if setting.plan and unsure else "drop" if setting.plan else "exit"
            found[kind].append((cost.double() / 1e9, right))
            if unsure:
                name = "Magic Pyramid, exits too" if setting.plan else "Exits alone"
                tried = DropSetting(name, f"{setting.value} and {unsure:g}", {})
                row = row_of(t, tried, out, right, r.full, False)
                row["gflops"], row["saved"] = float(cost.mean()) / 1e9, 1 - float(cost.sum() / r.whole.sum())
                counts = [sum(c[:l]) for c, l in zip(out.counts, exits.layers.tolist(), strict=True)]
                rows.append({**row, "layer_tokens": statistics.fmean(counts)})
    return rows, {kind: Curve(*map(torch.stack, zip(*each, strict=True))) for kind, each in found.items()}


def gap(both: Curve, other: Curve, full: tuple[Tensor, Tensor]) -> Estimate | None:
    """How far the best settings of both lie above the best of one alone, at equal FLOPs; `full`: neither, on both.

    Which settings are best is chosen on one half of the sentences and judged on the other, and the other way round.
    None without a cost in common.
    """
    n = both.cost.shape[1]
    most = max(cost for c in (both, other) for cost, _ in c.with_point(*full).points())
    pairs: list[tuple[Tensor, Curve, Curve]] = []
    for choose, judge in folds(n):
        one, rest = (c.with_point(*full) for c in (both, other))
        one, rest = (c.only(front(c.only(range(len(c.cost)), choose)), torch.arange(n)) for c in (one, rest))
        pairs.append((judge, one, rest))

    def led(at: Tensor) -> float:
        total = 0.0
        for judge, one, rest in pairs:
            here = at[torch.isin(at, judge)]
            if len(here):
                found = lead(_up_to(most, one.points(here)), _up_to(most, rest.points(here)))
                total += math.nan if found is None else found * len(here) / len(at)
        return total

    found = bootstrap(led, n)
    return found if math.isfinite(found.value) else None


def _up_to(most: float, points: Points) -> Points:
    """A front (cost, accuracy) that ends at this cost: who may spend more than the best setting costs need not."""
    cost, accuracy = max(points)
    return [*points, (max(most, cost), accuracy)]


def together(t: Task, found: Surface) -> list[Claim]:
    """Whether exits and dropping together beat each alone, on all, short and long sentences."""
    return list(starmap(partial(_beats, found), halves_of(t).items()))


def _beats(found: Surface, half: str, at: Tensor) -> Claim:
    where = torch.nonzero(at).flatten()
    here = {kind: c.only(range(len(c.cost)), where) for kind, c in found.items()}
    full = here["exit"].cost[0], here["exit"].right[0]
    gaps = [gap(here["both"], here[other], full) for other in ("exit", "drop")]
    told = ", ".join(
        f"{g.points()} against {n} alone" if g is not None else f"no cost in common with {n} alone"
        for g, n in zip(gaps, ("exits", "dropping"), strict=True)
    )
    able = [g for g in gaps if g is not None]
    return Claim(
        "Magic Pyramid, arXiv 2111.00230",
        f"Leaving early and dropping words together beat each alone ({half} sentences).",
        all_above(able) if able else None,
        f"at equal FLOPs, the best settings of each on other sentences: {told}",
        testable=bool(able),
    )

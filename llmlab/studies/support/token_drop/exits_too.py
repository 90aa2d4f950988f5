"""Magic Pyramid: early exits on the states that dropping left, so that one pass gives every pair of settings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llmlab.lab.study import Claim
from llmlab.studies.support.classification.classify import Task, run_exits
from llmlab.studies.support.classification.curves import best_points, lead
from llmlab.studies.support.token_drop.outcomes import DropSetting, Results, row_of
from llmlab.techniques.early_exit.rules import Entropy

Points = dict[str, list[tuple[float, float]]]

UNSURE = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
"""Entropies below which sentences exit, as shares of the highest; 0: never."""


def halves_of(t: Task) -> dict[str, Tensor]:
    """(n,) bool for all test sentences, the shorter half and the longer one."""
    lengths = t.lengths("test")
    middle = lengths.median()
    return {"all": torch.ones(len(lengths), dtype=torch.bool), "short": lengths <= middle, "long": lengths > middle}


def surface(t: Task, r: Results) -> tuple[list[dict[str, Any]], dict[str, Points]]:
    """Every dropping setting under every exit threshold, from the passes that have been made.

    Returns rows, and per half of the sentences the (GFLOP, accuracy) points of exits alone ("exit"), dropping alone
    ("drop") and "both".
    """
    most, y, halves = math.log(len(t.labels)), t.y["test"], halves_of(t)
    rows: list[dict[str, Any]] = []
    points: dict[str, Points] = {k: {"exit": [], "drop": [], "both": []} for k in halves}
    for setting, out, judge in zip(r.settings, r.outs, r.judges, strict=True):
        p = torch.softmax(judge.logits(out.x), -1)
        for unsure in UNSURE:
            exits = run_exits(Entropy(unsure * most), p, range(1, t.layers + 1))
            cost = out.cost(t, exits.layers.tolist())
            right = (exits.labels == y).double()
            kind = "both" if setting.plan and unsure else "drop" if setting.plan else "exit"
            for half, at in halves.items():
                points[half][kind].append((float(cost[at].mean()) / 1e9, float(right[at].mean())))
            if unsure:
                name = "Magic Pyramid, exits too" if setting.plan else "Exits alone"
                tried = DropSetting(name, f"{setting.value} and {unsure:g}", {})
                row = row_of(t, tried, out, right, r.full, False)
                row["gflops"], row["saved"] = float(cost.mean()) / 1e9, 1 - float(cost.mean()) / r.whole
                counts = [sum(c[:l]) for c, l in zip(out.counts, exits.layers.tolist(), strict=True)]
                rows.append({**row, "layer_tokens": statistics.fmean(counts)})
    return rows, points


def together(points: Mapping[str, Points]) -> list[Claim]:
    """Whether exits and dropping together beat each alone, on all, short and long sentences."""
    claims = []
    for half, found in points.items():
        full = [found["exit"][0]]
        both = best_points([*found["both"], *full])
        gaps = [lead(both, best_points([*found[other], *full])) for other in ("exit", "drop")]
        told = ", ".join(
            f"{100 * g:+.1f} points against {n} alone" if g is not None else f"no cost in common with {n} alone"
            for g, n in zip(gaps, ("exits", "dropping"), strict=True)
        )
        able = [g for g in gaps if g is not None]
        claims.append(
            Claim(
                "Magic Pyramid, arXiv 2111.00230",
                f"Leaving early and dropping words together beat each alone ({half} sentences).",
                all(g > 0 for g in able) if able else None,
                f"at equal FLOPs, best settings of each: {told}",
            )
        )
    return claims

"""CATs' promise: does an early answer agree with the full model's as often as conformal calibration says?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from llmlab.lab.study import Claim
from llmlab.studies.support.exit_rules.methods import PROMISES, ExitMethod
from llmlab.techniques.early_exit import thresholds

DRAWS = 200
"""Times that calibration and test sentences are dealt anew to see a promise kept."""


def promises(method: ExitMethod) -> Iterator[dict[str, Any]]:
    """Per ε: agreement on fresh sentences and layers, over many deals of the sentences that no classifier has seen."""
    scores, same = method.p["scores"], method.p["same"]
    n = scores.shape[1]
    depths, full = tuple(method.depths[:-1]), method.depths[-1]
    for epsilon in PROMISES:
        rng = torch.Generator().manual_seed(0)
        kept = []
        for _ in range(DRAWS):
            order = torch.randperm(n, generator=rng)
            cal, fresh = order[: n // 2], order[n // 2 :]
            bar = thresholds.conformal(scores[:, cal], same[:, cal], epsilon)
            kept.append(thresholds.trade(scores[:, fresh], same[:, fresh], depths, full, bar))
        share, layers = torch.tensor(kept).mean(0).tolist()
        yield {
            "method": method.name,
            "epsilon": epsilon,
            "kept": share,
            "promised": 1 - epsilon,
            "kept_layers": layers,
        }


def guarantee(rows: Sequence[dict[str, Any]], method: ExitMethod) -> Claim:
    n = method.p["scores"].shape[1] // 2
    slack = [math.sqrt(r["epsilon"] * (1 - r["epsilon"]) * 2 / n / DRAWS) for r in rows]
    held = [r["kept"] >= r["promised"] - 2 * s for r, s in zip(rows, slack, strict=True)]
    told = "; ".join(f"ε = {r['epsilon']:g}: {r['kept']:.1%} in {r['kept_layers']:.1f} layers" for r in rows)
    return Claim(
        "CATs, arXiv 2104.08803",
        "Early answers agree with the full model's with at least the promised probability 1 − ε.",
        all(held),
        f"{told}; means over {DRAWS} deals of {n} sentences to calibrate on and {n} fresh ones",
    )

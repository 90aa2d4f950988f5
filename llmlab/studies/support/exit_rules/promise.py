"""CATs' promise: does an early answer agree with the full model's as often as conformal calibration says?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from llmlab.lab.study import Claim
from llmlab.measure.statistics import Estimate, all_above, mean
from llmlab.studies.support.exit_rules.methods import PROMISES, ExitMethod
from llmlab.techniques.early_exit import thresholds

DRAWS = 800
"""Times that calibration and test sentences are dealt anew to see a promise kept."""
EXACT = 0.001
"""A promise that is kept to within this share is kept: what is promised is often exactly what is found."""


def promises(method: ExitMethod) -> Iterator[tuple[dict[str, Any], Estimate]]:
    """Per ε: a row with agreement on fresh sentences and layers, over many deals of the sentences that no classifier
    has seen, and that agreement as an estimate."""
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
        shares, layers = torch.tensor(kept, dtype=torch.double).unbind(1)
        row = {
            "method": method.name,
            "epsilon": epsilon,
            "kept": float(shares.mean()),
            "promised": 1 - epsilon,
            "kept_layers": float(layers.mean()),
        }
        yield row, mean(shares)


def guarantee(kept: Sequence[tuple[dict[str, Any], Estimate]], method: ExitMethod) -> Claim:
    """Whether the promise holds for every ε. Deals of the same sentences are alike in what the promise assumes, that
    those to calibrate on and fresh ones can change places; the error is that of so many deals."""
    n = method.p["scores"].shape[1] // 2
    told = "; ".join(
        f"ε = {r['epsilon']:g}: {r['kept']:.2%} ± {e.error:.2%} in {r['kept_layers']:.1f} layers" for r, e in kept
    )
    return Claim(
        "CATs, arXiv 2104.08803",
        "Early answers agree with the full model's with at least the promised probability 1 − ε.",
        all_above([replace(e, value=e.value - r["promised"]) for r, e in kept], -EXACT),
        f"{told}; means over {DRAWS} deals of {n} sentences to calibrate on and {n} fresh ones",
    )

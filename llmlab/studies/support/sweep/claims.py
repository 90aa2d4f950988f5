"""What Leviathan et al. (arXiv 2211.17192) say of drafts, against what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmlab.lab.study import Claim
from llmlab.measure.statistics import all_above, all_below, bootstrap, every
from llmlab.studies.support.sweep.drafts import HALVES, Chains

CLOSE = 0.1
"""How far, as a share, a formula may be from what was measured and still be called confirmed."""
WHERE = "arXiv 2211.17192"
COROLLARY = "If a > c, some length speeds up decoding, by at least (1 + a) / (1 + c)."
NONE = "no technique in this sweep drafts chains of one fixed length"


def compared(source: str, claim: str, chains: Sequence[Chains], what: str, more: str = "", none: str = NONE) -> Claim:
    """Whether what was measured stays within `CLOSE` of a formula, at every length; `none`: why there are no chains."""
    if not chains:
        return Claim(source, claim, None, none, testable=False)
    found = [c.estimate(what) for c in chains]
    told = "; ".join(
        f"{c.technique} g={c.g}: {e.value:.3f} ± {e.error:.3f}" for c, e in zip(chains, found, strict=True)
    )
    holds = every(all_above(found, 1 - CLOSE), all_below(found, 1 + CLOSE))
    halves = f"measured over the formula, which has a and c from every second pass: {told}; close is {CLOSE:.0%}"
    return Claim(source, claim, holds, halves + more)


def corollary(chains: Sequence[Chains]) -> list[Claim]:
    """Corollary 3.9, for each drafter that was measured with g = 1 and an acceptance above its cost.

    Which length is fastest is chosen on one half of the passes and judged on the other.
    """
    able = [c for c in chains if c.g == 1 and c.estimate("lead").above()]
    where = f"{WHERE}, corollary 3.9"
    if not able:
        why = NONE if not chains else "no drafter was measured with g = 1 and an acceptance clearly above its cost"
        return [Claim(where, COROLLARY, None, why, testable=False)]
    found = []
    for one in able:
        rest = [c for c in chains if c.technique == one.technique]
        best = [_fastest(rest, 1 - judged) for judged in HALVES]

        def ratio(at: Tensor, one: Chains = one, best: Sequence[Chains] = best) -> float:
            bounds = [(1 + one.a(1 - j, at)) / (1 + one.c(1 - j, at)) for j in HALVES]
            return sum(best[j].speed(j, at) / bounds[j] for j in HALVES) / len(HALVES)

        e = bootstrap(ratio, len(one.runs))
        lengths = " and ".join(dict.fromkeys(f"g={c.g}" for c in best))
        evidence = (
            f"{one.technique}: a − c = {one.estimate('lead').value:.2f}; fastest on other passes, {lengths}: "
            f"{e.value:.2f} ± {e.error:.2f} times what is promised"
        )
        found.append(Claim(where, COROLLARY, e.above(1 - CLOSE), evidence))
    return found


def _fastest(chains: Sequence[Chains], half: int) -> Chains:
    speeds = [c.speed(half, torch.arange(len(c.runs))) for c in chains]
    return max(zip(speeds, chains, strict=True), key=lambda x: x[0] if math.isfinite(x[0]) else 0.0)[1]


def claims(rows: Sequence[dict[str, Any]], chains: Sequence[Chains], weights: str) -> list[Claim]:
    """The paper's claims over a sweep's rows, made with weights of this format; `chains` are the rows that drafted
    chains of one length."""
    exact = [r for r in rows if r["lossless"] and r["knob"]]
    costs = ", ".join(f"{r['pass_cost']:.2f} for g={r['g']}" for r in rows if "expected_tokens" in r)
    passes = f". A pass with a draft took, in plain passes: {costs}; the theorem takes it as 1" if costs else ""
    equal = [r for r in exact if r["same_text"] == 1]
    told = f"{len(equal)} of {len(exact)} lossless settings wrote every text as the baseline did, in {weights}"
    same = len(equal) == len(exact) if exact else None
    return [
        compared(
            f"{WHERE}, equation 1",
            "Tokens per pass are (1 − a^(g+1)) / (1 − a).",
            [c for c in chains if c.tells],
            "tokens_ratio",
            none=f"every token that was tested was {'accepted' if chains[0].accepts else 'rejected'}, where any drafts "
            "keep to it"
            if chains
            else NONE,
        ),
        compared(
            f"{WHERE}, theorem 3.8",
            "The speed-up is (1 − a^(g+1)) / ((1 − a)(g c + 1)).",
            chains,
            "speed_ratio",
            passes,
        ),
        *corollary(chains),
        Claim(
            WHERE,
            "Drafts change nothing about what is written.",
            same,  # an exact statement: one counterexample refutes it, and there is no error to wait for
            told if exact else "nothing lossless was tried",
            testable=bool(exact),
        ),
    ]

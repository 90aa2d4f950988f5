"""What Leviathan et al. (arXiv 2211.17192) say of drafts, against what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmlab.lab.study import Claim

CLOSE = 0.1
"""How far, as a share, a formula may be from what was measured and still be called confirmed."""
WHERE = "arXiv 2211.17192"
COROLLARY = "If a > c, some length speeds up decoding, by at least (1 + a) / (1 + c)."
NONE = "no technique in this sweep drafts chains of one fixed length"


def compared(fixed: Sequence[dict[str, Any]], measured: str, formula: str) -> tuple[bool | None, str]:
    """Whether a measured column stays within `CLOSE` of its formula, and that in words."""
    if not fixed:
        return None, NONE
    pairs = [f"{r['technique']} g={r['g']}: {r[measured]:.2f} measured, {r[formula]:.2f} by the formula" for r in fixed]
    worst = max(abs(r[measured] / r[formula] - 1) for r in fixed)
    return worst <= CLOSE, f"{'; '.join(pairs)}; at most {worst:.1%} apart"


def corollary(fixed: Sequence[dict[str, Any]]) -> list[Claim]:
    """Corollary 3.9, for each drafter that was measured with g = 1 and an acceptance above its cost."""
    able = {r["technique"]: r for r in fixed if r["g"] == 1 and r["acceptance"] > r["c"]}
    where = f"{WHERE}, corollary 3.9"
    if not able:
        why = NONE if not fixed else "no drafter was measured with g = 1 and an acceptance above its cost"
        return [Claim(where, COROLLARY, None, why)]
    found = []
    for name, r in able.items():
        best = max(x["speedup"] for x in fixed if x["technique"] == name)
        bound = (1 + r["acceptance"]) / (1 + r["c"])
        evidence = (
            f"{name}: a = {r['acceptance']:.2f}, c = {r['c']:.2f}; best speed-up {best:.2f}, promised {bound:.2f}"
        )
        found.append(Claim(where, COROLLARY, best >= bound * (1 - CLOSE), evidence))
    return found


def claims(rows: Sequence[dict[str, Any]], weights: str) -> list[Claim]:
    """The paper's claims over a sweep's rows, made with weights of this format."""
    fixed = [r for r in rows if "expected_tokens" in r]
    exact = [r for r in rows if r["lossless"] and r["knob"]]
    tokens, speed = compared(fixed, "tokens_pass", "expected_tokens"), compared(fixed, "speedup", "expected_speedup")
    if fixed:
        costs = ", ".join(f"{r['pass_cost']:.2f} for g={r['g']}" for r in fixed)
        speed = (speed[0], f"{speed[1]}. A pass with a draft took, in plain passes: {costs}; the theorem takes it as 1")
    equal = [r for r in exact if r["same_text"] == 1]
    told = f"{len(equal)} of {len(exact)} lossless settings wrote every text as the baseline did, in {weights}"
    same = len(equal) == len(exact) if exact else None
    return [
        Claim(f"{WHERE}, equation 1", "Tokens per pass are (1 − a^(g+1)) / (1 − a).", *tokens),
        Claim(f"{WHERE}, theorem 3.8", "The speed-up is (1 − a^(g+1)) / ((1 − a)(g c + 1)).", *speed),
        *corollary(fixed),
        Claim(
            WHERE, "Drafts change nothing about what is written.", same, told if exact else "nothing lossless was tried"
        ),
    ]

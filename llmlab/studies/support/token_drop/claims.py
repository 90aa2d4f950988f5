"""What the papers claim, and what the test sentences say to it."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from llmlab.lab.study import Claim
from llmlab.studies.support.classification.curves import lead
from llmlab.studies.support.token_drop.bench import Bench
from llmlab.studies.support.token_drop.methods import Learned
from llmlab.studies.support.token_drop.outcomes import DropSetting, Results
from llmlab.studies.support.token_drop.views import likeness


def _compared(source: str, claim: str, r: Results, one: str, other: str) -> Claim:
    """Whether one curve lies above another at equal FLOPs."""
    gap = lead(r.curve(one), r.curve(other))
    evidence = "the two have no cost in common"
    if gap is not None:
        evidence = f"{one} against {other}: {100 * gap:+.1f} points on average over the costs that both reach"
    return Claim(source, claim, None if gap is None else gap > 0, evidence)


def of_power_bert(loss: float, b: Bench, learned: Learned, r: Results, pick: DropSetting | None) -> list[Claim]:
    where = "PoWER-BERT, arXiv 2001.08950"
    alike = [row["cosine"] for row in likeness(b)]
    return [
        Claim(
            f"{where}, section 3",
            "Word vectors grow more alike with depth, so that many can go.",
            alike[-1] > alike[0],
            f"mean cosine between two words of a sentence: {alike[0]:.2f} after layer 1, "
            f"{alike[len(alike) // 2]:.2f} in the middle, {alike[-1]:.2f} before the last",
        ),
        Claim(
            where,
            "Up to 4.5 times less inference time with less than 1 % loss of accuracy.",
            r.saves(pick, 1 - 1 / 4.5, loss),
            r.told(pick) + "; the model was not fine-tuned after dropping, as the paper's is",
        ),
        _compared(
            where,
            "A learned schedule is better than an even one.",
            r,
            "PoWER-BERT",
            "Attention, even schedule",
        ),
        _compared(where, "Attention tells which words matter.", r, "PoWER-BERT", "Chance, same schedule"),
    ]


def of_tr_bert(loss: float, b: Bench, learned: Learned, r: Results, pick: DropSetting | None) -> list[Claim]:
    where = "TR-BERT, arXiv 2105.11618"
    curve = learned.rewards
    third = max(1, len(curve) // 3)
    first, last = statistics.fmean(curve[:third]), statistics.fmean(curve[-third:])
    return [
        Claim(
            where,
            "Rewards teach the policy which words to keep.",
            last > first,
            f"mean reward {first:.3f} in the first {third} rounds and {last:.3f} in the last",
        ),
        _compared(where, "The policy beats attention.", r, "TR-BERT", "Attention at the same layers"),
        _compared(where, "The policy beats chance.", r, "TR-BERT", "Chance at the same layers"),
        Claim(
            where,
            "2 to 5 times faster with little loss.",
            r.saves(pick, 0.5, loss),
            r.told(pick),
        ),
    ]


def of_adapler(loss: float, b: Bench, learned: Learned, r: Results, pick: DropSetting | None) -> list[Claim]:
    where = "AdapLeR, arXiv 2203.08991"
    outs = [o for w, o in zip(r.settings, r.outs, strict=True) if w is pick]
    shares = [sum(c) / (len(c) * c[0]) for o in outs for c in o.counts]
    spread = f"; sentences keep {min(shares):.0%} to {max(shares):.0%} of tokens × layers" if shares else ""
    return [
        Claim(
            where,
            "A small net can tell from a state what gradient × input would say.",
            learned.agreement > 0.3,
            f"rank correlation {learned.agreement:.2f} on sentences that it has not seen",
        ),
        _compared(
            where,
            "Letting each input keep as many words as it needs beats a fixed share.",
            r,
            "AdapLeR",
            "Contribution, fixed share",
        ),
        Claim(
            where,
            "Much faster with little loss of accuracy (up to 22 times).",
            r.saves(pick, 0.5, loss),
            r.told(pick) + spread,
        ),
    ]


def of_fused(loss: float, b: Bench, learned: Learned, r: Results, pick: DropSetting | None) -> list[Claim]:
    return [
        _compared(
            "MPEE, aclanthology 2022.coling-1.414",
            "Fusing the words that leave is better than discarding them.",
            r,
            "MPEE, fused",
            "MPEE, discarded",
        )
    ]


CLAIMS: dict[str, Callable[[float, Bench, Learned, Results, DropSetting | None], list[Claim]]] = {
    "power-bert": of_power_bert,
    "tr-bert": of_tr_bert,
    "adapler": of_adapler,
    "mpee": of_fused,
}

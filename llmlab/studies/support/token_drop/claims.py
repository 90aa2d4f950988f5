"""What the papers claim, and what the test sentences say to it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from llmlab.lab.study import Claim
from llmlab.measure.statistics import mean, paired
from llmlab.studies.support.classification.curves import led
from llmlab.studies.support.token_drop.bench import Bench
from llmlab.studies.support.token_drop.methods import IMITATED, Learned
from llmlab.studies.support.token_drop.outcomes import DropSetting, Results
from llmlab.studies.support.token_drop.views import likeness

TELLS = 0.3
"""The rank correlation above which one thing tells another."""


def _compared(source: str, claim: str, r: Results, one: str, other: str) -> Claim:
    """Whether one curve lies above another at equal FLOPs; every setting that was tried is on them."""
    gap = led(r.curve(one), r.curve(other))
    if gap is None:
        return Claim(source, claim, None, f"{one} and {other} have no cost in common", testable=False)
    evidence = f"{one} against {other}: {gap.points()} on average over the costs that both reach"
    return Claim(source, claim, gap.above(), evidence)


def of_power_bert(loss: float, b: Bench, learned: Learned, r: Results, pick: DropSetting) -> list[Claim]:
    where = "PoWER-BERT, arXiv 2001.08950"
    found = likeness(b)
    alike = found.mean(1).tolist()
    grown = paired(found[-1], found[0])
    return [
        Claim(
            f"{where}, section 3",
            "Word vectors grow more alike with depth, so that many can go.",
            grown.above(),
            f"mean cosine between two words of a sentence: {alike[0]:.2f} after layer 1, "
            f"{alike[len(alike) // 2]:.2f} in the middle, {alike[-1]:.2f} before the last, ± {grown.error:.2f}",
        ),
        r.saving(
            where,
            "Up to 4.5 times less inference time with less than 1 % loss of accuracy.",
            pick,
            1 - 1 / 4.5,
            loss,
            "; the model was not fine-tuned after dropping, as the paper's is",
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


def of_tr_bert(loss: float, b: Bench, learned: Learned, r: Results, pick: DropSetting) -> list[Claim]:
    where = "TR-BERT, arXiv 2105.11618"
    assert learned.reward is not None
    after, before = (
        learned.reward(r.outs[next(i for i in r.of(name) if r.settings[i].value == IMITATED)])
        for name in ("TR-BERT", "TR-BERT, only imitated")
    )
    gain = paired(after, before)
    return [
        Claim(
            where,
            "Rewards teach the policy which words to keep.",
            gain.above(),
            f"mean reward on test sentences {float(before.mean()):.3f} before and {float(after.mean()):.3f} after "
            f"{len(learned.rewards)} rounds, {gain.value:+.3f} ± {gain.error:.3f}",
        ),
        _compared(where, "The policy beats attention.", r, "TR-BERT", "Attention at the same layers"),
        _compared(where, "The policy beats chance.", r, "TR-BERT", "Chance at the same layers"),
        r.saving(where, "2 to 5 times faster with little loss.", pick, 0.5, loss),
    ]


def of_adapler(loss: float, b: Bench, learned: Learned, r: Results, pick: DropSetting) -> list[Claim]:
    where = "AdapLeR, arXiv 2203.08991"
    agreement = mean(torch.tensor(learned.agreement))
    outs = [o for w, o in zip(r.settings, r.outs, strict=True) if w is pick]
    shares = [sum(c) / (len(c) * c[0]) for o in outs for c in o.counts]
    spread = f"; sentences keep {min(shares):.0%} to {max(shares):.0%} of tokens × layers" if shares else ""
    return [
        Claim(
            where,
            "A small net can tell from a state what gradient × input would say.",
            agreement.above(TELLS),
            f"rank correlation {agreement.value:.2f} ± {agreement.error:.2f} on {len(learned.agreement)} sentences "
            f"that it has not seen, against {TELLS:g}",
        ),
        _compared(
            where,
            "Letting each input keep as many words as it needs beats a fixed share.",
            r,
            "AdapLeR",
            "Contribution, fixed share",
        ),
        r.saving(where, "Much faster with little loss of accuracy (up to 22 times).", pick, 0.5, loss, spread),
    ]


def of_fused(loss: float, b: Bench, learned: Learned, r: Results, pick: DropSetting) -> list[Claim]:
    return [
        _compared(
            "MPEE, aclanthology 2022.coling-1.414",
            "Fusing the words that leave is better than discarding them.",
            r,
            "MPEE, fused",
            "MPEE, discarded",
        )
    ]


CLAIMS: dict[str, Callable[[float, Bench, Learned, Results, DropSetting], list[Claim]]] = {
    "power-bert": of_power_bert,
    "tr-bert": of_tr_bert,
    "adapler": of_adapler,
    "mpee": of_fused,
}

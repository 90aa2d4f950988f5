"""The five papers' settings to choose which words go on, trained for one task, with the settings to try of each."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmlab.runtime.token_drop_plan import AtLeast, Fate, TokenDropPlan, Top
from llmlab.studies.support.classification.classify import batch_of, flops
from llmlab.studies.support.token_drop import selectors
from llmlab.studies.support.token_drop.bench import Bench
from llmlab.studies.support.token_drop.outcomes import DropSetting, Judge, Outcome, outcome
from llmlab.studies.support.token_drop.selectors import Contribution, Policy

LEARNED = 24
"""Of the sentences whose loss is differentiated, those that predictors learn from; the others test them."""
PRICE = 1.0
"""What a policy pays for keeping every word in every layer, in nats."""
IMITATED = "0.5"
"""The bar of TR-BERT's policies, before and after rewards, that are compared."""


@dataclass(frozen=True)
class Learned:
    """A method ready to be tried: its settings, and how its own training went."""

    settings: list[DropSetting]
    rewards: Sequence[float] = ()
    """TR-BERT's mean reward, round by round."""
    reward: Callable[[Outcome], Tensor] | None = None
    """(n,) TR-BERT's reward of each test sentence, by the classifier that rewarded the policy."""
    agreement: Sequence[float] = ()
    """Per sentence that they have not seen, how well AdapLeR's predictors rank its words."""


def power_bert(b: Bench) -> Learned:
    """The learned schedule, and at the same cost an even one, and chance under the learned one."""
    worth = selectors.worth_by_rank(b.found, b.places)
    L = b.t.layers
    settings = []
    for share in (0.9, 0.75, 0.6):
        masses = selectors.retention(worth, b.places, L, share)
        told = " ".join(f"{m:.0%}" for m in masses)
        plan = {p: Top(m, of_whole=True) for p, m in zip(b.places, masses, strict=True)}
        settings.append(DropSetting("PoWER-BERT", told, plan, candidate=True))
        if share == 0.75:
            chance = {p: Top(m, "random", True, b.t.data.seed) for p, m in zip(b.places, masses, strict=True)}
            settings.append(DropSetting("Chance, same schedule", told, chance))
    for keep in (0.85, 0.7):
        settings.append(
            DropSetting("Attention, even schedule", f"{keep:.0%} each time", dict.fromkeys(b.places, Top(keep)))
        )
    return Learned(settings)


def tr_bert(b: Bench) -> Learned:
    """Policies at two layers: from attention by imitation, then by REINFORCE on rollouts over training sentences."""
    t, L = b.t, b.t.layers
    at = sorted({b.places[0], b.places[len(b.places) // 2]})
    f, seed = b.found, t.data.seed
    nets = [selectors.imitated(f.h[p], f.received[p - 1], f.spans, seed) for p in at]
    before = dict(zip(at, [Policy(copy.deepcopy(net)) for net in nets], strict=True))
    # The classifier that rewards has been trained on what the policy begins with.
    judge = Judge.trained(t, outcome(t, DropSetting("", "", before, "pass"), t.ids["train"]).x)
    rng = torch.Generator().manual_seed(seed)
    sentences, samples, rounds = 12, 3, 10
    full = {part: [flops(t.shape, [len(ids)] * L) for ids in t.ids[part]] for part in ("train", "test")}

    def reward_of(x: Tensor, counts: Sequence[Sequence[int]], part: str, sentences: Sequence[int]) -> Tensor:
        logp = judge.logits(x)[-1].log_softmax(-1).gather(1, t.y[part][list(sentences)][:, None])[:, 0]
        cost = [flops(t.shape, c) / full[part][i] for c, i in zip(counts, sentences, strict=True)]
        return logp - PRICE * torch.tensor(cost)

    def act(step: int) -> tuple[list[selectors.Choices], Tensor]:
        picked = torch.randint(0, len(full["train"]), (sentences,), generator=rng).tolist()
        again = picked * samples
        plan = {p: Policy(net, rng=rng) for p, net in zip(at, nets, strict=True)}
        drop = TokenDropPlan(plan, "pass", remember=True)
        with torch.inference_mode():
            t.model.forward(batch_of(t.model, [t.ids["train"][i] for i in again]), drop, 0)
        counts = [list(c) for c in zip(*drop.counts, strict=True)]
        reward = reward_of(torch.stack(drop.states).cpu(), counts, "train", again)
        return [drop.choices[p] for p in at], reward.view(samples, sentences).t()

    curve = selectors.reinforced(nets, act, rounds, lambda d, n: b.subject.progress("Rewarding the policy", d, n))
    settings = []
    for bar in (0.3, float(IMITATED)):
        plan = {p: Policy(net, bar) for p, net in zip(at, nets, strict=True)}
        settings.append(DropSetting("TR-BERT", f"{bar:g}", plan, "pass", candidate=True))
    settings.append(DropSetting("TR-BERT, only imitated", IMITATED, before, "pass"))
    keep = 0.6
    told = f"{keep:.0%} at layers {' and '.join(map(str, at))}"
    settings.append(DropSetting("Attention at the same layers", told, dict.fromkeys(at, Top(keep)), "pass"))
    chance = dict.fromkeys(at, Top(keep, "random", seed=seed))
    settings.append(DropSetting("Chance at the same layers", told, chance, "pass"))
    return Learned(
        settings, rewards=curve, reward=lambda out: reward_of(out.x, out.counts, "test", range(len(out.counts)))
    )


def adapler(b: Bench) -> Learned:
    f, seed = b.found, b.t.data.seed
    spans = f.spans[:LEARNED]
    nets = {p: selectors.predictor(f.h[p], f.contribution[p], spans, seed) for p in b.places}
    agreement = []
    for x, y in f.spans[LEARNED:]:
        with torch.no_grad():
            found = [
                selectors.rank_correlation(net(f.h[p][x + 1 : y]), f.contribution[p][x + 1 : y])
                for p, net in nets.items()
            ]
        agreement.append(statistics.fmean(found))
    settings = []
    for eta in (0.2, 0.4, 0.6):
        settings.append(
            DropSetting("AdapLeR", f"{eta:g}", {p: Contribution(net, eta) for p, net in nets.items()}, candidate=True)
        )
    for keep in (0.9, 0.7):
        plan = {p: Contribution(net, share=keep) for p, net in nets.items()}
        settings.append(DropSetting("Contribution, fixed share", f"{keep:.0%} each time", plan))
    return Learned(settings, agreement=agreement)


def magic_pyramid(b: Bench) -> Learned:
    settings = [DropSetting("Magic Pyramid", "0", {})]
    for bar in (0.3, 0.6):
        settings.append(DropSetting("Magic Pyramid", f"{bar:g}", dict.fromkeys(b.places, AtLeast(bar)), candidate=True))
    return Learned(settings)


def fused(b: Bench) -> Learned:
    """Where the paper drops: after 4, 7 and 10 of 12 layers, by the attention of the last token."""
    at = sorted({max(1, b.t.layers * k // 12) for k in (4, 7, 10)})
    fates: tuple[tuple[Fate, str], ...] = (("fuse", "MPEE, fused"), ("discard", "MPEE, discarded"))
    settings = []
    for keep in (0.7, 0.4):
        for fate, name in fates:
            plan = dict.fromkeys(at, Top(keep, "last"))
            settings.append(DropSetting(name, f"{keep:.0%} each time", plan, fate, candidate=fate == "fuse"))
    return Learned(settings)


WORKS: dict[str, Callable[[Bench], Learned]] = {
    "power-bert": power_bert,
    "tr-bert": tr_bert,
    "adapler": adapler,
    "magic-pyramid": magic_pyramid,
    "mpee": fused,
}

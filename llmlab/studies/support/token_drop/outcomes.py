"""Settings of dropped tokens, what each does to sentences and costs, and classifiers trained on what is left."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmlab.lab.study import Claim
from llmlab.measure.statistics import Estimate, every, mean, paired
from llmlab.runtime.token_drop_plan import Fate, Selector, TokenDropPlan
from llmlab.studies.support.classification import probes
from llmlab.studies.support.classification.classify import Task, batch_of, flops
from llmlab.studies.support.classification.curves import Curve

AT_ONCE = 16
"""Sentences read in one pass."""
Plan = Mapping[int, Selector]


@dataclass
class DropSetting:
    """One setting of a method: which selector stands after which layer, and what becomes of the words it drops."""

    name: str
    value: str
    plan: Plan
    fate: Fate = "discard"
    candidate: bool = False
    """Whether calibration sentences may choose it: the paper's own method, not what it is compared with."""

    def drop_plan(self) -> TokenDropPlan:
        return TokenDropPlan(self.plan, self.fate)


@dataclass
class Outcome:
    """A setting on n sentences: the states (L, n, E) of their last tokens, and the tokens of each layer, (n, L)."""

    x: Tensor
    counts: list[list[int]]
    kept: dict[int, list[Tensor]] = field(default_factory=dict)

    def cost(self, t: Task, layers: Sequence[int] | None = None) -> Tensor:
        """(n,) FLOPs, through all layers or so many of each sentence."""
        through = layers if layers is not None else [t.layers] * len(self.counts)
        return torch.tensor([flops(t.shape, c[:l]) for c, l in zip(self.counts, through, strict=True)])


@torch.inference_mode()
def outcome(t: Task, setting: DropSetting, sequences: Sequence[Sequence[int]]) -> Outcome:
    """What a setting does to token sequences of any lengths."""
    states, counts = [], []
    kept: dict[int, list[Tensor]] = {}
    for a in range(0, len(sequences), AT_ONCE):
        drop = setting.drop_plan()
        t.model.forward(batch_of(t.model, sequences[a : a + AT_ONCE]), drop, 0)
        states.append(torch.stack(drop.states).cpu())
        counts += [list(c) for c in zip(*drop.counts, strict=True)]
        for layer, who in drop.kept.items():
            kept.setdefault(layer, []).extend(who)
    with torch.inference_mode(False):  # classifiers are trained on it
        return Outcome(torch.cat(states, 1).clone(), counts, kept)


@dataclass(frozen=True)
class Judge:
    """Classifiers and the scale of the states that they were trained on."""

    scale: probes.Scale
    own: probes.Linear
    last: bool
    """Whether there is one for the last layer alone."""

    @classmethod
    def trained(cls, t: Task, x: Tensor, last: bool = True) -> Judge:
        """On the states x (L, n, E) of the training sentences, as the papers train again after words were dropped."""
        x = x[-1:] if last else x
        scale = probes.Scale.of(x)
        return cls(scale, probes.trained(scale.apply_(x.clone()), t.y["train"], len(t.labels)), last)

    def logits(self, x: Tensor) -> Tensor:
        """x (L, n, E) to (L or 1, n, C)."""
        return self.own.logits(self.scale.apply_((x[-1:] if self.last else x).clone()))

    def right(self, x: Tensor, y: Tensor) -> Tensor:
        """(n,) 1 where the last layer's classifier is right."""
        return (self.logits(x)[-1].argmax(-1) == y).double()


def row_of(t: Task, setting: DropSetting, out: Outcome, right: Tensor, full: Tensor, chosen: bool) -> dict[str, Any]:
    """A setting as a row: accuracy, its change against all tokens with the standard error, and cost."""
    whole = sum(flops(t.shape, [len(ids)] * t.layers) for ids in t.ids["test"])
    cost = out.cost(t)
    gain = paired(right, full)
    return {
        "method": setting.name,
        "setting": setting.value,
        "accuracy": float(right.mean()),
        "change": gain.value,
        "error": gain.error,
        "layer_tokens": statistics.fmean(sum(c) for c in out.counts),
        "gflops": float(cost.mean()) / 1e9,
        "saved": 1 - float(cost.sum()) / whole,
        "chosen": chosen,
    }


class Results:
    """What a method's settings did on the test sentences."""

    def __init__(self, full: Tensor, whole: Tensor) -> None:
        """`full` (n,): 1 where all tokens are answered rightly; `whole` (n,): their FLOPs."""
        self.full, self.whole = full, whole
        self.settings: list[DropSetting] = []
        self.outs: list[Outcome] = []
        self.judges: list[Judge] = []
        self.rows: list[dict[str, Any]] = []
        self.rights: list[Tensor] = []
        self.costs: list[Tensor] = []

    def add(self, t: Task, setting: DropSetting, out: Outcome, judge: Judge) -> None:
        """One setting, judged by classifiers that were trained on sentences which lost words in the same way."""
        right = judge.right(out.x, t.y["test"])
        self.settings.append(setting)
        self.outs.append(out)
        self.judges.append(judge)
        self.rights.append(right)
        self.costs.append(out.cost(t))
        self.rows.append(row_of(t, setting, out, right, self.full, False))

    def of(self, name: str) -> list[int]:
        """Which settings a method's are."""
        return [i for i, s in enumerate(self.settings) if s.name == name]

    def curve(self, name: str) -> Curve:
        """Cost in GFLOP, all tokens included, where every curve begins."""
        cost, right = (torch.stack([x[i] for i in self.of(name)]) for x in (self.costs, self.rights))
        return Curve(cost / 1e9, right).with_point(self.whole / 1e9, self.full)

    def saved(self, i: int) -> Estimate:
        """The share of its FLOPs that a setting saves a sentence."""
        return mean(1 - self.costs[i].double() / self.whole.double())

    def gain(self, i: int) -> Estimate:
        return paired(self.rights[i], self.full)

    def saving(self, source: str, claim: str, pick: DropSetting, least: float, loss: float, more: str = "") -> Claim:
        """Whether the setting that calibration sentences picked saves so much of the FLOPs at this loss at most.

        Where no setting of the method saves as much, the claim can only be refuted: by one that saves less and loses
        more.
        """
        i = self.settings.index(pick)
        saved, gain = self.saved(i), self.gain(i)
        told = f"{pick.value}: {saved.value:.0%} of the FLOPs saved, accuracy {gain.points()}{more}"
        if any(self.saved(k).above(least) for k in self.of(pick.name)):
            return Claim(source, claim, every(saved.above(least), gain.above(-loss)), told)
        refuted = gain.above(-loss) is False
        why = f"{told}; no setting that was tried saves {least:.0%}"
        return Claim(source, claim, False if refuted else None, why, testable=refuted)

"""The levels: a model, or its first layers, with a calibrated classifier; and the weights that mix their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmlab.studies.support.cascades import calibration
from llmlab.studies.support.classification import probes
from llmlab.studies.support.classification.classify import Task, flops


@dataclass
class Rank:
    """One level: a model, or its first `layers` layers as a model of their own, with a classifier and its T."""

    name: str
    t: Task
    tokenizer: Any
    layers: int
    classifier: probes.Linear
    T: float

    def says(self, h: Tensor) -> Tensor:
        """The state (1, E) of a sentence's last token to its class distribution (C,)."""
        at = slice(self.layers - 1, self.layers)
        scaled = (h[None].cpu() - self.t.scale.mean[at]) / self.t.scale.deviation[at]
        return torch.softmax(self.classifier.logits(scaled.clamp(-8, 8))[0, 0] / self.T, -1)

    def known(self, part: str) -> Tensor:
        """(n, C) for the sentences of a part, from states that have been read."""
        return torch.softmax(self.logits(part) / self.T, -1)

    def logits(self, part: str) -> Tensor:
        return self.classifier.logits(self.t.x[part][self.layers - 1 : self.layers])[0]

    def cost(self, tokens: int) -> float:
        return flops(self.t.shape, [tokens] * self.layers)


def rank(name: str, t: Task, tokenizer: Any, layers: int) -> Rank:
    classifier = probes.trained(t.x["train"][layers - 1 : layers], t.y["train"], len(t.labels))
    made = Rank(name, t, tokenizer, layers, classifier, 1.0)
    made.T = calibration.temperature(made.logits("calibration"), t.y["calibration"])
    return made


def mixing(p: Sequence[Tensor], y: Tensor, thresholds: Sequence[float]) -> tuple[float, ...]:
    """The weight of what came before, at each level above the first: the best of 0, 0.1 … 0.9 on what reaches it."""
    weights: list[float] = []
    before, here = p[0], torch.ones(len(y), dtype=torch.bool)
    for bar, own, below in zip(thresholds, p[1:], p, strict=False):
        here = here & (below.amax(-1) < bar)
        tried = [w / 10 for w in range(10)]

        def worth(w: float, before: Tensor = before, own: Tensor = own, here: Tensor = here) -> tuple[float, float]:
            q = w * before[here] + (1 - w) * own[here]
            logp = q[torch.arange(len(q)), y[here]].clamp_min(1e-9).log()
            return float((q.argmax(-1) == y[here]).double().sum()), float(logp.sum())

        w = max(tried, key=worth) if here.any() else 0.0
        weights.append(w)
        before = w * before + (1 - w) * own
    return tuple(weights)

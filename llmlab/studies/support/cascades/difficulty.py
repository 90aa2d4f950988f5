"""CascadeBERT's difficulty margin: which training sentences are hard, and a loss that keeps them less confident."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.studies.support.classification import probes

FOLDS = 5


def missed(x: Tensor, y: Tensor, classes: int, folds: int = FOLDS) -> Tensor:
    """(n,) bool: sentences that a classifier trained on the other folds gets wrong, of states x (1, n, E)."""
    hard = torch.zeros(len(y), dtype=torch.bool)
    place = torch.arange(len(y)) % folds
    for fold in range(folds):
        own = place == fold
        predicted = probes.trained(x[:, ~own], y[~own], classes)(x[:, own])[0].argmax(-1)
        hard[own] = predicted != y[own]
    return hard


def margin_loss(y: Tensor, hard: Tensor, margin: float, weight: float) -> probes.Loss:
    """Cross-entropy, and λ times the mean over pairs of max(0, ε - (c_easy - c_hard)); CascadeBERT, section 4.2."""

    def loss(z: Tensor) -> Tensor:
        total = F.cross_entropy(z[0], y)
        c = torch.softmax(z[0], -1).amax(-1)
        if hard.any() and not hard.all():
            total = total + weight * (margin - (c[~hard][:, None] - c[hard][None])).clamp_min(0).mean()
        return total

    return loss

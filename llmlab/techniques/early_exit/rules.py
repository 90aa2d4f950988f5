"""When to leave: exit rules over the answers of internal classifiers, shared by the harnesses that run them.

A harness asks classifiers one after the other, from the lowest layer up, and hands a rule their answers so far.
Shapes: l classifiers asked so far (oldest first), N things that are decided one by one (tokens, sentences), C classes.
The rules know neither models nor tasks. What makes a threshold from calibration data stands below them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llmlab.errors import unknown_name


class Rule(Protocol):
    """Decides, from p (l, N, C), the class distributions of the l classifiers asked so far, who leaves now.

    `score` (N,) grows with certainty, and `leaves` (N,) bool is where it is above the rule's bar: that is what lets
    `conformal` and `trade` set the bar of any rule.
    """

    def score(self, p: Tensor) -> Tensor: ...

    def leaves(self, p: Tensor) -> Tensor: ...


# Rules of one answer ------------------------------------------------------------------------------------------------


def entropy(p: Tensor) -> Tensor:
    """(…, C) to (…,): -Σ p ln p, in nats."""
    entropies: Tensor = torch.special.entr(p)
    return entropies.sum(-1)


@dataclass(frozen=True)
class Entropy:
    """Leave when the newest classifier's entropy is below the threshold, in nats.

    BranchyNet (arXiv 1709.01686, section III.C) and DeeBERT (arXiv 2004.12993, algorithm 1).
    """

    threshold: float

    def score(self, p: Tensor) -> Tensor:
        return -entropy(p[-1])

    def leaves(self, p: Tensor) -> Tensor:
        return entropy(p[-1]) < self.threshold


@dataclass(frozen=True)
class NormalisedEntropy:
    """Leave when the uncertainty Σ p ln p / ln (1/C), which lies in 0..1, is below `speed`.

    FastBERT (arXiv 2004.02178, equation 8): a speed of 1 leaves wherever anything is known, a speed of 0 never.
    """

    speed: float

    def score(self, p: Tensor) -> Tensor:
        return 1 - entropy(p[-1]) / math.log(p.shape[-1])

    def leaves(self, p: Tensor) -> Tensor:
        return entropy(p[-1]) / math.log(p.shape[-1]) < self.speed


@dataclass(frozen=True)
class Probability:
    """Leave when the likeliest class has more than `threshold`: the maximum softmax score (arXiv 1610.02136)."""

    threshold: float

    def score(self, p: Tensor) -> Tensor:
        return p[-1].amax(-1)

    def leaves(self, p: Tensor) -> Tensor:
        return self.score(p) > self.threshold


@dataclass(frozen=True)
class Margin:
    """Leave when the likeliest class leads the second by more than `threshold`.

    CALM's softmax response (arXiv 2207.07061, section 3.5).
    """

    threshold: float

    def score(self, p: Tensor) -> Tensor:
        first, second = p[-1].topk(2, -1).values.unbind(-1)
        return first - second

    def leaves(self, p: Tensor) -> Tensor:
        return self.score(p) > self.threshold


@dataclass(frozen=True)
class PastFuture(Entropy):
    """`Entropy` over classifiers that see more than their own layer.

    Global Past-Future Early Exit (NAACL 2021, aclanthology 2021.naacl-main.162): p comes from one classifier over the
    states of all layers so far and of the imitated states of all layers to come. Making those is the harness's part;
    `gathered` lays them out.
    """


def gathered(past: Tensor, imitated: Tensor) -> Tensor:
    """past (l, N, E), the states so far, and imitated (L - l, N, E), guesses of the others, to (N, L, E) in order."""
    return torch.cat([past, imitated]).transpose(0, 1)


# Rules of several exits ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Each:
    """A rule for every classifier, in their order: BranchyNet's thresholds T_1, T_2, … (arXiv 1709.01686, figure 1)."""

    rules: tuple[Rule, ...]

    def score(self, p: Tensor) -> Tensor:
        return self.rules[len(p) - 1].score(p)

    def leaves(self, p: Tensor) -> Tensor:
        return self.rules[len(p) - 1].leaves(p)


# Rules that remember ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patience:
    """Leave when `patience` classifiers in a row have given the same label as the one before them.

    PABEE (arXiv 2006.04152, equation 5): the counter starts at 0, so that patience t takes t + 1 classifiers.
    """

    patience: int

    def score(self, p: Tensor) -> Tensor:
        """How many times in a row, up to now, the answer has stayed the same."""
        labels = p.argmax(-1)  # (l, N)
        same = (labels == labels[-1]).flip(0).long()
        return same.cumprod(0).sum(0) - 1

    def leaves(self, p: Tensor) -> Tensor:
        return self.score(p) >= self.patience


@dataclass(frozen=True)
class MultiView:
    """`Entropy` over what all classifiers so far say together, the newest weighing most.

    After the recycled classifier memory of MPEE (COLING 2022, aclanthology 2022.coling-1.414), in the exponential form
    that its class attention has: m_l = (1 - `recent`)·m_(l-1) + `recent`·z_l over logits z, with m_1 = z_1, and
    softmax(m_l) is what is judged and answered. From distributions the logits are known up to a constant each, which a
    softmax does not see.
    """

    threshold: float
    recent: float = 0.5

    def together(self, p: Tensor) -> Tensor:
        """(N, C): the accumulated distribution, from which the answer is taken too."""
        z = p.clamp_min(torch.finfo(p.dtype).tiny).log()
        m = z[0]
        for newer in z[1:]:
            m = torch.lerp(m, newer, self.recent)
        return torch.softmax(m, -1)

    def score(self, p: Tensor) -> Tensor:
        return -entropy(self.together(p))

    def leaves(self, p: Tensor) -> Tensor:
        return entropy(self.together(p)) < self.threshold


def named(name: str, threshold: float, patience: int) -> Rule:
    """A rule that needs no data, by name, with one threshold in 0..1 for all: the higher, the surer one must be.

    "learned" is `Probability` of odds (n, 1) in place of distributions. Raises Refused for any other name.
    """
    rules: dict[str, Rule] = {
        "probability": Probability(threshold),
        "learned": Probability(threshold),
        "margin": Margin(threshold),
        "entropy": Entropy(1 - threshold),
        "speed": NormalisedEntropy(1 - threshold),
        "patience": Patience(patience),
    }
    if name not in rules:
        raise unknown_name("exit rule", name, rules)
    return rules[name]


# Rules that were fitted ---------------------------------------------------------------------------------------------


def features(p: Tensor) -> Tensor:
    """What a meta-classifier looks at, (N, 5): the newest top probability, its lead, 1 - normalised entropy, the mean
    probability that the earlier classifiers gave that class (0 for the first), and how many have been asked."""
    label = p[-1].argmax(-1)
    before = p[:-1, torch.arange(p.shape[1]), label].mean(0) if len(p) > 1 else torch.zeros(p.shape[1], device=p.device)
    asked = torch.full_like(before, len(p))
    sure = (Probability(0).score(p), Margin(0).score(p), NormalisedEntropy(0).score(p))
    return torch.stack([*sure, before, asked], -1).float()

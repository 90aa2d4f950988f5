"""When to leave: exit rules over the answers of internal classifiers, shared by the harnesses that run them.

A harness asks classifiers one after the other, from the lowest layer up, and hands a rule what they have said so far.
Shapes: l classifiers asked so far (oldest first), N things that are decided one by one (tokens, sentences), C classes.
The rules know neither models nor tasks. What makes a threshold from calibration data stands below them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Rule(Protocol):
    """Decides, from p (l, N, C), the class distributions of the l classifiers asked so far, who leaves now.

    `score` (N,) grows with certainty, and `leaves` (N,) bool is where it is above the rule's bar: that is what lets
    `conformal` and `trade` set the bar of any rule.
    """

    def score(self, p: Tensor) -> Tensor: ...

    def leaves(self, p: Tensor) -> Tensor: ...


# Rules of one look --------------------------------------------------------------------------------------------------


def entropy(p: Tensor) -> Tensor:
    """(…, C) to (…,): -Σ p ln p, in nats."""
    return torch.special.entr(p).sum(-1)


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
    """Leave when `patience` classifiers in a row have said the same as the one before them.

    PABEE (arXiv 2006.04152, equation 5): the counter starts at 0, so that patience t takes t + 1 classifiers.
    """

    patience: int

    def score(self, p: Tensor) -> Tensor:
        """How many times in a row, up to now, the answer has stayed the same."""
        said = p.argmax(-1)  # (l, N)
        same = (said == said[-1]).flip(0).long()
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

    Any other name is `Probability`: of odds (n, 1) in place of distributions, those odds themselves.
    """
    rules: dict[str, Rule] = {
        "margin": Margin(threshold),
        "entropy": Entropy(1 - threshold),
        "speed": NormalisedEntropy(1 - threshold),
        "patience": Patience(patience),
    }
    return rules.get(name, Probability(threshold))


# Rules that were fitted ---------------------------------------------------------------------------------------------


def features(p: Tensor) -> Tensor:
    """What a meta-classifier looks at, (N, 5): the newest top probability, its lead, 1 - normalised entropy, the mean
    probability that the earlier classifiers gave that class (0 for the first), and how many have been asked."""
    said = p[-1].argmax(-1)
    before = p[:-1, torch.arange(p.shape[1]), said].mean(0) if len(p) > 1 else torch.zeros(p.shape[1], device=p.device)
    asked = torch.full_like(before, len(p))
    sure = (Probability(0).score(p), Margin(0).score(p), NormalisedEntropy(0).score(p))
    return torch.stack([*sure, before, asked], -1).float()


@dataclass(frozen=True)
class Consistency:
    """Leave when a small meta-classifier thinks that the full model would say the same.

    CATs (arXiv 2104.08803, section 4.2): here a logistic regression over `features`, without the hidden state and the
    class that the paper's small network sees as well; `threshold` comes from `conformal`.
    """

    threshold: float
    weights: tuple[float, ...]
    bias: float

    @classmethod
    def along(cls, p: Tensor, consistent: Tensor, threshold: float) -> Consistency:
        """Fitted on all that l classifiers said, p (l, n, C), and whether each was consistent (l, n)."""
        x = torch.cat([features(p[:asked]) for asked in range(1, len(p) + 1)])
        return cls.fitted(x.cpu(), consistent.flatten().cpu(), threshold)

    @classmethod
    def fitted(cls, x: Tensor, consistent: Tensor, threshold: float = math.inf, ridge: float = 1e-3) -> Consistency:
        """From x (n, F) `features` and consistent (n,) bool, by Newton's method with a small ridge."""
        X = torch.cat([x, torch.ones(len(x), 1)], 1).double()
        y, w = consistent.double(), torch.zeros(X.shape[1], dtype=torch.double)
        for _ in range(50):
            q = torch.sigmoid(X @ w)
            gradient = X.t() @ (q - y) / len(X) + ridge * w
            hessian = (X * (q * (1 - q))[:, None]).t() @ X / len(X) + ridge * torch.eye(len(w), dtype=torch.double)
            step = torch.linalg.solve(hessian, gradient)
            w -= step * min(1.0, 4.0 / float(step.norm().clamp_min(1e-12)))  # far steps overshoot where q is flat
            if step.norm() < 1e-9:
                break
        return cls(threshold, tuple(w[:-1].tolist()), float(w[-1]))

    def score(self, p: Tensor) -> Tensor:
        x = features(p)
        return torch.sigmoid(x @ torch.tensor(self.weights, device=x.device) + self.bias)

    def leaves(self, p: Tensor) -> Tensor:
        return self.score(p) > self.threshold


# Rules that look at nothing -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Hash:
    """Every token has its layer, whatever is said: no classifier is asked.

    HashEE (arXiv 2203.01670). `layers` (V,): after how many layers each token of the vocabulary leaves.
    """

    layers: Tensor

    def at(self, tokens: Tensor) -> Tensor:
        """(N,) token ids to (N,): after how many layers each leaves."""
        return self.layers[tokens]

    def leaves(self, ran: int, tokens: Tensor) -> Tensor:
        """(N,) bool: who has gone through enough layers once `ran` have run."""
        return self.at(tokens) <= ran


def buckets(order: Tensor, exits: tuple[int, ...], mass: Tensor | None = None) -> Tensor:
    """order (V,): the tokens, those that leave first in front, to `layers` (V,) of `Hash`, one bucket per exit.

    Buckets hold equally many tokens, or, with mass (V,), tokens of equal mass.
    """
    weight = torch.ones(len(order)) if mass is None else mass.float()[order]
    before = (weight.cumsum(0) - weight) / weight.sum().clamp_min(1e-12)
    place = (before * len(exits)).long().clamp_max(len(exits) - 1)
    layers = torch.empty(len(order), dtype=torch.long)
    layers[order] = torch.tensor(exits)[place]
    return layers


def random_hash(vocabulary: int, exits: tuple[int, ...], seed: int = 0) -> Hash:
    """Tokens dealt out by chance, the same way every time."""
    order = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(seed))
    return Hash(buckets(order, exits))


def frequency_hash(counts: Tensor, exits: tuple[int, ...]) -> Hash:
    """counts (V,): frequent tokens leave first. Buckets hold equally many of the tokens that occur; others stay."""
    return _ranked(counts, counts, exits)


def information_hash(tokens: Tensor, classes: Tensor, vocabulary: int, exits: tuple[int, ...]) -> Hash:
    """tokens (n,) and the class (n,) that each occurred with: tokens that tell most about the class leave first.

    A token's part in the mutual information: Σ_y p(x, y) ln (p(x, y) / (p(x) p(y))). Tokens that never occur stay.
    """
    kinds = int(classes.max()) + 1
    joint = torch.bincount(tokens * kinds + classes, minlength=vocabulary * kinds).view(vocabulary, kinds).double()
    joint /= joint.sum()
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    told = torch.where(joint > 0, joint * (joint / apart.clamp_min(1e-300)).log(), 0.0).sum(1)
    return _ranked(told, joint.sum(1), exits)


def cluster_hash(embeddings: Tensor, exits: tuple[int, ...], seed: int = 0, rounds: int = 20) -> Hash:
    """embeddings (V, E): alike tokens leave together, by k-means; the cluster of the shortest vectors leaves first."""
    x = embeddings.float()
    start = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: len(exits)]
    centres = x[start].clone()
    place = torch.zeros(len(x), dtype=torch.long)
    for _ in range(rounds):
        place = torch.cdist(x, centres).argmin(1)
        for c in range(len(exits)):
            if (place == c).any():
                centres[c] = x[place == c].mean(0)
    size = torch.bincount(place, minlength=len(exits))
    length = torch.zeros(len(exits)).index_add_(0, place, x.norm(dim=1)) / size.clamp_min(1)
    layers = torch.empty(len(exits), dtype=torch.long)
    layers[length.argsort(stable=True)] = torch.tensor(exits)
    return Hash(layers[place])


def _ranked(worth: Tensor, counts: Tensor, exits: tuple[int, ...]) -> Hash:
    """Tokens that occur, by falling worth, in equal buckets; the others leave last."""
    order = worth.argsort(descending=True, stable=True)
    order = order[counts[order] > 0]
    layers = torch.full((len(counts),), max(exits))
    layers[order] = buckets(torch.arange(len(order)), exits)
    return Hash(layers)


@dataclass(frozen=True)
class Above:
    """A rule whose bar has been set from calibration data: leave where its score is above `bar`."""

    rule: Rule
    bar: float

    def score(self, p: Tensor) -> Tensor:
        return self.rule.score(p)

    def leaves(self, p: Tensor) -> Tensor:
        return self.rule.score(p) > self.bar


# Bars from calibration data -----------------------------------------------------------------------------------------


def conformal(scores: Tensor, consistent: Tensor, epsilon: float, delta: float | None = None) -> float:
    """The bar above which leaving keeps to the full model's answer with probability at least 1 - epsilon.

    scores (l, n) and consistent (l, n) bool: for each of n calibration examples and each classifier, how sure the rule
    was, and whether its answer is the full model's. An example goes wrong under a bar only if one of its inconsistent
    scores lies above it, so its worst is the highest of those, and the bar is the ⌈(n + 1)(1 - epsilon)⌉-th smallest
    worst: CATs, shared calibration (arXiv 2104.08803, section 4.4). Infinite where n is too small to promise anything.

    That promise is about a new example and a new calibration set together. With `delta`, it holds with probability at
    least 1 - delta over calibration sets, each taken by itself: the bar's coverage is at least that of a Beta(k, n + 1
    - k) variable, and k is the smallest with P(Binomial(n, 1 - epsilon) >= k) <= delta (Vovk, arXiv 1209.2673).

    Examples that no classifier gets wrong count as worst -∞; the authors' program leaves them out, which is stricter.
    """
    n = scores.shape[1]
    worst = scores.double().masked_fill(consistent, -math.inf).amax(0).sort().values
    if delta is None:
        k = math.ceil((n + 1) * (1 - epsilon) - 1e-9)
    else:
        at_least = 1.0  # P(Binomial(n, 1 - epsilon) >= k)
        k = 0
        while k <= n and at_least > delta:
            at_least -= _binomial(n, k, 1 - epsilon)
            k += 1
    return float(worst[max(k, 1) - 1]) if k <= n else math.inf


def _binomial(n: int, k: int, p: float) -> float:
    """P(Binomial(n, p) = k)."""
    if p in (0.0, 1.0):
        return float(k == n * p)
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log + k * math.log(p) + (n - k) * math.log1p(-p))


def scores_of(rule: Rule, p: Tensor) -> Tensor:
    """p (l, n, C) to (l, n): the rule's score after each classifier in turn."""
    return torch.stack([rule.score(p[:asked]).float() for asked in range(1, len(p) + 1)])


def first_exit(scores: Tensor, bar: float) -> Tensor:
    """scores (l, n) to (n,): the first classifier whose score is above the bar, l where none is."""
    above = scores > bar
    return torch.where(above.any(0), above.int().argmax(0), len(scores))


def trade(scores: Tensor, consistent: Tensor, depths: tuple[int, ...], full: int, bar: float) -> tuple[float, float]:
    """(share that answers as the full model, mean layers) when everything leaves at the first score above `bar`.

    scores, consistent (l, n); depths: after how many of the `full` layers each classifier sits.
    """
    at = first_exit(scores, bar)
    same = torch.cat([consistent, torch.ones_like(consistent[:1])]).gather(0, at[None])[0]
    return float(same.double().mean()), float(torch.tensor([*depths, full])[at].double().mean())


TRIED = 400
"""Bars that `at_agreement` tries at most."""


def at_agreement(scores: Tensor, consistent: Tensor, least: float) -> float:
    """The lowest bar under which at least this share of the calibration examples answers as the full model.

    Measured, with no promise for others: `conformal` gives that. Bars are tried at the scores themselves.
    """
    depths = tuple(range(len(scores)))
    tried = scores.double().flatten().unique()
    if len(tried) > TRIED:
        tried = tried[torch.linspace(0, len(tried) - 1, TRIED).long()]
    for bar in [-math.inf, *tried.tolist()]:
        if trade(scores, consistent, depths, len(scores), bar)[0] >= least - 1e-9:
            return bar
    return math.inf

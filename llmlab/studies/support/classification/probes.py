"""Internal classifiers: one after every layer of a frozen model, trained on cached states.

Each trains in the way of its paper, from states x (L, n, E) of the last token that `Scale` has put on one scale, and
then maps such states to class distributions (L, n, C). Training is deterministic: it starts from zero weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

DECAY = 0.02
"""Squared weights count this much in the loss; states have more entries than a small set has sentences."""
STEPS = 60


@dataclass(frozen=True)
class Scale:
    """Per layer and entry, mean and deviation over the training sentences, (L, 1, E) each."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Scale:
        return cls(x.mean(1, keepdim=True), x.std(1, keepdim=True).clamp_min(1e-6))

    def apply_(self, x: Tensor) -> Tensor:
        """x (L, n, E), in place. What lies far outside of all that was seen in training is pulled back."""
        return x.sub_(self.mean).div_(self.deviation).clamp_(-8, 8)


@dataclass(frozen=True)
class Linear:
    """softmax(x W + b) per layer: W (L, E, C), b (L, 1, C)."""

    W: Tensor
    b: Tensor

    def logits(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.b, x, self.W)

    def __call__(self, x: Tensor) -> Tensor:
        """x (L, n, E) to (L, n, C)."""
        return torch.softmax(self.logits(x), -1)


Loss = Callable[[Tensor], Tensor]
"""Logits (L, n, C) to a number."""


def _fitted(parts: list[Tensor], value: Callable[[], Tensor], decay: Callable[[], Tensor], steps: int) -> None:
    """Move the tensors `parts` to where value + decay is least, by L-BFGS."""
    for p in parts:
        p.requires_grad_(True)
    search = torch.optim.LBFGS(parts, max_iter=steps, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        total = value() + decay()
        total.backward()
        return total

    search.step(loss)
    for p in parts:
        p.requires_grad_(False)


@torch.inference_mode(False)
def fitted(x: Tensor, loss: Loss, classes: int, steps: int = STEPS, decay: float = DECAY) -> Linear:
    """Classifiers on the layers of x (L, n, E) for which `loss` of their logits is least, all at once."""
    W, b = torch.zeros(len(x), x.shape[2], classes), torch.zeros(len(x), 1, classes)
    _fitted([W, b], lambda: loss(torch.baddbmm(b, x, W)), lambda: decay * W.square().sum() / 2, steps)
    return Linear(W, b)


def _layerwise(x: Tensor, loss: Loss, classes: int) -> Linear:
    """As `fitted`, each layer by itself: where a loss has nothing in common, neither should the search."""
    each = [fitted(x[l : l + 1], loss, classes) for l in range(len(x))]
    return Linear(torch.cat([p.W for p in each]), torch.cat([p.b for p in each]))


def trained(x: Tensor, y: Tensor, classes: int) -> Linear:
    """On labels y (n,), by cross-entropy, each layer alone.

    DeeBERT's second stage (arXiv 2004.12993, section 3.2). On a frozen backbone classifiers share nothing, so that
    BranchyNet's and PABEE's weighted sums of losses have their least value at the same place.
    """
    return _layerwise(x, lambda z: F.cross_entropy(z.flatten(0, 1), y.repeat(len(z))), classes)


def distilled(x: Tensor, teacher: Tensor) -> Linear:
    """Without labels, from the last layer's distributions (n, C): D_KL(p_s, p_t) = Σ p_s ln (p_s / p_t).

    FastBERT's self-distillation (arXiv 2004.02178, equations 6 and 7), whose student stands first in the divergence.
    """
    target = teacher.clamp_min(1e-6).log()

    def loss(z: Tensor) -> Tensor:
        log = torch.log_softmax(z, -1)
        return (log.exp() * (log - target)).sum(-1).mean()

    return _layerwise(x, loss, teacher.shape[-1])


# A memory of earlier labels -----------------------------------------------------------------------------------------


def remembered(z: Tensor, recent: float) -> Tensor:
    """m_l = (1 - recent)·m_(l-1) + recent·z_l over logits z (L, n, C), with m_1 = z_1."""
    m = [z[0]]
    for newer in z[1:]:
        m.append(torch.lerp(m[-1], newer, recent))
    return torch.stack(m)


def recycled(x: Tensor, y: Tensor, first: Linear, recent: float, soft: float = 0.5) -> Linear:
    """Classifiers trained through their shared memory, with a teacher made of all of them.

    MPEE (aclanthology 2022.coling-1.414): the teacher is a weighted mean of the layers' logits (here with one learned
    weight per layer), trained on the labels; every memory is trained on the labels and, by the share `soft`, on it.
    `first`: classifiers trained alone, whose logits the teacher weighs.
    """
    z, n = first.logits(x), x.shape[1]
    weigh = torch.zeros(len(x))
    with torch.inference_mode(False):
        z = z.clone()
        _fitted(
            [weigh],
            lambda: F.cross_entropy(torch.einsum("l,lnc->nc", torch.softmax(weigh, 0), z), y),
            lambda: DECAY * weigh.square().sum() / 2,
            STEPS,
        )
    teacher = torch.softmax(torch.einsum("l,lnc->nc", torch.softmax(weigh, 0), z), -1)
    one_hot = F.one_hot(y, z.shape[-1]).float()
    target = (1 - soft) * one_hot + soft * teacher

    def loss(logits: Tensor) -> Tensor:
        m = remembered(logits, recent)
        return -(torch.log_softmax(m, -1) * target).sum() / n

    return fitted(x, loss, z.shape[-1])


# Past and future ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PastFuture:
    """Classifiers that see the states of all layers so far and guesses of all layers to come.

    Global Past-Future Early Exit (aclanthology 2021.naacl-main.162): one imitator A_j per layer j guesses its state
    from that of any layer below, and one classifier W_j per layer reads it, imitated or not. At exit l the logits are
    2λ Σ_{j≤l} x_j W_j + (2 - 2λ) Σ_{j>l} A_j(x_l) W_j. `share` is λ (L, 1, 1).
    """

    own: Linear
    ahead: Linear
    """W (L, E, C): what a layer's state says by way of everything imitated from it."""
    share: Tensor

    def views(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the past and what the future say, (L, n, C) each."""
        return self.own.logits(x).cumsum(0), self.ahead.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        past, ahead = self.views(x)
        return 2 * self.share * past + (2 - 2 * self.share) * ahead

    def __call__(self, x: Tensor) -> Tensor:
        """x (L, n, E) to (L, n, C)."""
        return torch.softmax(self.logits(x), -1)


@dataclass(frozen=True)
class Imitators:
    """A (L, E, E) and b (L, 1, E): x_j ≈ x_l A_j + b_j for every l below j. The first layer has nobody below it."""

    A: Tensor
    b: Tensor

    @classmethod
    def fitted(cls, x: Tensor, ridge: float = 0.1) -> Imitators:
        """By least squares over all pairs of layers. Σ_l x_lᵀ x_j = (Σ_l x_l)ᵀ x_j, so that each layer costs one."""
        L, n, E = x.shape
        A, b = torch.zeros(L, E, E), torch.zeros(L, 1, E)
        gram, total = torch.zeros(E, E), torch.zeros(n, E)
        for j in range(1, L):
            gram += x[j - 1].t() @ x[j - 1]
            total += x[j - 1]
            # States have mean zero over the training set, so that the constant is theirs.
            left = gram / (n * j) + ridge * torch.eye(E)
            A[j] = torch.linalg.solve(left, total.t() @ x[j] / (n * j))
            b[j] = x[j].mean(0)
        return cls(A, b)

    def error(self, x: Tensor, l: int, j: int) -> float:
        """The mean squared error, in deviations, of layer j's states imitated from layer l's (both from 0)."""
        return float((x[l] @ self.A[j] + self.b[j] - x[j]).square().mean())


def past_only(x: Tensor, y: Tensor, classes: int) -> Linear:
    """One classifier per layer, for exits that see the past alone: an exit adds up the logits of all layers so far."""
    return fitted(
        x,
        lambda z: F.cross_entropy(z.cumsum(0).flatten(0, 1), y.repeat(len(z))) * len(z),
        classes,
        decay=DECAY * len(x),
    )


def past_future(x: Tensor, y: Tensor, classes: int, imitators: Imitators) -> PastFuture:
    """All exits at once: the sum of their cross-entropies, with one classifier per layer that every exit uses.

    Linear imitators fold into the classifiers that read them, A_j W_j, so that an exit costs two products.
    """
    L, _, E = x.shape
    with torch.inference_mode(False):
        W, b, gate = torch.zeros(L, E, classes), torch.zeros(L, 1, classes), torch.zeros(L, 1, 1)

        def parts() -> PastFuture:
            guess = torch.bmm(imitators.A, W)  # (L, E, C); the first is zero
            ahead = guess.flip(0).cumsum(0).flip(0) - guess
            constant = torch.bmm(imitators.b, W) + b
            later = constant.flip(0).cumsum(0).flip(0) - constant
            return PastFuture(Linear(W, b), Linear(ahead, later), torch.sigmoid(gate))

        def value() -> Tensor:
            return F.cross_entropy(parts().logits(x).flatten(0, 1), y.repeat(L)) * L

        # What a layer's classifier weighs is seen by all exits, so that its decay counts for all of them.
        _fitted([W, b, gate], value, lambda: DECAY * L * W.square().sum() / 2, STEPS)
        return parts()

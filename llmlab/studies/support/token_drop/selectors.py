"""Learned choices of tokens: how many words each layer keeps, what a word contributes, and a policy that picks them.

Each learns on a frozen model, from a pass forth and back (`saliency`) or from rewards. Shapes: T tokens of a sequence,
E width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.runtime.token_drop_plan import LayerView
from llmlab.studies.support.token_drop.saliency import Saliency

BINS = 10
"""Ranks of a sentence's words, from the most attended to the least, are told apart in so many steps."""


# How many: PoWER-BERT -----------------------------------------------------------------------------------------------


def worth_by_rank(found: Saliency, places: Sequence[int]) -> Tensor:
    """(places, BINS): what keeping a word of each rank is worth in the layers from a place to the next, per layer.

    The rank is by attention received in the layer before the place; the worth is how much the loss moves with the
    word's gate, |∂loss/∂g|, averaged over words and sentences. Along the signed slope, words would seem to do harm that
    do none once others have gone (Molchanov et al., arXiv 1611.06440, take the same for filters).
    """
    L = len(found.gate)
    total = torch.zeros(len(places), BINS)
    for i, (a, b) in enumerate(zip(places, [*places[1:], L], strict=True)):
        gate = found.gate[a:b].abs().mean(0)
        for start, stop in found.spans:
            order = found.received[a - 1, start:stop].argsort(descending=True)
            bins = torch.arange(stop - start) * BINS // (stop - start)
            mean = torch.zeros(BINS).index_add_(0, bins, gate[start:stop][order].cpu())
            total[i] += mean / torch.bincount(bins, minlength=BINS).clamp_min(1)
    return total / len(found.spans)


def retention(worth: Tensor, places: Sequence[int], layers: int, share: float) -> list[float]:
    """What share of its words a sentence keeps after each place, if `share` of all tokens × layers are to remain.

    PoWER-BERT (arXiv 2001.08950, section 3.3) minimises loss + λ Σ_j j·mass_j over what each rank keeps in layer j, and
    then keeps ⌈mass_j⌉ words. With the loss as a line, the least is at 1 for each rank that is worth more than λ·j
    and at 0 for the others; λ is found by halving. Later places never keep more than earlier ones, nor fewer than one
    in `BINS`.
    """

    def kept(price: float) -> list[float]:
        masses, most = [], 1.0
        for row, place in zip(worth, places, strict=True):
            most = min(most, max(1 / BINS, float((row > price * place / layers).sum()) / BINS))
            masses.append(most)
        return masses

    def remaining(masses: Sequence[float]) -> float:
        ends = [*places[1:], layers]
        return (places[0] + sum(m * (b - a) for m, a, b in zip(masses, places, ends, strict=True))) / layers

    low, high = float(worth.min()) - 1.0, layers * float(worth.abs().max()) + 1.0
    low *= layers
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if remaining(kept(middle)) > share else (low, middle)
    return kept(high)


# What a word contributes: AdapLeR -----------------------------------------------------------------------------------


class Perceptron(nn.Module):
    """Two layers on a state: E to 32 to 1. States are put on one scale first."""

    def __init__(self, h: Tensor, seed: int) -> None:
        """h (n, E): states to take the scale from."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(h.shape[1], 32), nn.Linear(32, 1)
        self.mean, self.deviation = h.mean(0), h.std(0).clamp_min(1e-6)

    def forward(self, h: Tensor) -> Tensor:
        """(…, E) to (…)."""
        x = ((h.float().cpu() - self.mean) / self.deviation).clamp(-8, 8)
        scores: Tensor = self.second(F.gelu(self.first(x)))
        return scores.squeeze(-1)


@dataclass(frozen=True, eq=False)
class Contribution:
    """Keep the words whose predicted contribution, a softmax over the sentence, is at least η / T.

    AdapLeR (arXiv 2203.08991, section 3): how many stay depends on how evenly a sentence's words contribute. With
    `share`, the best of that share instead, whatever they contribute: the fixed schedule that it is compared with.
    """

    network: Perceptron
    eta: float = 1.0
    share: float | None = None

    @torch.no_grad()
    def __call__(self, view: LayerView) -> Tensor:
        S = torch.softmax(self.network(view.h), -1).to(view.h.device)
        if self.share is None:
            return self.eta / len(S) <= S
        keep = torch.zeros(len(S), dtype=torch.bool, device=S.device)
        keep[S.topk(max(1, round(self.share * len(S)))).indices] = True
        return keep


def predictor(
    h: Tensor, contribution: Tensor, spans: Sequence[tuple[int, int]], seed: int, steps: int = 150
) -> Perceptron:
    """A net whose softmax over each sentence is close to the words' share of gradient × input, by KL.

    h (N, E), contribution (N,): one layer's. The first token's is left out: it draws everything and always stays.
    """
    net = Perceptron(h, seed)
    target = torch.cat([_shares(contribution[a + 1 : b]) for a, b in spans])
    pick = torch.cat([torch.arange(a + 1, b) for a, b in spans])
    sizes = [b - a - 1 for a, b in spans]
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.1)
    with torch.inference_mode(False):
        h = h[pick].clone()
        for _ in range(steps):
            log = torch.cat([torch.log_softmax(z, 0) for z in net(h).split(sizes)])
            loss = (target * (target.clamp_min(1e-9).log() - log)).sum() / len(sizes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net


def _shares(x: Tensor) -> Tensor:
    return x / x.sum().clamp_min(1e-12)


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of two (n,)."""
    x, y = (v.argsort().argsort().double() for v in (a, b))
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1])


# A policy: TR-BERT --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Policy:
    """Select a word with probability σ(network(h)): by chance while it learns (`rng`), above `bar` afterwards.

    TR-BERT (arXiv 2105.11618, section 3.2).
    """

    network: Perceptron
    bar: float = 0.5
    rng: torch.Generator | None = None

    @torch.no_grad()
    def __call__(self, view: LayerView) -> Tensor:
        p = torch.sigmoid(self.network(view.h))
        keep = p > (self.bar if self.rng is None else torch.rand(len(p), generator=self.rng))
        return keep.to(view.h.device)


def imitated(h: Tensor, worth: Tensor, spans: Sequence[tuple[int, int]], seed: int, steps: int = 100) -> Perceptron:
    """A policy's start: it selects the half of each sentence's words that receive most attention."""
    net = Perceptron(h, seed)
    with torch.inference_mode(False):
        best = torch.cat([(worth[a:b] >= worth[a:b].median()).float() for a, b in spans])
        h = h.clone()
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.1)
        for _ in range(steps):
            loss = F.binary_cross_entropy_with_logits(net(h), best)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net


Choices = Sequence[tuple[Tensor, Tensor]]
"""What a policy saw and did in each of several sequences: states (T, E) and who was kept (T,)."""


def reinforced(
    nets: Sequence[Perceptron],
    act: Callable[[int], tuple[Sequence[Choices], Tensor]],
    rounds: int,
    progress: Callable[[int, int], None],
    rate: float = 2e-3,
) -> list[float]:
    """REINFORCE (Williams 1992): raise the probability of choices by how much better than usual they went.

    `act(round)` plays several sequences, each `samples` times: for each net its choices, and the rewards (sequences,
    samples), whose mean per sequence is what is usual. Sequences stand sample by sample. Returns each round's mean
    reward.
    """
    optimizer = torch.optim.Adam([p for net in nets for p in net.parameters()], lr=rate)
    curve = []
    for step in range(rounds):
        choices, reward = act(step)
        curve.append(float(reward.mean()))
        better = (reward - reward.mean(1, keepdim=True)).t().flatten()
        better = better / better.std().clamp_min(1e-6)
        with torch.inference_mode(False):
            value = torch.zeros(())
            for net, made in zip(nets, choices, strict=True):
                for (h, kept), gain in zip(made, better.tolist(), strict=True):
                    # The first and the last token had no choice.
                    odds, did = net(h[1:-1].clone()), kept[1:-1].float().cpu()
                    value = value + gain * F.binary_cross_entropy_with_logits(odds, did, reduction="sum")
            optimizer.zero_grad()
            (value / len(better)).backward()
            optimizer.step()
        progress(step + 1, rounds)
    return curve

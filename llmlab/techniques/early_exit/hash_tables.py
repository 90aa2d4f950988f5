"""Exits by the word alone (HashEE): tables from a word to the layer at which its token leaves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmlab.models.loading.progress import check

# Rules that ask no classifier ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Hash:
    """Every token has its layer, whatever the text: no classifier is asked.

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
        check()
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

"""Distributions from logits, and which path of a draft survives: greedy and sampled decoding, chain and tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llmlab.errors import Refused
from llmlab.models.kernels.topk import argmax
from llmlab.runtime.draft import Draft


class RandomSource(Protocol):
    """The two random acts of acceptance. Tests replace it by one that enumerates every outcome."""

    def bernoulli(self, p: float) -> bool: ...

    def categorical(self, p: Tensor) -> int: ...


class SeededRandom:
    """Chance from a seeded generator."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def bernoulli(self, p: float) -> bool:
        return torch.rand((), generator=self.generator).item() < p

    def categorical(self, p: Tensor) -> int:
        try:
            return int(torch.multinomial(p.float().cpu(), 1, generator=self.generator).item())
        except RuntimeError as e:
            why = "are no distribution: something that is no number (NaN) was computed"
            raise NoDistribution("The probabilities", why, "Choose dense-fp32 weights or another model") from e


class NoDistribution(Refused):
    """Chance was given NaN; who knows the model refines it by `not_finite.no_numbers`."""


COLDEST = 1e-6
"""Below this temperature float32 cannot tell sampling from taking the best token."""


@dataclass(frozen=True)
class Sampler:
    """How logits become a distribution: greedy at temperature 0, else temperature, then top-k, then top-p (nucleus)."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def greedy(self) -> bool:
        return self.temperature < COLDEST

    def distribution(self, logits: Tensor) -> Tensor:
        """(…, V) logits to (…, V) probabilities in float32; one-hot when greedy."""
        logits = logits.float()
        if self.greedy:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            floor = logits.topk(self.top_k, -1).values[..., -1:]
            logits = logits.masked_fill(logits < floor, -torch.inf)
        p = torch.softmax(logits, -1)
        if self.top_p < 1:
            ordered, index = p.sort(-1, descending=True)
            beyond = ordered.cumsum(-1) - ordered >= self.top_p
            p = p.masked_fill(torch.zeros_like(beyond).scatter(-1, index, beyond), 0)
            p = p / p.sum(-1, keepdim=True)
        return p

    def sample(self, logits: Tensor, chance: RandomSource) -> int:
        """A token after logits (V,): the best one when greedy, else one that chance picks."""
        return argmax(logits[None])[0] if self.greedy else chance.categorical(self.distribution(logits))


def accept_greedy(draft: Draft, best: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Walk down the tree while a child is the model's own choice. `best` (T,): argmax at the root and at every node."""
    path: list[int] = []
    node = -1
    while True:
        for child in draft.children(node):
            if draft.tokens[child] == best[node + 1]:
                path.append(child)
                node = child
                break
        else:
            return tuple(path), int(best[node + 1])


def accept(
    draft: Draft, p: Tensor, chance: RandomSource, lenience: float = 1.0, sure: int = 0
) -> tuple[tuple[int, ...], int]:
    """Keep a path of the draft so that the committed tokens follow p exactly.

    p (T, V) with T = 1 + nodes: the model's distribution after the root and after every node. Children of a node are
    tried in order; child x drawn from q is accepted with probability min(1, p(x) / q(x)), else p becomes the normalised
    max(p - q, 0) and the next child is tried. This is speculative sampling (Leviathan et al., arXiv 2211.17192,
    section 2.3) for a chain, and multi-step speculative sampling (SpecInfer, arXiv 2305.09781, algorithm 2) for a tree.
    A certain draft is the case of a one-hot q; greedy decoding the case of a one-hot p.

    No longer exact: with `lenience` below 1, q(x) is multiplied by it where it is compared with p(x); the first `sure`
    nodes of the path are accepted unasked.

    Returns the accepted nodes and one more token from what is left of p.
    """
    path: list[int] = []
    node = -1
    while True:
        left = p[node + 1].float()
        for child in draft.children(node):
            x = draft.tokens[child]
            q = draft.q[child]
            asked = lenience * (float(q[x]) if q is not None else 1.0)
            if len(path) < sure or chance.bernoulli(min(1.0, float(left[x]) / max(asked, 1e-38))):
                path.append(child)
                node = child
                break
            if q is None:
                left = left.clone()
                left[x] = 0
            else:
                left = (left - q.to(left)).clamp_min(0)
            total = left.sum()
            # A drafter that all but equals the model can leave nothing but rounding; then p itself is what is left.
            left = left / total if total > 0 else p[node + 1].float()
        else:
            return tuple(path), chance.categorical(left)

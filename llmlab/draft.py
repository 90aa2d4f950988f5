"""A draft is a tree of guessed tokens; `accept` decides, for greedy and sampled decoding, which path of it survives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from llmlab.models.tables import argmax


@dataclass(frozen=True)
class Draft:
    """Guessed tokens as a tree. Node i continues node `parents[i]`, or the last committed token where that is -1.

    Parents come before their children. `q[i]` is the distribution (V,) that node i was drawn from; None where the
    drafter was certain, which is the one-hot distribution of that token.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    q: tuple[Tensor | None, ...] = ()

    @classmethod
    def chain(cls, tokens: Sequence[int], q: Sequence[Tensor | None] = ()) -> Draft:
        """One guess after the other, without branches."""
        n = len(tokens)
        return cls(tuple(tokens), tuple(range(-1, n - 1)), tuple(q) if len(q) else (None,) * n)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        return all(p == i - 1 for i, p in enumerate(self.parents))

    def depths(self) -> list[int]:
        """How many steps each node lies after the last committed token (1 for its children)."""
        depths: list[int] = []
        for p in self.parents:
            depths.append(1 if p < 0 else depths[p] + 1)
        return depths

    def children(self, node: int) -> list[int]:
        return [i for i, p in enumerate(self.parents) if p == node]

    def scores(self, y: Tensor) -> Tensor:
        """(N,): of y (T, V), said after the root and after every node, what each node's token got after its parent."""
        return y[[p + 1 for p in self.parents], list(self.tokens)]

    def longest(self, fits: Sequence[bool], value: Tensor) -> tuple[int, ...]:
        """The longest path from the root through nodes that fit; of several, the one whose `value` (N,) adds up to
        most."""
        worth = value.tolist()
        reached: dict[int, tuple[int, float]] = {-1: (0, 0.0)}
        for i, p in enumerate(self.parents):
            if fits[i] and p in reached:
                reached[i] = (reached[p][0] + 1, reached[p][1] + worth[i])
        node, path = max(reached, key=reached.__getitem__), []
        while node >= 0:
            path.append(node)
            node = self.parents[node]
        return tuple(reversed(path))

    def clipped(self, depth: int) -> Draft:
        """The draft without what lies deeper than `depth`."""
        depths = self.depths()
        if not depths or max(depths) <= depth:
            return self
        kept = [i for i, d in enumerate(depths) if d <= depth]
        place = {old: new for new, old in enumerate(kept)} | {-1: -1}
        return Draft(
            tuple(self.tokens[i] for i in kept),
            tuple(place[self.parents[i]] for i in kept),
            tuple(self.q[i] for i in kept),
        )

    def visible(self) -> Tensor:
        """(T, T) bool with T = 1 + nodes: what each of the root and the nodes attends to: itself and its ancestors."""
        T = 1 + len(self)
        mask = torch.eye(T, dtype=torch.bool)
        for i, p in enumerate(self.parents):
            mask[i + 1] |= mask[p + 1]
        return mask


@dataclass(frozen=True)
class Verdict:
    """What became of a draft: the accepted nodes, and the tokens that were committed (the last is the model's own)."""

    path: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    draft: Draft = field(default_factory=Draft)
    best: tuple[int, ...] = ()
    """The model's likeliest token after the last committed one and after every node of the draft: 1 + nodes."""


class Chance(Protocol):
    """The two random acts of acceptance. Tests replace it by one that enumerates every outcome."""

    def coin(self, p: float) -> bool: ...

    def pick(self, p: Tensor) -> int: ...


class Dice:
    """Chance from a seeded generator."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def coin(self, p: float) -> bool:
        return torch.rand((), generator=self.generator).item() < p

    def pick(self, p: Tensor) -> int:
        return int(torch.multinomial(p.float().cpu(), 1, generator=self.generator).item())


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

    def drawn(self, logits: Tensor, chance: Chance) -> int:
        """A token after logits (V,): the best one when greedy, else one that chance picks."""
        return argmax(logits[None])[0] if self.greedy else chance.pick(self.distribution(logits))


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
    draft: Draft, p: Tensor, chance: Chance, lenience: float = 1.0, sure: int = 0
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
            if len(path) < sure or chance.coin(min(1.0, float(left[x]) / max(asked, 1e-38))):
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
            return tuple(path), chance.pick(left)

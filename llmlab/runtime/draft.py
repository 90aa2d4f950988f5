"""A draft: guessed tokens as a tree, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmlab.models.decoder import Plan


@dataclass(frozen=True)
class Draft:
    """Guessed tokens as a tree. Node i continues node `parents[i]`, or the last committed token where that is -1.

    Parents come before their children. `q[i]` is the distribution (V,) that node i was drawn from; None where the
    drafter was certain, which is the one-hot distribution of that token.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    q: tuple[Tensor | None, ...] = ()
    plan: Plan | None = None
    """Which layers the pass that checks it goes through, where the drafter has run some of them already."""

    @classmethod
    def chain(cls, tokens: Sequence[int], q: Sequence[Tensor | None] = (), plan: Plan | None = None) -> Draft:
        """One guess after the other, without branches."""
        n = len(tokens)
        return cls(tuple(tokens), tuple(range(-1, n - 1)), tuple(q) if len(q) else (None,) * n, plan)

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
        """(N,): of y (T, V), a row for the root and each node, the entry of each node's token in its parent's row."""
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
            self.plan,
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

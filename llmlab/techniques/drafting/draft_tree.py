"""What drafters share: a tree that merges common beginnings, and guesses written by a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from llmlab.errors import Refused
from llmlab.models.decoder import Plan
from llmlab.runtime.draft import Draft
from llmlab.runtime.session import Session

MOST = 63
"""Nodes of a tree grown by a model: with the root, what one pass can still check at a sensible price."""

TREES = ("1", "2x1", "2x2x1", "3x2x1", "*")
"""Children per step that the page offers; `branches` reads them, and any other."""


# Trees ----------------------------------------------------------------------------------------------------------


def without(q: Tensor, tokens: Iterable[int]) -> Tensor | None:
    """The distribution q (V,) given that none of `tokens` comes up; None where nothing else can."""
    rest = q.clone()
    rest[list(tokens)] = 0
    total = rest.sum()
    return rest / total if total > 0 else None


class Tree:
    """A draft under way. What begins alike is one path: no two children of a node are the same token.

    That stays exact under sampling. A guess that an earlier sibling has made already falls away, whatever becomes of
    that sibling; one that stays was drawn from its q given that it differs from its earlier siblings, and that is the
    q it is tried with (recursive rejection sampling, Jeon et al., arXiv 2402.14160, section 3).
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.q: list[Tensor | None] = []
        self._children: dict[int, dict[int, int]] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, parent: int, token: int, q: Tensor | None = None) -> int:
        """The node of `token` after the node `parent`, -1 for the root; q (V,) is what it was drawn from, if it was."""
        siblings = self._children.setdefault(parent, {})
        if token not in siblings:
            siblings[token] = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(parent)
            self.q.append(q if q is None else without(q, [t for t in siblings if t != token]))
        return siblings[token]

    def path(self, tokens: Sequence[int], parent: int = -1) -> int:
        """The last node of certain guesses one after the other."""
        for token in tokens:
            parent = self.add(parent, token)
        return parent

    def merge(self, draft: Draft, most: int) -> list[int | None]:
        """Take in a whole draft, up to `most` nodes in all; where each of its nodes is now, None for what is left out.

        What is left out depends on how many nodes there are, never on which token was drawn; else the output would no
        longer follow the model.
        """
        place: list[int | None] = []
        for token, parent, q in zip(draft.tokens, draft.parents, draft.q, strict=True):
            above = -1 if parent < 0 else place[parent]
            known = above is not None and token in self._children.get(above, {})
            place.append(self.add(above, token, q) if above is not None and (known or len(self) < most) else None)
        return place

    def draft(self) -> Draft:
        return Draft(tuple(self.tokens), tuple(self.parents), tuple(self.q))


def branches(text: str, who: str) -> tuple[int, ...]:
    """How many children a node gets, by depth: "2x2x1" as (2, 2, 1), SpecInfer's expansion configuration.

    Raises Refused, in the name of `who`, for text that says no such thing.
    """
    if not re.fullmatch(r"[1-8](x[1-8]){0,15}", text):
        now = "Give numbers from 1 to 8 joined by x, such as 1 or 2x2x1"
        raise Refused(who, f"cannot read {text[:40]!r} as children per step", now)
    return tuple(int(b) for b in text.split("x"))


# Guesses written by a model -------------------------------------------------------------------------------------


def chain(session: Session, ahead: Session, length: int, confidence: float, plan: Plan | None = None) -> Draft:
    """`length` guesses one after the other, each from a pass of `ahead`, which is left standing after them.

    Under greedy decoding the draft ends before the first guess less likely than `confidence`.
    """
    tokens: list[int] = []
    q: list[Tensor | None] = []
    while len(tokens) < length:
        token, law, sure = session.sample_draft(ahead.forward(plan=plan).logits[0])
        if session.sampler.greedy and sure < confidence:
            break
        tokens.append(token)
        q.append(law)
        ahead.append_token(token)
    return Draft.chain(tokens, q)


def grow(
    session: Session, score: Callable[[Draft], Tensor], shape: Sequence[int], length: int, confidence: float
) -> Draft:
    """A tree of guesses, `length` deep, grown level by level: one pass of the drafting model for each.

    `score(draft)` gives that model's logits (1 + nodes, V). A node at depth i gets `shape[i]` children, the last number
    holding for all deeper ones: the likeliest tokens under greedy decoding, unless these together are less likely than
    `confidence`; else tokens drawn one after the other, no two alike.
    """
    tree, leaves = Tree(), [-1]
    for depth in range(length):
        logits = score(tree.draft())
        count = shape[min(depth, len(shape) - 1)]
        level = []
        for node in leaves:
            for token, q in _children(session, logits[node + 1], count, confidence)[: MOST - len(tree)]:
                level.append(tree.add(node, token, q))
        leaves = level
        if not leaves:
            break
    return tree.draft()


def _children(session: Session, y: Tensor, count: int, confidence: float) -> list[tuple[int, Tensor | None]]:
    if session.sampler.greedy:
        p, best = torch.softmax(y.float(), -1).topk(min(count, len(y)))
        likely: list[tuple[int, Tensor | None]] = [
            (token, None) for token, chance in zip(best.tolist(), p.tolist(), strict=True) if chance > 0
        ]
        return likely if float(p.sum()) >= confidence else []
    q = session.sampler.distribution(y)
    drawn: list[tuple[int, Tensor | None]] = []
    while len(drawn) < count and (rest := without(q, [token for token, _ in drawn])) is not None:
        drawn.append((session.random.categorical(rest), rest))
    return drawn

from __future__ import annotations

import heapq
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmlab.abilities import Ability
from llmlab.doors import Drafter
from llmlab.draft import Draft, Verdict
from llmlab.memory import Memory
from llmlab.models.feature_drafter import FeatureDrafter
from llmlab.session import Session
from llmlab.technique import knob
from llmlab.tools import Tools


@dataclass(frozen=True)
class Eagle(Drafter):
    """EAGLE.

    Idea: The model's hidden states say more about what comes next than its tokens do. One trained layer continues
    them, and the model checks what it guesses, a chain or a small tree, in one pass.
    Rule: h = layer(W [g_t; e(x_{t+1})]) with g the model's hidden states after some layers, or the layer's own h where
    the model has not been yet; the next word is head(norm(h)). A node's value is the product of the probabilities on
    its path: the `nodes` of highest value are drafted, none below `confidence`.
    Watch: Tokens per pass, and acceptance by position: each guess rests on the one before it. A small confidence drafts
    more and is wrong more often.
    Differs: States after a middle and the last layer are fused (EAGLE-3 takes three layers); it learns the model's own
    distribution over its own guesses without EAGLE-1's regression of states; the head knows a shortlist of words
    (FR-Spec). Under sampling the draft is a chain drawn from the shortlist.
    """

    covers = (
        "https://arxiv.org/abs/2401.15077",
        "https://arxiv.org/abs/2406.16858",
        "https://arxiv.org/abs/2503.01840",
        "https://arxiv.org/abs/2502.14856",
    )
    needs = Drafter.needs | {Ability.STATES}
    claim = "One small trained layer guesses from the model's own hidden states."
    part = "eagle"

    nodes: int = knob(3, 1, 31, "tokens drafted per pass")
    length: int = knob(3, 1, 16, "longest path")
    breadth: int = knob(1, 1, 8, "guesses after each token; 1 drafts a chain")
    confidence: float = knob(0.5, 0.0, 1.0, "leave out what is less likely than this")

    def prepare(self, model: Any, tools: Tools) -> None:
        tools.part(self.part, model, self.title, FeatureDrafter)

    def taps(self, model: Any, tools: Tools) -> tuple[int, ...]:
        return tools.part(self.part, model, self.title, FeatureDrafter).taps

    def drafts(self, session: Session, tools: Tools) -> Generator[Draft, Verdict, None]:
        net = tools.part(self.part, session.model, self.title, FeatureDrafter)
        memory = net.memory()
        tools.memories.append(memory)
        held = 0  # rows of tokens that the model has committed
        while True:
            memory.restore([held])
            fresh, tokens = session.states(), session.tokens
            if not len(fresh):  # a prompt of one token: the model has said nothing yet
                yield Draft()
                continue
            states, n = net.fused(fresh), len(fresh)
            h = net.forward(states, tokens[held + 1 : held + 1 + n], memory, range(held, held + n), None)[-1:]
            held += n
            room = min(self.length, session.room())
            if not session.sampler.greedy:
                yield self._drawn(net, memory, h, held, room, session)
            elif self.breadth == 1:
                yield self._chain(net, memory, h, held, room)
            else:
                yield self._tree(net, memory, h, held, room)

    def _chain(self, net: FeatureDrafter, memory: Memory, h: Tensor, held: int, room: int) -> Draft:
        """The likeliest word, and the likeliest after it, while the path stays likely enough."""
        tokens: list[int] = []
        value, room = 1.0, min(room, self.nodes)
        while room:
            y = net.logits(h)[0]
            best, at = y.max(0)
            value *= float((best - y.logsumexp(0)).exp())
            if value < self.confidence:
                break
            tokens.append(int(net.shortlist[at]))
            if len(tokens) == room:
                break
            h = net.forward(h, tokens[-1:], memory, [held + len(tokens) - 1], None)
        return Draft.chain(tokens)

    def _drawn(self, net: FeatureDrafter, memory: Memory, h: Tensor, held: int, room: int, session: Session) -> Draft:
        """A chain drawn as the run samples, from the shortlist; `accept` needs the distributions it was drawn from."""
        tokens: list[int] = []
        q: list[Tensor] = []
        value = 1.0
        while len(tokens) < min(room, self.nodes) and value >= self.confidence:
            logits = h.new_full((session.model.shape.vocab,), -torch.inf)
            logits[net.shortlist] = net.logits(h)[0]
            p = session.sampler.distribution(logits)
            token = session.chance.pick(p)
            value *= float(p.max())  # of the draft so far, not of what was drawn: a draw must not decide to be seen
            tokens.append(token)
            q.append(p)
            h = net.forward(h, [token], memory, [held + len(tokens) - 1], None)
        return Draft.chain(tokens, q)

    def _tree(self, net: FeatureDrafter, memory: Memory, h: Tensor, held: int, room: int) -> Draft:
        """EAGLE-2's dynamic tree: expand the nodes of highest value level by level, then draft the best of all."""
        tree = _Tree(net, memory, h[0], held)
        parents, states = [-1], h
        for depth in range(1, room + 1):
            p, at = torch.softmax(net.logits(states), -1).topk(self.breadth, -1)
            level = tree.add(parents, p.tolist(), net.shortlist[at].tolist(), self.confidence)
            best = set(tree.best(self.nodes))  # what will not be drafted need not be expanded
            parents = sorted(best.intersection(heapq.nlargest(self.breadth, level, key=tree.value.__getitem__)))
            if not parents or depth == room:
                break
            states = tree.expand(parents)
        memory.restore([held])
        chosen = tree.best(self.nodes)
        place = {node: i for i, node in enumerate(chosen)} | {-1: -1}
        parents = [place[tree.parent[i]] for i in chosen]
        return Draft(tuple(tree.token[i] for i in chosen), tuple(parents), (None,) * len(chosen))


class _Tree:
    """A draft under way: per node its value, parent and token, and the layer's output where it was expanded."""

    def __init__(self, net: FeatureDrafter, memory: Memory, root: Tensor, held: int) -> None:
        self.net, self.memory, self.root, self.held = net, memory, root, held
        self.value: list[float] = []
        self.parent: list[int] = []
        self.token: list[int] = []
        self.out: dict[int, Tensor] = {}

    def add(self, parents: list[int], p: list[list[float]], words: list[list[int]], least: float) -> list[int]:
        """New nodes: for each parent its words with their probabilities, where the path is worth `least`."""
        first = len(self.value)
        for parent, row, tokens in zip(parents, p, words, strict=True):
            above = self.value[parent] if parent >= 0 else 1.0
            for probability, token in zip(row, tokens, strict=True):
                if above * probability >= least:
                    self.value.append(above * probability)
                    self.parent.append(parent)
                    self.token.append(token)
        return list(range(first, len(self.value)))

    def best(self, count: int) -> list[int]:
        """The nodes of highest value, parents first: none is worth less than its children."""
        return sorted(sorted(range(len(self.value)), key=lambda i: (-self.value[i], i))[:count])

    def expand(self, new: list[int]) -> Tensor:
        """The layer's output (n, E) after these nodes.

        All expanded nodes go through the layer together each time: the tree is small, and nothing need be put in order
        in the memory.
        """
        nodes = [*self.out, *new]
        place = {node: i for i, node in enumerate(nodes)}
        visible = torch.eye(len(nodes), dtype=torch.bool)
        depths, states = [], []
        for i, node in enumerate(nodes):
            above = self.parent[node]
            depths.append(0 if above < 0 else depths[place[above]] + 1)
            states.append(self.root if above < 0 else self.out[above])
            if above >= 0:
                visible[i] |= visible[place[above]]
        self.memory.restore([self.held])
        tokens, places = [self.token[n] for n in nodes], [self.held + d for d in depths]
        out = self.net.forward(torch.stack(states), tokens, self.memory, places, visible)
        self.out.update(zip(nodes, out, strict=True))
        return out[-len(new) :]

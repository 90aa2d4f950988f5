from __future__ import annotations

import heapq
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmlab.kv.memory import Memory
from llmlab.models.auxiliary.feature_drafter import FeatureDrafter, GrowingTree
from llmlab.models.capabilities import Capability
from llmlab.runtime.configurable import knob
from llmlab.runtime.draft import Draft, Verdict
from llmlab.runtime.roles import Drafter
from llmlab.runtime.session import Session
from llmlab.runtime.tools import Tools


@dataclass(frozen=True)
class Eagle(Drafter):
    """EAGLE.

    Idea: The model's hidden states say more about what comes next than its tokens do. One trained layer continues
    them, and the model checks what it guesses, a chain or a small tree, in one pass.
    Method: h = layer(W [g_t; e(x_{t+1})]) with g the model's hidden states after some layers, or the layer's own h
    where the model has not been yet; the next word is head(norm(h)). A node's value is the product of the probabilities
    on its path: the `nodes` of highest value are drafted, none below `confidence`.
    What to look for: Tokens per pass, and acceptance by position: each guess rests on the one before it. A small
    confidence drafts more and is wrong more often.
    Differences from the paper: States after a middle and the last layer are fused (EAGLE-3 takes three layers); it
    learns the model's own distribution over its own guesses without EAGLE-1's regression of states; the head knows a
    shortlist of words (FR-Spec). Under sampling the draft is a chain drawn from the shortlist.
    """

    covers = (
        "https://arxiv.org/abs/2401.15077",
        "https://arxiv.org/abs/2406.16858",
        "https://arxiv.org/abs/2503.01840",
        "https://arxiv.org/abs/2502.14856",
    )
    needs = Drafter.needs | {Capability.STATES}
    claim = "One small trained layer guesses from the model's own hidden states."
    claim_zh = "一个训练好的小层，根据模型自己的隐藏状态来猜。"
    biting_settings = {"confidence": 0.0, "breadth": 8, "nodes": 31, "length": 4}
    main_knob = "length"
    part = "eagle"

    nodes: int = knob(2, 1, 31, "tokens drafted per pass")
    length: int = knob(2, 1, 16, "longest path")
    breadth: int = knob(1, 1, 8, "guesses after each token; 1 drafts a chain")
    confidence: float = knob(0.3, 0.0, 1.0, "leave out what is less likely than this")

    def prepare(self, model: Any, tools: Tools) -> None:
        tools.part(self.part, model, self.title, FeatureDrafter)

    def taps(self, model: Any, tools: Tools) -> tuple[int, ...]:
        return tools.part(self.part, model, self.title, FeatureDrafter).taps

    def drafts(self, session: Session, tools: Tools) -> Generator[Draft, Verdict, None]:
        net = tools.part(self.part, session.model, self.title, FeatureDrafter)
        memory = tools.remember(net.memory())
        held = 0  # rows of tokens that the model has committed
        while True:
            memory.restore([held])
            fresh, tokens = session.states(), session.tokens
            if not len(fresh):  # a prompt of one token: the model has computed no state yet
                yield Draft()
                continue
            states, n = net.fused(fresh), len(fresh)
            h = net.forward(states, tokens[held + 1 : held + 1 + n], memory, range(held, held + n), None)[-1:]
            held += n
            room = min(self.length, session.max_draft_depth())
            if session.sampler.greedy and self.breadth > 1:
                yield self._tree(net, memory, h, held, room)
            else:
                yield self._chain(net, memory, h, held, min(room, self.nodes), session)

    def _chain(self, net: FeatureDrafter, memory: Memory, h: Tensor, held: int, room: int, session: Session) -> Draft:
        """The likeliest word after each other, or, under sampling, words drawn as the run draws from the shortlist."""
        tokens: list[int] = []
        q: list[Tensor | None] = []
        value = 1.0
        for i in range(room):
            if i:
                h = net.forward(h, tokens[-1:], memory, [held + i - 1], None)
            y, law = net.logits(h)[0], None
            best, at = y.max(0)
            value *= float((best - y.logsumexp(0)).exp())
            if value < self.confidence:  # whether a word is drafted must not depend on which one was drawn
                break
            token = int(net.shortlist[at])
            if not session.sampler.greedy:
                law = session.sampler.distribution(
                    y.new_full((session.model.shape.vocab,), -torch.inf).index_copy(0, net.shortlist, y)
                )
                token = session.random.categorical(law)
            tokens.append(token)
            q.append(law)
        return Draft.chain(tokens, q)

    def _tree(self, net: FeatureDrafter, memory: Memory, h: Tensor, held: int, room: int) -> Draft:
        """EAGLE-2's dynamic tree: expand the nodes of highest value level by level, then draft the best of all."""
        tree = GrowingTree(net, memory, h[0], held)
        parents, states = [-1], h
        for depth in range(1, room + 1):
            p, at = torch.softmax(net.logits(states), -1).topk(self.breadth, -1)
            level = tree.add(parents, p.tolist(), net.shortlist[at].tolist(), self.confidence)
            best = set(tree.best(self.nodes))  # what will not be drafted need not be expanded
            likely = heapq.nlargest(self.breadth, level, key=tree.value.__getitem__)
            parents = sorted(best.intersection(likely))
            if not parents or depth == room:
                break
            states = tree.expand(parents)
        memory.restore([held])
        chosen = tree.best(self.nodes)
        place = {node: i for i, node in enumerate(chosen)} | {-1: -1}
        parents = [place[tree.parent[i]] for i in chosen]
        return Draft(tuple(tree.token[i] for i in chosen), tuple(parents), (None,) * len(chosen))

from __future__ import annotations

import heapq
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.models.capabilities import Capability
from llmlab.models.decoder import Decoder
from llmlab.models.work import Work
from llmlab.runtime.configurable import knob
from llmlab.runtime.draft import Draft, Verdict
from llmlab.runtime.roles import Drafter
from llmlab.runtime.session import Session
from llmlab.runtime.tools import Tools


class Heads:
    """The trained part "heads" beside its model: blocks (K, E, E) and the model's head cut to a shortlist (S, E)."""

    def __init__(self, model: Decoder, part: dict[str, Tensor]) -> None:
        self.norm, self.work = model.norm, Work()
        self.shortlist = part["shortlist"].long().to(model.device)
        self.blocks = part["blocks"].float().to(model.device)
        self.taps = (len(model.layers),)
        self.head = model.short_head(self.shortlist)

    @torch.inference_mode()
    def likeliest(self, state: Tensor, heads: int, count: int) -> tuple[list[list[float]], list[list[int]]]:
        """From the last hidden state (E,): per head the `count` best words' probabilities and the words."""
        x = self.norm(state[None])
        h = x + F.silu(torch.matmul(self.blocks[:heads], x[0]))  # (K, E)
        self.work.flops += 2.0 * self.blocks[:heads].numel()
        self.work.products(heads, self.head)
        p, at = torch.softmax(self.head(h), -1).topk(count, -1)
        return p.tolist(), self.shortlist[at].tolist()


@dataclass(frozen=True)
class DraftHeads(Drafter):
    """Draft heads.

    Idea: Small heads on the model's last hidden state guess the tokens after the next one, all at once and each without
    knowing the others' guesses. The model's next pass checks them.
    Method: Head k says softmax(W (x + silu(B_k x))) with x the last state and W the model's head. A path's value is the
    product of its heads' probabilities; the `nodes` paths of highest value, none below `confidence`, form the tree.
    What to look for: Acceptance by position. It falls quickly: the second head does not know what the first one's place
    was given.
    Differences from the paper: Blockwise decoding trains the whole model with its heads and drafts one chain (`breadth`
    1); Medusa's tree is fixed beforehand, this one follows the probabilities. The head knows a shortlist of words. The
    rules of acceptance that change the text are techniques of their own.
    """

    covers = ("blockwise-parallel", "https://arxiv.org/abs/2401.10774")
    needs = Drafter.needs | {Capability.STATES}
    claim = "Small trained heads guess several tokens at once from one hidden state."
    claim_zh = "训练好的小头从一个隐藏状态一次猜出几个词元。"
    biting_settings = {"confidence": 0.0, "breadth": 4, "nodes": 15}
    main_knob = "nodes"

    heads: int = knob(3, 1, 8, "heads asked: tokens guessed in a row")
    nodes: int = knob(3, 1, 31, "tokens drafted per pass")
    breadth: int = knob(1, 1, 8, "guesses of each head; 1 drafts a chain")
    confidence: float = knob(0.4, 0.0, 1.0, "leave out what is less likely than this")

    def prepare(self, model: Any, tools: Tools) -> None:
        self.taps(model, tools)

    def taps(self, model: Any, tools: Tools) -> tuple[int, ...]:
        return tools.part("heads", model, self.title, Heads).taps

    def drafts(self, session: Session, tools: Tools) -> Generator[Draft, Verdict, None]:
        net = tools.part("heads", session.model, self.title, Heads)
        heads = min(self.heads, len(net.blocks))
        while True:
            states, room = session.states(), min(heads, session.max_draft_depth())
            if not len(states) or room < 1:
                yield Draft()
                continue
            p, words = net.likeliest(states[-1, -1], room, self.breadth)
            yield self._tree(p, words)

    def _tree(self, p: list[list[float]], words: list[list[int]]) -> Draft:
        """The most valuable paths first: a node's children become candidates once it has been chosen."""
        tokens: list[int] = []
        parents: list[int] = []
        waiting = [(-value, -1, 0, word) for value, word in zip(p[0], words[0], strict=True)]
        heapq.heapify(waiting)
        while waiting and len(tokens) < self.nodes:
            value, parent, depth, word = heapq.heappop(waiting)
            if -value < self.confidence:
                break
            tokens.append(word)
            parents.append(parent)
            if depth + 1 < len(p):
                for probability, following in zip(p[depth + 1], words[depth + 1], strict=True):
                    heapq.heappush(waiting, (value * probability, len(tokens) - 1, depth + 1, following))
        return Draft(tuple(tokens), tuple(parents), (None,) * len(tokens))

"""EAGLE's network: one layer that continues a model's own hidden states, and so guesses its next tokens.

Shapes: n rows, E width, S words of the shortlist. Row t is made of the model's tapped states at token t and of token
t + 1; its output stands for the state of token t + 1, from which the head guesses token t + 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.kv.memory import Memory
from llmlab.models.batch import Batch, Span
from llmlab.models.block import Block
from llmlab.models.decoder import Decoder
from llmlab.models.feed_forward.gated import GatedFeedForward
from llmlab.models.formats.linear import nbytes
from llmlab.models.formats.registry import make_linear
from llmlab.models.mixers.attention import Attention
from llmlab.models.norm import Norm
from llmlab.models.work import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

MATRICES = ("fuse", "join", "qkv", "out", "gate_up", "down")


class FeatureDrafter:
    """The trained part called "eagle" beside its model, whose embedding and head it shares.

    The head is cut to a shortlist of the words that the model says most (FR-Spec, arXiv 2502.14856): with 49 152 words
    it would cost more than the layer.
    """

    def __init__(self, model: Decoder, part: Mapping[str, Tensor]) -> None:
        weights = model.auxiliary_format
        put = {k: v.float().to(model.device) for k, v in part.items() if k not in ("taps", "shortlist")}
        matrix = {name: make_linear(put[name], weights) for name in MATRICES}
        self.taps = tuple(part["taps"].tolist())
        self.shortlist = part["shortlist"].long().to(model.device)
        s, eps = replace(model.shape, layers=1, window=(None,)), model.shape.eps
        block = Block(
            0,
            Norm(put["norm_attention"], eps),
            Attention(s, None, matrix["qkv"], matrix["out"]),
            Norm(put["norm_feed"], eps),
            GatedFeedForward(matrix["gate_up"], matrix["down"]),
        )
        self.decoder = Decoder(s, model.embedding, [block], Norm(put["norm_out"], eps), model.rotary, weights)
        self.fuse, self.join = matrix["fuse"], matrix["join"]
        self.norm_taps, self.norm_state, self.norm_token = put["norm_taps"], put["norm_state"], put["norm_token"]
        self.head = model.short_head(self.shortlist)

    @property
    def nbytes(self) -> int:
        """Bytes that it adds to its model."""
        return sum(nbytes(part) for part in (*self.decoder.layers, self.fuse, self.join, self.head))

    @property
    def work(self) -> Work:
        """What it has computed."""
        return self.decoder.work

    @property
    def buffer_bytes(self) -> int:
        """As `Decoder.buffer_bytes`, without the rotations that it shares with its model."""
        return self.decoder.buffer_bytes - self.decoder.rotary.table_bytes

    def memory(self) -> Memory:
        return self.decoder.memory()

    def fused(self, states: Tensor) -> Tensor:
        """The tapped states (n, taps, E) of n tokens as one (n, E)."""
        x = F.rms_norm(states.float(), states.shape[-1:], None, self.decoder.shape.eps) * self.norm_taps
        self.work.products(len(x), self.fuse)
        return self.fuse(x.flatten(1))

    @torch.inference_mode()
    def forward(
        self, states: Tensor, tokens: Sequence[int], memory: Memory, places: Sequence[int], visible: Tensor | None
    ) -> Tensor:
        """states (n, E), fused or its own earlier output, and the token after each; returns (n, E).

        `places`: each row's position. `visible` (n, n) as `Span.visible`; None for a chain, whose places follow on.
        """
        device, width, eps = self.decoder.device, states.shape[-1:], self.decoder.shape.eps
        at = torch.tensor(tokens, device=device)
        token = F.rms_norm(self.decoder.embedding.lookup(at), width, self.norm_token, eps)
        self.work.products(len(tokens), self.join)
        joined = self.join(torch.cat([F.rms_norm(states, width, self.norm_state, eps), token], -1))
        span = Span(0, len(tokens), memory, visible, first=places[0] if visible is None else None)
        batch = Batch(at, torch.tensor(places, device=device), [span])
        self.decoder.prepare(batch)
        return self.decoder.run_layers(joined, batch).clone()  # a pass of a few rows changes its states in place

    def logits(self, h: Tensor) -> Tensor:
        """(n, E) to (n, S) float32: which word of the shortlist comes after the next token."""
        self.work.products(len(h), self.head)
        return self.head(self.decoder.norm(h))


class GrowingTree:
    """A tree of guesses under way: per node its value, parent and token, and the layer's output once expanded."""

    def __init__(self, net: FeatureDrafter, memory: Memory, root: Tensor, held: int) -> None:
        self.network, self.memory, self.root, self.held = net, memory, root, held
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
        depths: list[int] = []
        states: list[Tensor] = []
        for i, node in enumerate(nodes):
            above = self.parent[node]
            depths.append(0 if above < 0 else depths[place[above]] + 1)
            states.append(self.root if above < 0 else self.out[above])
            if above >= 0:
                visible[i] |= visible[place[above]]
        self.memory.restore([self.held])
        tokens, places = [self.token[n] for n in nodes], [self.held + d for d in depths]
        out = self.network.forward(torch.stack(states), tokens, self.memory, places, visible)
        self.out.update(zip(nodes, out, strict=True))
        return out[-len(new) :]

"""Our decoder: a ragged batch in, logits out. Linears see (N, E); only attention knows where sequences begin.

Shapes: N tokens of all sequences end to end, H query heads, G query heads per key-value head, D head size, E width.
Query and key rows are stored in interleaved order, so that a rotation is one complex product.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from llmlab.kv.memory import Memory
from llmlab.kv.rows import Rows
from llmlab.models.batch import Batch
from llmlab.models.block import Block, Norm
from llmlab.models.capabilities import Capability
from llmlab.models.embedding import EmbeddingAndHead
from llmlab.models.formats.linear import Linear, nbytes
from llmlab.models.formats.quantized_groups import GROUP
from llmlab.models.formats.registry import make_linear
from llmlab.models.kernels import cpu_decode, cuda_graph
from llmlab.models.shape import Shape


class Depth(Protocol):
    """Which layers a batch goes through. The decoder's own is `every_layer`.

    Returns the hidden states (N, E), and the logits (N, V) where it has already had to compute them.
    """

    def __call__(self, model: Decoder, h: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]: ...


def every_layer(model: Decoder, h: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
    for block in model.layers:
        h = block(h, batch)
    return h, None


class Taps:
    """A depth that goes through every layer and keeps what stands after some of them, counted from 1."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self.states: list[Tensor] = []

    def __call__(self, model: Decoder, h: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        self.states = []
        for i, block in enumerate(model.layers, 1):
            h = block(h, batch)
            if i in self.layers:
                self.states.append(h.clone())  # a pass of a few rows changes h in place
        return h, None

    def taken(self) -> Tensor:
        """(N, taps, E) of the last pass."""
        return torch.stack(self.states, 1)


class Decoder(nn.Module):
    """A decoder-only transformer of the Llama kind, with its weights in one of the formats of `linears`."""

    capabilities = frozenset(Capability)
    fast = True

    def __init__(
        self, shape: Shape, tables: EmbeddingAndHead, layers: list[Block], norm: Norm, rotations: Tensor, weights: str
    ) -> None:
        """rotations (D/2,) float32: the angle per position of each pair; see `families` for scaled variants."""
        super().__init__()
        self.shape, self.embedding, self.layers, self.norm, self.weights = (
            shape,
            tables,
            nn.ModuleList(layers),
            norm,
            weights,
        )
        self.register_buffer("angles", rotations.float())
        self.rotation_scale = 1.0
        self._table: Tensor | None = None
        self._few: dict[int, cpu_decode.DecodeWorkspace] = {}
        self._step: cuda_graph.Step | None = None
        self.graphs = self.device.type == "cuda"

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @property
    def nbytes(self) -> int:
        return nbytes(self)

    @property
    def copied_bytes(self) -> int:
        """Bytes of what `keep_copies` has kept, which are among `nbytes`."""
        linears = [m for m in self.layers.modules() if isinstance(m, Linear)]
        return self.embedding.candidate_head_bytes + sum(part.nbytes for m in linears for part in m.copy)

    @property
    def rotations(self) -> Tensor:
        """(positions, D/2) complex: the turns known so far."""
        assert self._table is not None
        return self._table

    @property
    def context(self) -> int:
        return self.shape.context

    @property
    def beside(self) -> str:
        """The weight format of small parts that run beside it: its own where that is dense, else int4 if it fits."""
        return self.weights if self.weights.startswith("dense") or self.shape.width % GROUP else "int4"

    def short_head(self, words: Tensor) -> Linear:
        """The head cut to `words` (S,), in that format."""
        return make_linear(self.embedding.head.rows(words), self.beside)

    def keep_prefill_copies(self) -> None:
        """Trade memory for time: keep the head in a quicker form, and packed matrices in bfloat16 for reading prompts.

        Everything kept is counted in `nbytes`. Does nothing for what gains nothing by it here.
        """
        self.embedding.keep_candidate_head()
        if self.device.type == "cpu":
            for block in self.layers:
                for part in (block.qkv, block.out, block.down):
                    part.keep_copy()
                block.gate_up.keep_copy(2)

    def reference_copy(self) -> Decoder:
        """A copy that goes through its layers only as the papers write them: what the fast ways are held to."""
        twin = self.private_copy()
        twin.fast = False
        for block in twin.layers:
            block.plain = True
        return twin

    def private_copy(self) -> Decoder:
        """A copy whose layers may be changed; embedding, head and final norm stay shared with this one."""
        twin = Decoder(
            self.shape, self.embedding, copy.deepcopy(list(self.layers)), self.norm, self.angles, self.weights
        )
        twin.rotation_scale = self.rotation_scale
        return twin.eval()

    def memory(self) -> Memory:
        """An empty key-value store for one sequence: float32, or bfloat16 beside dense bfloat16 weights on a GPU."""
        dtype = torch.bfloat16 if self.weights != "dense-fp32" and self.device.type == "cuda" else torch.float32
        s = self.shape
        return Memory([Rows(s.kv_heads, s.head_size, dtype, self.device) for _ in self.layers])

    def rotations_at(self, positions: Tensor) -> Tensor:
        """positions (…,) to unit rotations (…, D/2) complex."""
        highest = int(positions.max()) + 1 if positions.numel() else 1
        return self._rotation_table(highest)[positions]

    def _rotation_table(self, highest: int) -> Tensor:
        """The rotations of the positions below at least `highest`."""
        if self._table is None or self._table.shape[0] < highest or self._table.device != self.device:
            n = min(max(1024, 2 * highest), max(self.shape.context, highest))
            angle = torch.arange(n, device=self.device, dtype=torch.float32)[:, None] * self.angles
            self._table = torch.polar(torch.full_like(angle, self.rotation_scale), angle)
        return self._table

    def forward(self, batch: Batch, depth: Depth | None = None, last: int | None = None, best: int = 0) -> Tensor:
        """Logits (n, V) of the last n tokens of the batch, of all of them by default; memory grows by every token.

        `last=0` computes no logits at all: what reading a prompt needs. `best`: see `Tables.logits`.
        """
        if self.graphs and cuda_graph.suits(self, batch, depth, last):
            return self._replayed(batch, best)
        batch.rotation = self._rotation(batch)
        batch.kernel = self._way(batch)
        h = batch.kernel.begin(self, batch) if batch.kernel else self.embedding.lookup(batch.tokens)
        if last == 0 and depth is None and not any(span.watch for span in batch.spans):
            depth = all_but_the_last
        h, logits = (depth or every_layer)(self, h, batch)
        first = 0 if last is None else len(h) - last
        return self.head(h[first:], best) if logits is None else logits[first:]

    def _replayed(self, batch: Batch, best: int) -> Tensor:
        """The pass as a step of fixed shapes, which a GPU replays as a graph."""
        (span,) = batch.spans
        assert span.first is not None
        held = span.memory.layers[0].count
        for rows in span.memory.layers:
            rows.extend(range(span.first, span.first + 1))
        self._rotation_table(span.first + 1)
        if self._step is None or self._step.stale(span.memory, best):
            self._step = cuda_graph.Step(self, span.memory, best)
        return self._step(batch.tokens, span.first, held)

    def _rotation(self, batch: Batch) -> Tensor:
        firsts = [span.first for span in batch.spans]
        if len(firsts) == 1 and firsts[0] is not None:
            end = firsts[0] + len(batch.tokens)
            return self._rotation_table(end)[firsts[0] : end, None, :]
        return self.rotations_at(batch.positions)[:, None, :]

    def _way(self, batch: Batch) -> cpu_decode.DecodeWorkspace | None:
        """The way of a few rows for this pass, where there is one."""
        N = len(batch.tokens)
        short = N <= cpu_decode.ROWS and max((s.stop - s.start for s in batch.spans), default=0) <= SHORT
        if not self.fast or self.device.type != "cpu" or not (batch.exact or short) or not len(self.layers):
            return None
        if N not in self._few:
            self._few[N] = cpu_decode.DecodeWorkspace(self, N)
        return self._few[N]

    def head(self, h: Tensor, best: int = 0) -> Tensor:
        """Hidden states (n, E) of any layer to logits (n, V)."""
        return self.embedding.logits(self.norm(h), best) if len(h) else h.new_empty(0, self.shape.vocab)


SHORT = 8
"""Rows of one sequence up to which a pass goes the way of a few rows unasked."""


def all_but_the_last(model: Decoder, h: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Every layer, of the last of which only the keys and values are made: nobody looks at what it would say."""
    *most, last = model.layers
    for block in most:
        h = block(h, batch)
    return last(h, batch, fill=True), None

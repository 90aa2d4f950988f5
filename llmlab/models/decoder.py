"""Our decoder: a ragged batch in, logits out. Linears see (N, E); only mixers know where sequences begin.

Shapes: N tokens of all sequences end to end, L layers, taps T, D head size, E width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from llmlab.kv.memory import Memory
from llmlab.kv.rows import Rows
from llmlab.models import activations
from llmlab.models.batch import Batch, LayerKernel, Taps
from llmlab.models.block import Block, Blocks
from llmlab.models.capabilities import Capability
from llmlab.models.embedding import EmbeddingAndHead
from llmlab.models.formats.linear import Linear, nbytes
from llmlab.models.formats.onednn import bfloat16_instructions
from llmlab.models.formats.registry import make_linear
from llmlab.models.kernels import cuda_graph
from llmlab.models.kernels.cpu_decode import ROWS, BoundBlocks, DecodeWorkspace
from llmlab.models.kernels.cpu_prefill import CpuPrefill
from llmlab.models.kernels.reference import Reference
from llmlab.models.norm import Norm
from llmlab.models.not_finite import in_decoder
from llmlab.models.result import ForwardResult, PlanResult
from llmlab.models.rope import Rotary
from llmlab.models.shape import Shape
from llmlab.models.version import Version
from llmlab.models.work import BlockCost, Work, count_layers

SHORT = 8
"""Rows of one sequence up to which a pass is computed as one of a few rows unasked."""
WORKSPACES = 16
"""Widths of passes whose buffers are kept at once, the latest used; a text decodes with two or three."""


class Plan(Protocol):
    """Which layers a pass goes through: calls `model.run_layers` for stretches of them, and says what it did."""

    def __call__(self, model: Decoder, h: Tensor, batch: Batch) -> PlanResult: ...


class Decoder(nn.Module):
    """A decoder-only transformer with its weights in one of the formats of `formats`; its layers are `Block`s."""

    layers: Blocks

    def __init__(
        self,
        shape: Shape,
        embedding: EmbeddingAndHead,
        layers: list[Block],
        norm: Norm,
        rotary: Rotary,
        weights: str,
    ) -> None:
        super().__init__()
        self.shape, self.weights, self.fast = shape, weights, True
        self.version = Version()
        self.embedding, self.layers, self.norm = embedding, Blocks(layers), norm
        self.rotary = rotary
        self._bound = BoundBlocks(self.version)
        self._workspaces: OrderedDict[int, DecodeWorkspace] = OrderedDict()
        self._graph_step: cuda_graph.CudaGraphStep | None = None
        self.work = Work()
        self._costs: tuple[int, list[BlockCost]] = (-1, [])
        self.graphs = self.device.type == "cuda" and rotary.rule is None

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "layers":
            for i, block in enumerate(value):
                block.index = i
                block.share(self.version)
            self.version.bump()

    # What it is ---------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What techniques may do with it: what every one of its layers allows."""
        able = frozenset(Capability).intersection(*(block.mixer.capabilities for block in self.layers))
        return able if self.rotary.rule is None else able - {Capability.ROTARY}

    @property
    def context(self) -> int:
        return self.shape.context

    @property
    def vocab(self) -> int:
        """Tokens that have an embedding; the tokenizer may know more."""
        return self.shape.vocab

    @property
    def nbytes(self) -> int:
        return nbytes(self)

    @property
    def copied_bytes(self) -> int:
        """Bytes of what `keep_prefill_copies` has kept, which are among `nbytes`."""
        linears = [m for m in self.layers.modules() if isinstance(m, Linear)]
        return self.embedding.candidate_head_bytes + sum(m.copied_bytes for m in linears)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of what it keeps from pass to pass that is no weight: buffers of passes, and rotations."""
        return sum(w.nbytes for w in self._workspaces.values()) + self.rotary.table_bytes

    @property
    def pass_bytes(self) -> int:
        """Bytes of weights that decoding one token reads, in the forms that it reads."""
        return sum(c.few for c in self.costs) + self.embedding.read_bytes(1, EmbeddingAndHead.CANDIDATES)

    @property
    def auxiliary_format(self) -> str:
        """The weight format of small parts that run beside it: its own where that is dense, else int4."""
        return self.weights if self.weights.startswith("dense") else "int4"

    def short_head(self, words: Tensor) -> Linear:
        """The head cut to `words` (S,), in that format."""
        return make_linear(self.embedding.head.rows(words), self.auxiliary_format)

    # Copies -------------------------------------------------------------------------------------------------------

    def keep_prefill_copies(self) -> None:
        """Trade memory for time: keep the head in a quicker form, and packed matrices in bfloat16 for reading prompts.

        Everything kept is counted in `nbytes`. Does nothing for what gains nothing by it here.
        """
        self.embedding.keep_candidate_head()
        if self.device.type == "cpu":
            for block in self.layers:
                for name, linear in block.linears().items():
                    linear.keep_copy(2 if name == "gate_up" else 1)
            self.version.bump()

    def reference_copy(self) -> Decoder:
        """A copy that goes through its layers only as the papers write them: what the fast ways are held to."""
        twin = self.private_copy()
        twin.fast = False
        return twin

    def private_copy(self) -> Decoder:
        """A copy whose layers may be changed; embedding, head and final norm stay shared with this one."""
        return self._twin(copy.deepcopy(list(self.layers)))

    def mapped(self, make: Callable[[Linear], Linear]) -> Decoder:
        """The same with `make(matrix)` for every matrix of its layers; everything else is shared with this one."""
        return self._twin([block.mapped(make) for block in self.layers])

    def _twin(self, layers: list[Block]) -> Decoder:
        return Decoder(self.shape, self.embedding, layers, self.norm, self.rotary, self.weights).eval()

    def memory(self) -> Memory:
        """An empty memory for one sequence: float32, or bfloat16 beside dense bfloat16 weights on a GPU."""
        on_gpu = self.device.type == "cuda"
        dtype = torch.bfloat16 if self.weights != "dense-fp32" and on_gpu else torch.float32
        mirrored = not on_gpu and self.takes == torch.bfloat16 and bfloat16_instructions()
        layers = [block.mixer.memory(dtype, self.device, mirrored) for block in self.layers]
        return Memory(cast("list[Rows]", layers))

    @property
    def takes(self) -> torch.dtype:
        """The type in which the layers' matrices want their inputs."""
        for block in self.layers:
            for linear in block.linears().values():
                return linear.takes
        return torch.float32

    # Rotations ----------------------------------------------------------------------------------------------------

    @property
    def length_limit(self) -> int | None:
        """How long a text may be before its length counts in its rotations; None where it never does."""
        return self.rotary.rule.limit if self.rotary.rule else None

    @property
    def rereads_at(self) -> int | None:
        """How long a text may grow before it has to be read anew, because its rotations change; None: as it likes."""
        rule = self.rotary.rule
        return rule.limit if rule and rule.rereads else None

    def _rotation(self, batch: Batch) -> Tensor:
        """(N, 1, D/2) complex."""
        firsts = [span.first for span in batch.spans]
        if self.rotary.rule is not None:
            parts = []
            for span in batch.spans:
                positions = batch.positions[span.start : span.stop]
                parts.append(self.rotary.at(positions, span.memory.begun(positions)))
            return torch.cat(parts)[:, None, :]
        if len(firsts) == 1 and firsts[0] is not None:
            end = firsts[0] + len(batch.positions)
            return self.rotary.table(end)[firsts[0] : end, None, :]
        return self.rotary.at(batch.positions)[:, None, :]

    # Passes -------------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, plan: Plan | None = None, last: int | None = None, best: int = 0) -> ForwardResult:
        """Logits (n, V) of the last n tokens of the batch, of all of them by default; memory grows by every token.

        `last=0` computes no logits at all: what reading a prompt needs. `best`: see `EmbeddingAndHead.logits`.
        """
        if self.graphs and plan is None and last != 0 and cuda_graph.suits(list(self.layers), batch):
            logits = self._replayed(batch, best)
            count_layers(self.work, self.costs, 0, batch, False)
            self._count_logits(1, best)
            return ForwardResult(logits, float(len(self.layers)))
        self.prepare(batch)
        h = self.embedding.lookup(batch.tokens) if batch.embeddings is None else batch.embeddings
        ran = plan(self, h, batch) if plan else self._every_layer(h, batch, last == 0)
        first = 0 if last is None else len(ran.h) - last
        logits = self.head(ran.h[first:], best) if ran.logits is None else ran.logits[first:]
        return ForwardResult(logits, ran.layers_run, ran.exits, self._tapped(ran.h, batch.taps))

    def _every_layer(self, h: Tensor, batch: Batch, silent: bool) -> PlanResult:
        """All layers; where the last one's output is not needed, only its memory grows."""
        count = len(self.layers)
        if silent and not batch.taps and not any(span.watch for span in batch.spans):
            h = self.run_layers(h, batch, 0, count - 1)
            return PlanResult(self.run_layers(h, batch, count - 1, kv_only=True), float(count))
        return PlanResult(self.run_layers(h, batch), float(count))

    @staticmethod
    def _tapped(h: Tensor, taps: Taps | None) -> Tensor | None:
        if taps is None:
            return None
        taps.fill(h)
        return taps.stacked()

    def prepare(self, batch: Batch, few: bool = True) -> None:
        """Fill in a batch's rotation and choose the kernel of its pass; without `few`, one that any block can run in
        and that calls the modules themselves."""
        batch.rotation = self._rotation(batch)
        workspace = self._workspace(batch) if few else None
        if workspace:
            workspace.begin(batch)
        batch.kernel = workspace or self._wide_kernel()

    def run_layers(
        self,
        h: Tensor,
        batch: Batch,
        start: int = 0,
        stop: int | None = None,
        taps: Taps | None = None,
        kv_only: bool = False,
    ) -> Tensor:
        """h (N, E) through the layers start … stop - 1 (to the last by default); returns (N, E).

        The one way in which layers run. With `kv_only` their memory grows and h comes back as it went in. `taps`, or
        else the batch's own, get the states after the layers that they name. A pass of a few rows changes h in place,
        so that who wants to keep it copies it. A batch that no pass has prepared is prepared here, for any block.
        """
        if batch.kernel is None:
            self.prepare(batch, few=False)
        kernel, taps = batch.kernel, taps or batch.taps
        assert kernel is not None
        for i, block in enumerate(list(self.layers)[start:stop], start + 1):
            h = kernel.layer(block, h, batch, kv_only)
            if taps is not None and i in taps.layers:
                taps.states[i] = h.clone()
        costs = self.costs[start:stop]
        if costs:
            count_layers(self.work, costs, start, batch, kv_only)
            self._hold(batch, start)
        return h

    def head(self, h: Tensor, best: int = 0) -> Tensor:
        """Hidden states (n, E) of any layer to logits (n, V)."""
        if not len(h):
            return h.new_empty(0, self.shape.vocab)
        self._count_logits(len(h), best)
        return self._logits(h, best)

    def _logits(self, h: Tensor, best: int) -> Tensor:
        return self.embedding.logits(self.norm(h), best)

    # Counting -----------------------------------------------------------------------------------------------------

    @property
    def costs(self) -> list[BlockCost]:
        """What a row costs in each of its layers as they are now."""
        if self._costs[0] != self.version.count:
            self._costs = self.version.count, [BlockCost.of(block) for block in self.layers]
        return self._costs[1]

    def _count_logits(self, rows: int, best: int) -> None:
        work = self.work
        work.flops += 2.0 * rows * self.shape.vocab * self.shape.width
        work.read_bytes += self.embedding.read_bytes(rows, best)
        work.held = max(work.held, self.embedding.held_bytes(rows, best))

    def _hold(self, batch: Batch, layer: int) -> None:
        """Note how much a layer over this batch held at once."""
        N, takes = len(batch.positions), self.takes.itemsize
        S = max(span.memory.layers[layer].count for span in batch.spans)
        if isinstance(batch.kernel, DecodeWorkspace):
            held = activations.few_rows_bytes(self.shape, N, S, takes)
        elif isinstance(batch.kernel, CpuPrefill):
            copies = bool(next(iter(self.layers[layer].linears().values())).copy)
            held = activations.prompt_bytes(self.shape, N, S, takes, copies)
        else:
            held = activations.any_block_bytes(self.shape, N, S)
        self.work.held = max(self.work.held, held)

    def not_finite(self, tokens: Sequence[int]) -> tuple[str, str, str]:
        """Where NaN or infinity begins when it reads `tokens`, why, and what to do: see `not_finite.no_numbers`."""
        return in_decoder(self, tokens)

    # Kernels ------------------------------------------------------------------------------------------------------

    def _wide_kernel(self) -> LayerKernel:
        return CpuPrefill() if self.fast and self.device.type == "cpu" else Reference()

    def _workspace(self, batch: Batch) -> DecodeWorkspace | None:
        """The buffers for a pass of a few rows, where this is one."""
        N = len(batch.positions)
        short = N <= ROWS and max((s.stop - s.start for s in batch.spans), default=0) <= SHORT
        if not self.fast or self.device.type != "cpu" or not (batch.exact or short) or not len(self.layers):
            return None
        if N in self._workspaces:
            self._workspaces.move_to_end(N)
        else:
            self._workspaces[N] = DecodeWorkspace(self.shape, N, self.takes, self._bound)
            if len(self._workspaces) > WORKSPACES:
                self._workspaces.popitem(last=False)
        return self._workspaces[N]

    def _replayed(self, batch: Batch, best: int) -> Tensor:
        """The pass as a step of fixed shapes, which a GPU replays as a graph."""
        (span,) = batch.spans
        assert span.first is not None
        held = span.memory.layers[0].count
        for rows in span.memory.layers:
            rows.reclaim(range(span.first, span.first + 1))
        rotations, signature = self.rotary.table(span.first + 1), (best, self.version.count)
        if self._graph_step is None or self._graph_step.stale(span.memory, rotations, signature):
            self._graph_step = cuda_graph.CudaGraphStep(
                list(self.layers), self.embedding, partial(self._logits, best=best), rotations, span.memory, signature
            )
        return self._graph_step(batch.tokens, span.first, held)

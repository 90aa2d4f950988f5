"""Our decoder: a ragged batch in, logits out. Linears see (N, E); only attention knows where sequences begin.

Shapes: N tokens of all sequences end to end, H query heads, G query heads per key-value head, D head size, E width.
Query and key rows are stored in interleaved order, so that a rotation is one complex product.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.abilities import Ability
from llmlab.memory import Memory, Rows
from llmlab.models import fast, graphs
from llmlab.models.linears import GROUP, Linear, make_linear, nbytes
from llmlab.models.tables import Tables

Watch = Callable[[int, Tensor], None]
"""Called with a layer's number and the attention weights (H, Q, S) of a span's queries."""
Pattern = Callable[[Tensor, Tensor], Tensor]
"""visible(q (Q, 1), k (1, S)) -> (Q, S) bool on positions."""


@dataclass(frozen=True)
class Shape:
    """What the decoder needs to know of an architecture. `window` holds one entry per layer, None where all is seen."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    context: int
    eps: float
    window: tuple[int | None, ...]


@dataclass
class Span:
    """The part start..stop of the batch that belongs to one sequence, and the memory of that sequence."""

    start: int
    stop: int
    memory: Memory
    visible: Tensor | None = None
    """(T, T) bool over the span's own tokens; None where each sees itself and those before it."""
    patterns: tuple[Pattern, ...] = ()
    watch: Watch | None = None
    first: int | None = None
    """The position of the first of its tokens, where the others follow it one by one."""

    def order(self, batch: Batch) -> Tensor | range:
        """The positions of its tokens, as `Rows.append` wants them."""
        if self.first is None:
            return batch.positions[self.start : self.stop]
        return range(self.first, self.first + self.stop - self.start)

    def all_patterns(self, window: int | None) -> tuple[Pattern, ...]:
        """Its patterns, with a layer's window where it has one."""
        return self.patterns if window is None else (*self.patterns, _window(window))


@dataclass
class Batch:
    """Tokens (N,) of one or several sequences laid end to end, their positions (N,) and the spans that divide them."""

    tokens: Tensor
    positions: Tensor
    spans: list[Span]
    exact: bool = False
    """Whether each row must get, to the bit, what it would get in a pass of its own (below float32 as well)."""
    rotation: Tensor = field(default_factory=lambda: torch.empty(0))
    """(N, 1, D/2) complex, filled in by the decoder."""
    few: fast.Few | None = None
    """How a pass of a few rows is computed, filled in by the decoder; None for the way of many rows."""


class Depth(Protocol):
    """Which layers a batch goes through. The decoder's own is `every_layer`.

    Returns the hidden states (N, E), and the logits (N, V) where it has already had to compute them.
    """

    def __call__(self, model: Decoder, h: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]: ...


class Norm(nn.Module):
    """RMSNorm in float32 (arXiv 1910.07467)."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight.float())
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Block(nn.Module):
    """One layer: h + attention(norm(h)), then h + feed-forward(norm(h))."""

    def __init__(
        self,
        shape: Shape,
        index: int,
        norms: tuple[Norm, Norm],
        qkv: Linear,
        out: Linear,
        gate_up: Linear,
        down: Linear,
        head_norms: tuple[Norm, Norm] | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.index, self.window = shape, index, shape.window[index]
        self.norm_attention, self.norm_feed = norms
        self.qkv, self.out, self.gate_up, self.down = qkv, out, gate_up, down
        self.norm_q, self.norm_k = head_norms or (None, None)
        self.bound: dict[bool, fast.Bound | None] = {False: None, True: None}
        self.plain = False

    def forward(self, h: Tensor, batch: Batch, fill: bool = False) -> Tensor:
        """h (N, E) to (N, E). With `fill`, only this layer's keys and values are made; h returns unchanged.

        Where `fast` has a way for this pass it goes there; what stands here is the same as the papers write it. A pass
        of a few rows changes h in place.
        """
        if batch.few is not None:
            return batch.few.layer(self, h, batch, fill)
        if h.is_cpu and not self.plain and fast.reads(self, batch):
            return fast.read(self, h, batch, fill)
        s = self.shape
        N = h.shape[0]
        qkv = self.qkv(self.norm_attention(h)).view(N, s.heads + 2 * s.kv_heads, s.head_size)
        q, k, v = qkv.split([s.heads, s.kv_heads, s.kv_heads], 1)  # (N, heads, D)
        if self.norm_q is not None:
            q, k = self.norm_q(q), self.norm_k(k)
        q, k = fast.rotate(q, batch.rotation), fast.rotate(k, batch.rotation)
        parts = []
        for span in batch.spans:
            at = slice(span.start, span.stop)
            rows = span.memory.layers[self.index]
            rows.append(k[at].transpose(0, 1), v[at].transpose(0, 1), span.order(batch))
            if not fill:
                parts.append(look(q[at], rows, batch.positions[at], span, self.index, self.window))
        if fill:
            return h
        h = h + self.out(parts[0] if len(parts) == 1 else torch.cat(parts))
        gate, up = self.gate_up(self.norm_feed(h)).chunk(2, -1)
        return h + self.down(F.silu(gate) * up)


CHUNK = 128
"""Queries whose attention weights are held at once when somebody watches them."""


def look(
    q: Tensor, rows: Rows, positions: Tensor, span: Span, layer: int, window: int | None, scale: float | None = None
) -> Tensor:
    """Attention of a span's T newest tokens, q (T, H, D), over the rows of one layer that they may see; (T, H·D)."""
    patterns = span.all_patterns(window)
    T, S = q.shape[0], rows.count
    if T <= CHUNK or span.watch is None:
        mask = _mask(rows, positions, span.visible, patterns, 0, T)
        return attend(q, rows.k, rows.v, mask, layer, span.watch, scale)
    pieces = []
    for a in range(0, T, CHUNK):  # the weights of all queries at once would not fit in memory
        b = min(a + CHUNK, T)
        mask, end = _mask(rows, positions, span.visible, patterns, a, b), S - T + b
        pieces.append(attend(q[a:b], rows.k[:, :end], rows.v[:, :end], mask, layer, span.watch, scale))
    return torch.cat(pieces)


def _window(width: int) -> Pattern:
    return lambda q, k: q - k < width


def _mask(
    rows: Rows, positions: Tensor, visible: Tensor | None, patterns: Sequence[Pattern], a: int, b: int
) -> Tensor | None:
    """What queries a..b of the T last rows may see: (b - a, S) or (KV, b - a, S) bool, with S = rows up to query b.

    None stands for "everything" (one query) and for "plain causal" when the queries are all that is in memory.
    """
    T, S = positions.shape[0], rows.count
    if not patterns and visible is None and (T == 1 or (T == S and b - a == T)):
        return None
    own = torch.ones(T, T, dtype=torch.bool).tril() if visible is None else visible
    end = S - T + b
    mask = torch.ones(b - a, end, dtype=torch.bool)
    mask[:, S - T :] = own[a:b, :b]
    mask = mask.to(positions.device)
    if not patterns:
        return mask
    # Heads may hold different rows, so positions carry a head axis here and patterns broadcast over it.
    kept = rows.positions[:, None, :end]  # (KV, 1, S)
    query = positions[a:b][None, :, None]  # (1, Q, 1)
    mask = mask[None]
    for pattern in patterns:
        mask = mask & pattern(query, kept)
    return mask


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    layer: int = 0,
    watch: Watch | None = None,
    scale: float | None = None,
) -> Tensor:
    """Grouped-query attention. q (T, H, D); k, v (KV, S, D); mask (T, S) or (KV, T, S), None as `_mask` says.

    Returns (T, H·D). `watch` receives the weights (H, T, S) in float32. `scale` is 1/√D unless a model says otherwise.
    """
    T, H, D = q.shape
    scale = 1 / math.sqrt(D) if scale is None else scale
    KV, S, _ = k.shape
    G = H // KV
    q, wanted = q.to(k.dtype), q.dtype
    if T > FEW_QUERIES and watch is None:
        bias = mask if mask is None or mask.dim() == 2 else mask.repeat_interleave(G, 0)[None]
        y = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], k[None], v[None], bias, is_causal=mask is None, scale=scale, enable_gqa=G > 1
        )
        return y[0].transpose(0, 1).reshape(T, H * D).to(wanted)
    grouped = q.view(T, KV, G, D).permute(1, 2, 0, 3).reshape(KV, G * T, D)
    scores = torch.bmm(grouped, k.transpose(1, 2)).float().view(KV, G, T, S).mul_(scale)
    if mask is None and T > 1:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    if mask is not None:
        scores = scores.masked_fill_(~(mask if mask.dim() == 2 else mask[:, None]), -torch.inf)
    weights = torch.softmax(scores, -1)
    if watch is not None:
        watch(layer, weights.view(H, T, S))
    y = torch.bmm(weights.view(KV, G * T, S).to(v.dtype), v)  # (KV, G·T, D)
    return y.view(KV, G, T, D).permute(2, 0, 1, 3).reshape(T, H * D).to(wanted)


FEW_QUERIES = 16
"""Up to here the grouped product beats the fused kernel, measured on a CPU with 9 heads over 3."""


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

    abilities = frozenset(Ability)
    fast = True

    def __init__(
        self, shape: Shape, tables: Tables, layers: list[Block], norm: Norm, rotations: Tensor, weights: str
    ) -> None:
        """rotations (D/2,) float32: the angle per position of each pair; see `families` for scaled variants."""
        super().__init__()
        self.shape, self.tables, self.layers, self.norm, self.weights = (
            shape,
            tables,
            nn.ModuleList(layers),
            norm,
            weights,
        )
        self.register_buffer("angles", rotations.float())
        self.turn_factor = 1.0
        self._table: Tensor | None = None
        self._few: dict[int, fast.Few] = {}
        self._step: graphs.Step | None = None
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
        return self.tables.look_bytes + sum(part.nbytes for m in linears for part in m.copy)

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
        return make_linear(self.tables.head.rows(words), self.beside)

    def keep_copies(self) -> None:
        """Trade memory for time: keep the head in a quicker form, and packed matrices in bfloat16 for reading prompts.

        Everything kept is counted in `nbytes`. Does nothing for what gains nothing by it here.
        """
        self.tables.keep_look()
        if self.device.type == "cpu":
            for block in self.layers:
                for part in (block.qkv, block.out, block.down):
                    part.keep_copy()
                block.gate_up.keep_copy(2)

    def plain(self) -> Decoder:
        """A copy that goes through its layers only as the papers write them: what the fast ways are held to."""
        twin = self.private()
        twin.fast = False
        for block in twin.layers:
            block.plain = True
        return twin

    def private(self) -> Decoder:
        """A copy whose layers may be changed; embedding, head and final norm stay shared with this one."""
        twin = Decoder(self.shape, self.tables, copy.deepcopy(list(self.layers)), self.norm, self.angles, self.weights)
        twin.turn_factor = self.turn_factor
        return twin.eval()

    def memory(self) -> Memory:
        """An empty key-value store for one sequence: float32, or bfloat16 beside dense bfloat16 weights on a GPU."""
        dtype = torch.bfloat16 if self.weights != "dense-fp32" and self.device.type == "cuda" else torch.float32
        s = self.shape
        return Memory([Rows(s.kv_heads, s.head_size, dtype, self.device) for _ in self.layers])

    def turns(self, positions: Tensor) -> Tensor:
        """positions (…,) to unit rotations (…, D/2) complex."""
        highest = int(positions.max()) + 1 if positions.numel() else 1
        return self._turns(highest)[positions]

    def _turns(self, highest: int) -> Tensor:
        """The rotations of the positions below at least `highest`."""
        if self._table is None or self._table.shape[0] < highest or self._table.device != self.device:
            n = min(max(1024, 2 * highest), max(self.shape.context, highest))
            angle = torch.arange(n, device=self.device, dtype=torch.float32)[:, None] * self.angles
            self._table = torch.polar(torch.full_like(angle, self.turn_factor), angle)
        return self._table

    def forward(self, batch: Batch, depth: Depth | None = None, last: int | None = None, best: int = 0) -> Tensor:
        """Logits (n, V) of the last n tokens of the batch, of all of them by default; memory grows by every token.

        `last=0` computes no logits at all: what reading a prompt needs. `best`: see `Tables.logits`.
        """
        if self.graphs and graphs.suits(self, batch, depth, last):
            return self._replayed(batch, best)
        batch.rotation = self._rotation(batch)
        batch.few = self._way(batch)
        h = batch.few.begin(self, batch) if batch.few else self.tables.look_up(batch.tokens)
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
        self._turns(span.first + 1)
        if self._step is None or self._step.stale(span.memory, best):
            self._step = graphs.Step(self, span.memory, best)
        return self._step(batch.tokens, span.first, held)

    def _rotation(self, batch: Batch) -> Tensor:
        firsts = [span.first for span in batch.spans]
        if len(firsts) == 1 and firsts[0] is not None:
            end = firsts[0] + len(batch.tokens)
            return self._turns(end)[firsts[0] : end, None, :]
        return self.turns(batch.positions)[:, None, :]

    def _way(self, batch: Batch) -> fast.Few | None:
        """The way of a few rows for this pass, where there is one."""
        N = len(batch.tokens)
        short = N <= fast.ROWS and max((s.stop - s.start for s in batch.spans), default=0) <= SHORT
        if not self.fast or self.device.type != "cpu" or not (batch.exact or short) or not len(self.layers):
            return None
        if N not in self._few:
            self._few[N] = fast.Few(self, N)
        return self._few[N]

    def head(self, h: Tensor, best: int = 0) -> Tensor:
        """Hidden states (n, E) of any layer to logits (n, V)."""
        return self.tables.logits(self.norm(h), best) if len(h) else h.new_empty(0, self.shape.vocab)


SHORT = 8
"""Rows of one sequence up to which a pass goes the way of a few rows unasked."""


def all_but_the_last(model: Decoder, h: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Every layer, of the last of which only the keys and values are made: nobody looks at what it would say."""
    *most, last = model.layers
    for block in most:
        h = block(h, batch)
    return last(h, batch, fill=True), None

"""A layer over a few rows in few operations, for a processor."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmlab.kv.pool import Pool
from llmlab.kv.rows import DEEP, Rows
from llmlab.models.batch import Batch, Span
from llmlab.models.formats.linear import Linear
from llmlab.models.formats.onednn import bfloat16_instructions

ROWS = 64
"""Rows up to which a pass over several sequences is one of `Few`."""

if TYPE_CHECKING:
    from llmlab.models.block import Block
    from llmlab.models.decoder import Decoder


Feed = tuple[Tensor, Tensor, Tensor, Tensor]
"""Gates and ups (N, 2F) in float32, views of the two, and their product (N, F) as the last matrix takes it."""


@dataclass
class BoundBlock:
    """A layer's products, biases and norms as `Few` wants them, bound to the tensors of `changes` (`Linear.changes`).

    Looking them up in the module costs as much as multiplying by them.
    """

    changes: int
    index: int
    first: Tensor
    second: Tensor
    qkv: Callable[[Tensor], Tensor]
    out: Callable[[Tensor], Tensor]
    gate_up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]
    biases: tuple[Tensor | None, ...]
    head_norms: tuple[Any, Any] | None
    window: int | None
    feed: int

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None  # a copy of the layer binds its own tensors


def bind_block(block: Block, many: bool) -> BoundBlock:
    """What a layer's passes call. `many`: with the products for many rows, whose bits depend on their number."""
    kept = block.bound[many]
    if kept is None or kept.changes != Linear.changes or kept.index != block.index:
        root = math.sqrt(block.shape.width)
        parts = (block.qkv, block.out, block.gate_up, block.down)
        products = [p.many if many else p.few() for p in parts]
        norms = (block.norm_attention.weight * root, block.norm_feed.weight * root)
        biases = tuple(p.bias for p in parts)
        head_norms = None if block.norm_q is None else (block.norm_q, block.norm_k)
        kept = BoundBlock(
            Linear.changes, block.index, *norms, *products, biases, head_norms, block.window, block.gate_up.outputs // 2
        )
        block.bound[many] = kept
    return kept


class DecodeWorkspace:
    """A pass of N rows, of one sequence or of several. Made once per N and model; `begin` starts a pass.

    Its `x` is the residual stream (N, E), changed in place from layer to layer.
    """

    def __init__(self, model: Decoder, N: int) -> None:
        s = model.shape
        H, KV, D, E = s.heads, s.kv_heads, s.head_size, s.width
        takes = model.layers[0].qkv.takes
        self.deep = DEEP if takes == torch.bfloat16 and bfloat16_instructions() else sys.maxsize
        self.shape, self.N = s, N
        with torch.inference_mode(False):  # buffers made in inference mode could not be written to outside of it
            # An extra column holds √(E·eps), so that the norm of the row is √(Σx² + E·eps) in one operation.
            self.padded = torch.zeros(N, E + 16)
            self.padded[:, E] = math.sqrt(E * s.eps)
            self.norm = torch.empty(N, 1)
            self.scratch, self.normed = torch.empty(N, E), torch.empty(N, E, dtype=takes)
            self.qkv = torch.empty(N, H + 2 * KV, D)
            self.turn = torch.empty(N, H + KV, D // 2, dtype=torch.complex64)
            self.seen = torch.empty(N, KV, H // KV, D)
            self.looked = torch.empty(N, H * D, dtype=takes)
        self.feeds: dict[int, Feed] = {}
        self.x = self.padded[:, :E]
        self.flat = self.qkv.view(N, -1)
        self.turned = torch.view_as_complex(self.qkv[:, : H + KV].unflatten(-1, (-1, 2)))
        self.queries = self.qkv[:, :H]
        self.q = [self.qkv[j, :H].view(KV, H // KV, D) for j in range(N)]
        self.kv = self.qkv[:, H:].view(N, 2, KV, D).permute(1, 2, 0, 3)
        self.one = [self.kv[:, :, j] for j in range(N)]
        self.kv_rows = self.qkv[:, H:].view(N, 2, KV, D)
        self.a, self.a_flat = list(self.seen), self.seen.view(N, H * D)

    def begin(self, model: Decoder, batch: Batch) -> Tensor:
        """Embeddings and rotations of a pass; returns the residual stream."""
        self.x.copy_(model.embedding.lookup(batch.tokens))
        self.turn.copy_(batch.rotation)
        self.turn[:, : self.shape.heads] *= 1 / math.sqrt(self.shape.head_size)
        self.many = not batch.exact
        self.paths = [_paths(span) for span in batch.spans]
        single = (s.stop - s.start == 1 and s.first is not None for s in batch.spans)
        watched = any(s.patterns or s.watch for s in batch.spans)
        self.side_by_side = self.many and all(single) and not watched
        self.counts: list[int] = []
        return self.x

    def _pool(self, batch: Batch, b: BoundBlock) -> Pool | None:
        """The pool whose sequences, all and in order, have a row each in this pass."""
        if not self.side_by_side or b.window is not None:
            return None
        layers = [span.memory.layers[b.index] for span in batch.spans]
        pool = layers[0].pool
        alike = pool is not None and len(layers) == len(pool.members)
        return pool if alike and all(map(operator.is_, layers, pool.members)) else None

    def layer(self, block: Block, h: Tensor, batch: Batch, fill: bool) -> Tensor:
        """As `Block.forward`; `h` comes back changed in place."""
        x, t, normed = self.x, self.scratch, self.normed
        if h is not x:
            x.copy_(h)
        b = bind_block(block, self.many)
        qkv_bias, out_bias, gate_bias, down_bias = b.biases
        torch.linalg.vector_norm(self.padded, 2, -1, True, out=self.norm)
        normed.copy_(torch.mul(x, b.first, out=t).div_(self.norm))
        self.flat.copy_(b.qkv(normed))
        if qkv_bias is not None:
            self.flat.add_(qkv_bias)
        if b.head_norms is not None:
            H, KV = self.shape.heads, self.shape.kv_heads
            norm_q, norm_k = b.head_norms
            self.qkv[:, :H] = norm_q(self.qkv[:, :H])
            self.qkv[:, H : H + KV] = norm_k(self.qkv[:, H : H + KV])
        self.turned.mul_(self.turn)
        pool = self._pool(batch, b)
        if pool:
            self._look_side_by_side(pool, batch, fill)
        for span, paths in () if pool else zip(batch.spans, self.paths, strict=True):
            rows = span.memory.layers[b.index]
            held = rows.count
            single = span.stop - span.start == 1
            if single and span.first is not None:
                rows.append_one(self.one[span.start], span.first)
            else:
                kv = self.kv if span.stop - span.start == self.N else self.kv[:, :, span.start : span.stop]
                rows.append_both(kv, span.order(batch))
            if fill:
                continue
            if single and b.window is None and not span.patterns and span.watch is None:
                if held >= self.deep:
                    self._look_briefly(span.start, rows, held + 1)
                    continue
                scores = torch.bmm(self.q[span.start], rows.across.narrow(2, 0, held + 1))
                values = rows.values.narrow(1, 0, held + 1)
                torch.bmm(torch.softmax(scores, -1), values, out=self.a[span.start])
            else:
                self._look(span, rows, held, self.kv[:, :, span.start : span.stop], paths, b, batch)
        if fill:
            return x
        t.copy_(b.out(self.looked.copy_(self.a_flat)))
        if out_bias is not None:
            t.add_(out_bias)
        x.add_(t)
        torch.linalg.vector_norm(self.padded, 2, -1, True, out=self.norm)
        normed.copy_(torch.mul(x, b.second, out=t).div_(self.norm))
        gates, gate, up, fed = self.feeds.get(b.feed) or self._feed(b.feed)
        gates.copy_(b.gate_up(normed))
        if gate_bias is not None:
            gates.add_(gate_bias)
        t.copy_(b.down(fed.copy_(torch.ops.aten.silu_(gate).mul_(up))))
        if down_bias is not None:
            t.add_(down_bias)
        return x.add_(t)

    def _feed(self, width: int) -> Feed:
        """Buffers for a feed-forward block of this width; layers differ in it once neurons have been removed."""
        with torch.inference_mode(False):
            gates, fed = torch.empty(self.N, 2 * width), torch.empty(self.N, width, dtype=self.normed.dtype)
        self.feeds[width] = (gates, *gates.chunk(2, -1), fed)
        return self.feeds[width]

    def _look(
        self, span: Span, rows: Rows, held: int, kv: Tensor, paths: list[list[int]] | None, b: BoundBlock, batch: Batch
    ) -> None:
        """Attention of a span's rows, each over the rows before it, or over its own path of a tree.

        Row by row, with the very shapes that a pass of one row has: that is what makes their bits the same. A tree's
        row finds its path where sequential decoding would have put it, right behind the rows held before.
        """
        n, across, values = span.stop - span.start, rows.across, rows.values
        patterns = span.all_patterns(b.window)
        if n > 1 and self.many and span.watch is None and not patterns:
            self._look_together(span, rows, held)
            return
        weights = []
        there: list[int] | None = None  # the path that now lies behind the held rows, where they were moved for it
        for i in range(n):
            j, path = span.start + i, None if paths is None else paths[i]
            S = held + (i if path is None else len(path) - 1) + 1
            if path is not None and (there or list(range(n)))[: len(path)] != path:
                rows.write(held, kv[:, :, path])
                there = path + (there or list(range(n)))[len(path) :]
            if self.deep < S and not patterns and span.watch is None:
                self._look_briefly(j, rows, S)
                continue
            scores = torch.bmm(self.q[j], across.narrow(2, 0, S))
            if patterns:
                hidden = _hidden(patterns, rows, held, path, batch.positions[span.start : span.stop], i)
                scores.masked_fill_(hidden, -torch.inf)
            w = torch.softmax(scores, -1)
            torch.bmm(w, values.narrow(1, 0, S), out=self.a[j])
            if span.watch is not None:
                weights.append(w)
        if there is not None:
            rows.write(held, kv)
        if span.watch is not None:
            span.watch(b.index, _gathered(weights, held, n, paths))

    def _look_briefly(self, j: int, rows: Rows, S: int) -> None:
        """Attention of row j over the first S rows held, all in bfloat16 but the softmax."""
        keys, values = rows.brief(S)
        scores = torch.bmm(self.q[j].bfloat16(), keys)
        scores.narrow(2, S, scores.shape[2] - S).fill_(-torch.inf)
        w = torch.softmax(scores, -1, dtype=torch.float32)
        self.a[j].copy_(torch.bmm(w.bfloat16(), values))

    def _look_side_by_side(self, pool: Pool, batch: Batch, fill: bool) -> None:
        """Attention of the sequences of a pool, a row each: one product for them all."""
        counts = [rows.count for rows in pool.members]
        longest = max(counts) + 1
        if counts != self.counts:
            self.counts = counts
            self.mask = None
            if min(counts) + 1 < longest:
                seen = torch.arange(longest) <= torch.tensor(counts)[:, None]
                self.mask = torch.where(seen, 0.0, -torch.inf).repeat_interleave(self.shape.kv_heads, 0)[:, None]
        for rows, span in zip(pool.members, batch.spans, strict=True):
            rows.extend(range(span.first, span.first + 1))
        kv = pool.kv
        if self.mask is None:
            kv[:, :, :, longest - 1] = self.kv_rows.transpose(0, 1)
        else:
            kv[:, torch.arange(self.N), :, torch.tensor(counts)] = self.kv_rows
        if fill:
            return
        keys, values = kv[:, :, :, :longest].flatten(1, 2)
        N, (KV, G, D) = self.N, self.seen.shape[1:]
        scores = torch.bmm(self.queries.reshape(N * KV, G, D), keys.transpose(1, 2))
        if self.mask is not None:
            scores.add_(self.mask)
        self.seen.copy_(torch.bmm(torch.softmax(scores, -1), values).view(N, KV, G, D))

    def _look_together(self, span: Span, rows: Rows, held: int) -> None:
        """The same in one product for all rows of a span: quicker, and not to the bit what rows get alone."""
        n, S, G = span.stop - span.start, rows.count, self.shape.heads // self.shape.kv_heads
        KV, D = self.shape.kv_heads, self.shape.head_size
        q = self.queries[span.start : span.stop].view(n, KV, G, D).permute(1, 2, 0, 3).reshape(KV, G * n, D)
        scores = torch.bmm(q, rows.across.narrow(2, 0, S)).view(KV, G, n, S)
        own = torch.ones(n, n, dtype=torch.bool).tril() if span.visible is None else span.visible
        scores[..., held:].masked_fill_(~own, -torch.inf)
        w = torch.softmax(scores, -1).view(KV, G * n, S)
        y = torch.bmm(w, rows.v).view(KV, G, n, D).permute(2, 0, 1, 3)
        self.seen[span.start : span.stop] = y


def _paths(span: Span) -> list[list[int]] | None:
    """Of a tree's rows, which rows of the span each sees, itself last; None for a chain."""
    return None if span.visible is None else [row.nonzero().flatten().tolist() for row in span.visible]


def _hidden(
    patterns: tuple[Any, ...], rows: Rows, held: int, path: list[int] | None, positions: Tensor, i: int
) -> Tensor:
    """(KV, 1, S) bool: what row i of a span must not see of the rows before it."""
    if path is None:
        kept = rows.positions[:, : held + i + 1]
    else:
        kept = torch.cat([rows.positions[:, :held], positions[path].expand(rows.positions.shape[0], -1)], 1)
    seen = torch.ones(1, dtype=torch.bool)
    for pattern in patterns:
        seen = seen & pattern(positions[i].view(1, 1, 1), kept[:, None, :])
    return ~seen


def _gathered(weights: list[Tensor], held: int, n: int, paths: list[list[int]] | None) -> Tensor:
    """The rows' attention weights (KV, G, S) each as one (H, n, held + n), zero where a row does not look."""
    KV, G, _ = weights[0].shape
    out = torch.zeros(KV * G, n, held + n)
    for i, w in enumerate(weights):
        own = torch.arange(i + 1) if paths is None else torch.tensor(paths[i])
        out[:, i, :held] = w[..., :held].reshape(KV * G, held)
        out[:, i, held + own] = w[..., held:].reshape(KV * G, -1)
    return out

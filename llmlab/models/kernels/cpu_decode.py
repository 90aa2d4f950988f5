"""A layer over a few rows, for a processor: the time goes into the number of operations, so there are few.

The same mathematics as the block's own: buffers are made once, rotation and scale are one factor, nothing is allocated
that can be kept. A law holds it to the reference, and below float32 each row to the bits of a pass of its own. Shapes:
N rows, H heads, KV key-value heads, G = H / KV, D head size, E width, F inner width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmlab.kv.pool import Pool
from llmlab.kv.rows import Rows
from llmlab.models.batch import Batch, Pattern, Span, selected
from llmlab.models.block import Block
from llmlab.models.kernels.fused import fused_parts
from llmlab.models.norm import Norm
from llmlab.models.shape import Shape
from llmlab.models.version import Version

ROWS = 64
"""Rows up to which a pass over several sequences is one of a few rows."""

Feed = tuple[Tensor, Tensor, Tensor, Tensor]
"""Gates and ups (N, 2F) in float32, views of the two, and their product (N, F) as the last matrix takes it."""
Product = Callable[[Tensor], Tensor]


@dataclass
class BoundBlock:
    """A layer's products, biases and norms, bound to their tensors: looking them up in the module costs as much as
    multiplying by them. `first` and `second` are the norms' weights times √E."""

    first: Tensor
    second: Tensor
    qkv: Product
    out: Product
    gate_up: Product
    down: Product
    biases: tuple[Tensor | None, ...]
    head_norms: tuple[Norm, Norm] | None
    window: int | None
    feed: int


class BoundBlocks:
    """The bound blocks of one model; all are bound anew once `version` says that a matrix has changed.

    At most two per layer: with the products for few rows, and with those for many, whose bits depend on their number.
    """

    def __init__(self, version: Version) -> None:
        self._version, self._count = version, version.count
        self._bound: dict[tuple[Block, bool], BoundBlock | None] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> BoundBlocks:
        """A copy of the model binds its own tensors."""
        return BoundBlocks(copy.deepcopy(self._version, memo))

    def of(self, block: Block, many: bool) -> BoundBlock | None:
        """None for a block that this kernel cannot compute."""
        if self._count != self._version.count:
            self._bound.clear()
            self._count = self._version.count
        key = block, many
        if key not in self._bound:
            self._bound[key] = _bind(block, many)
        return self._bound[key]


def _bind(block: Block, many: bool) -> BoundBlock | None:
    parts = fused_parts(block)
    if parts is None:
        return None
    mixer, feed = parts
    root = math.sqrt(mixer.shape.width)
    linears = (mixer.qkv, mixer.out, feed.gate_up, feed.down)
    qkv, out, gate_up, down = (p.many if many else p.few() for p in linears)
    head_norms = None if mixer.norm_q is None or mixer.norm_k is None else (mixer.norm_q, mixer.norm_k)
    return BoundBlock(
        block.norm_mixer.weight * root,
        block.norm_feed.weight * root,
        qkv,
        out,
        gate_up,
        down,
        tuple(p.bias for p in linears),
        head_norms,
        mixer.window,
        feed.gate_up.outputs // 2,
    )


class DecodeWorkspace:
    """The buffers of a pass of N rows, of one sequence or of several. Made once per N and model; `begin` starts a pass.

    Its `x` is the residual stream (N, E), changed in place from layer to layer.
    """

    def __init__(self, shape: Shape, N: int, takes: torch.dtype, blocks: BoundBlocks) -> None:
        """`takes`: the type in which the model's matrices want their inputs."""
        s = shape
        H, KV, D, E = s.heads, s.kv_heads, s.head_size, s.width
        self.shape, self.N, self.blocks = s, N, blocks
        with torch.inference_mode(False):  # buffers made in inference mode could not be written to outside of it
            # An extra column holds √(E·eps), so that the norm of the row is √(Σx² + E·eps) in one operation.
            self.padded = torch.zeros(N, E + 16)
            self.padded[:, E] = math.sqrt(E * s.eps)
            self.norm = torch.empty(N, 1)
            self.scratch, self.normed = torch.empty(N, E), torch.empty(N, E, dtype=takes)
            self.qkv = torch.empty(N, H + 2 * KV, D)
            self.turn = torch.empty(N, H + KV, D // 2, dtype=torch.complex64)
            self.seen = torch.empty(N, KV, H // KV, D)
            self.mixed = torch.empty(N, H * D, dtype=takes)
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

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        own = (self.padded, self.norm, self.scratch, self.normed, self.qkv, self.turn, self.seen, self.mixed)
        return sum(t.nbytes for t in own) + sum(gates.nbytes + fed.nbytes for gates, _, _, fed in self.feeds.values())

    def begin(self, batch: Batch) -> None:
        """Take in what is the same for all layers of a pass."""
        self.turn.copy_(batch.rotation)
        self.turn[:, : self.shape.heads] *= 1 / math.sqrt(self.shape.head_size)
        self.many = not batch.exact
        self.paths = [_paths(span) for span in batch.spans]
        single = (s.stop - s.start == 1 and s.first is not None for s in batch.spans)
        watched = any(s.patterns or s.watch or s.bias is not None for s in batch.spans)
        self.side_by_side = self.many and all(single) and not watched

    def layer(self, block: Block, h: Tensor, batch: Batch, kv_only: bool) -> Tensor:
        """As `Block.forward`; `h` comes back changed in place."""
        x, t, normed = self.x, self.scratch, self.normed
        b = self.blocks.of(block, self.many)
        if b is None:
            x.copy_(block(h, batch, kv_only))
            return x
        if h is not x:
            x.copy_(h)
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
        self._mix(b, block.index, batch, kv_only)
        if kv_only:
            return x
        t.copy_(b.out(self.mixed.copy_(self.a_flat)))
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
        gate, up = gates.chunk(2, -1)
        self.feeds[width] = (gates, gate, up, fed)
        return self.feeds[width]

    # Attention ----------------------------------------------------------------------------------------------------

    def _mix(self, b: BoundBlock, index: int, batch: Batch, kv_only: bool) -> None:
        """Append every span's rows and attend, into `seen`."""
        pool = self._pool(batch, b, index)
        if pool:
            mask = pool.append_one_each(self.kv_rows.transpose(0, 1), [span.first or 0 for span in batch.spans])
            if not kv_only:
                KV, G, D = self.seen.shape[1:]
                self.seen.copy_(pool.attend(self.queries.view(self.N, KV, G, D), mask))
            return
        for span, paths in zip(batch.spans, self.paths, strict=True):
            rows = span.memory.layers[index]
            held = rows.count
            single = span.stop - span.start == 1
            if single and span.first is not None:
                rows.append_one(self.one[span.start], span.first)
            else:
                kv = self.kv if span.stop - span.start == self.N else self.kv[:, :, span.start : span.stop]
                rows.append(kv, span.order(batch))
            if kv_only:
                continue
            if single and b.window is None and not span.patterns and span.watch is None:
                rows.storage.attend_one(self.q[span.start], held + 1, self.a[span.start])
            else:
                self._attend(span, rows, held, paths, b.window, index, batch)

    def _pool(self, batch: Batch, b: BoundBlock, index: int) -> Pool | None:
        """The pool whose sequences, all and in order, have a row each in this pass."""
        if not self.side_by_side or b.window is not None:
            return None
        layers = [span.memory.layers[index] for span in batch.spans]
        pool = layers[0].pool
        return pool if isinstance(pool, Pool) and pool.holds(layers) else None

    def _attend(
        self,
        span: Span,
        rows: Rows,
        held: int,
        paths: list[list[int]] | None,
        window: int | None,
        index: int,
        batch: Batch,
    ) -> None:
        """Attention of a span's rows, each over the rows before it, or over its own path of a tree.

        Row by row, with the very shapes that a pass of one row has: that is what makes their bits the same. A tree's
        row finds its path where sequential decoding would have put it, right behind the rows held before.
        """
        n = span.stop - span.start
        patterns = span.all_patterns(window)
        if n > 1 and self.many and span.watch is None and not patterns:
            own = torch.ones(n, n, dtype=torch.bool).tril() if span.visible is None else span.visible
            at = slice(span.start, span.stop)
            self.seen[at] = rows.storage.attend_together(self.queries[at], rows.count, own)
            return
        kv = self.kv[:, :, span.start : span.stop]
        weights = []
        there: list[int] | None = None  # the path that now lies behind the held rows, where they were moved for it
        for i in range(n):
            j, path = span.start + i, None if paths is None else paths[i]
            S = held + (i if path is None else len(path) - 1) + 1
            if path is not None and (there or list(range(n)))[: len(path)] != path:
                rows.write(held, kv[:, :, path])
                there = path + (there or list(range(n)))[len(path) :]
            if not patterns and span.watch is None:
                rows.storage.attend_one(self.q[j], S, self.a[j])
                continue
            hidden = None
            if patterns:
                positions = batch.positions[span.start : span.stop]
                kept = _positions(rows, held, path, positions, i)
                hidden = _hidden(patterns, kept, positions[i], index)
                if span.watch is None and (chosen := selected(patterns, int(positions[i]), kept, index)) is not None:
                    rows.storage.attend_few(self.q[j], chosen, self.a[j], hidden[..., chosen])
                    continue
            weights.append(rows.storage.attend_hidden(self.q[j], S, self.a[j], hidden))
        if there is not None:
            rows.write(held, kv)
        if span.watch is not None:
            span.watch(index, _gathered(weights, held, n, paths))


def _paths(span: Span) -> list[list[int]] | None:
    """Of a tree's rows, which rows of the span each sees, itself last; None for a chain."""
    return None if span.visible is None else [row.nonzero().flatten().tolist() for row in span.visible]


def _positions(rows: Rows, held: int, path: list[int] | None, positions: Tensor, i: int) -> Tensor:
    """(KV, S): where the rows stand that row i of a span finds before it, itself last."""
    if path is None:
        return rows.positions[:, : held + i + 1]
    return torch.cat([rows.positions[:, :held], positions[path].expand(rows.heads, -1)], 1)


def _hidden(patterns: tuple[Pattern, ...], kept: Tensor, position: Tensor, layer: int) -> Tensor:
    """(KV, 1, S) bool: what a query must not see of the rows at the positions `kept` (KV, S)."""
    head = torch.arange(len(kept))[:, None, None]
    seen = torch.ones(1, dtype=torch.bool)
    for pattern in patterns:
        seen = seen & pattern.visible(position.view(1, 1, 1), kept[:, None, :], layer, head)
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

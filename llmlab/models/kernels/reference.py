"""Layers as the papers write them: what every faster way is compared with, and what runs where there is none.

Shapes: T tokens of a span, H query heads, KV key-value heads, D head size, S rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmlab.kv.attention import CHUNK, PLAIN, ScoreRule
from llmlab.kv.rows import Rows
from llmlab.models.batch import Batch, Pattern, Span, selected


class Reference:
    """Each block by its own `forward`."""

    def layer(self, block: Any, h: Tensor, batch: Batch, kv_only: bool) -> Tensor:
        out: Tensor = block(h, batch, kv_only)
        return out


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """x (N, heads, D) turned by rotation (N, 1, D/2): RoFormer (arXiv 2104.09864, eq. 34) as a complex product."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotation).flatten(-2)


def attention(
    q: Tensor,
    rows: Rows,
    positions: Tensor,
    span: Span,
    layer: int,
    patterns: Sequence[Pattern],
    rule: ScoreRule = PLAIN,
) -> Tensor:
    """Attention of a span's T newest tokens, q (T, H, D), over the rows of one layer that they may see; (T, H·D).

    `patterns`: the span's own and the layer's.
    """
    T, S, attend = q.shape[0], rows.count, rows.storage.attend
    watch = None if span.watch is None else _bound(span.watch, layer)
    if (
        T == 1
        and watch is None
        and (chosen := selected(patterns, int(positions[0]), rows.positions, layer)) is not None
    ):
        mask = _mask(rows, positions, None, patterns, layer, 0, 1)
        return rows.storage.attend_selected(q, chosen, None if mask is None else mask[..., chosen], rule)
    if T <= CHUNK or watch is None:
        mask = _mask(rows, positions, span.visible, patterns, layer, 0, T)
        return attend(q, S, mask, watch, rule, span.bias)
    pieces = []
    for a in range(0, T, CHUNK):  # the weights of all queries at once would not fit in memory
        b = min(a + CHUNK, T)
        mask, end = _mask(rows, positions, span.visible, patterns, layer, a, b), S - T + b
        bias = None if span.bias is None else span.bias[:end]
        pieces.append(attend(q[a:b], end, mask, watch, rule, bias))
    return torch.cat(pieces)


def _bound(watch: Any, layer: int) -> Any:
    return lambda weights: watch(layer, weights)


def _mask(
    rows: Rows, positions: Tensor, visible: Tensor | None, patterns: Sequence[Pattern], layer: int, a: int, b: int
) -> Tensor | None:
    """What queries a..b of the T last rows may see: (b - a, S) or (KV, b - a, S) bool, with S = rows up to query b.

    None stands for "everything" (one query) and for "plain causal" when the queries are all that is in memory.
    """
    T, S = positions.shape[0], rows.count
    if not patterns and visible is None and (T == 1 or (T == S and b - a == T)):
        return None
    end = S - T + b
    if visible is not None and visible.shape[1] == S > T:
        mask = visible[a:b, :end]
    else:
        own = torch.ones(T, T, dtype=torch.bool).tril() if visible is None else visible
        mask = torch.ones(b - a, end, dtype=torch.bool)
        mask[:, S - T :] = own[a:b, :b]
    mask = mask.to(positions.device)
    if not patterns:
        return mask
    # Heads may hold different rows, so positions carry a head axis here and patterns broadcast over it.
    kept = rows.positions[:, None, :end]  # (KV, 1, S)
    query = positions[a:b][None, :, None]  # (1, Q, 1)
    head = torch.arange(rows.heads, device=positions.device)[:, None, None]
    mask = mask[None]
    for pattern in patterns:
        mask = mask & pattern.visible(query, kept, layer, head)
    return mask

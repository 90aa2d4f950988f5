"""Attention as the papers write it, in float32: what every faster way is compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.kv.rows import Rows
from llmlab.models.batch import Span, Visible, Watch

CHUNK = 128
"""Queries whose attention weights are held at once when somebody watches them."""


def attention(
    q: Tensor, rows: Rows, positions: Tensor, span: Span, layer: int, window: int | None, scale: float | None = None
) -> Tensor:
    """Attention of a span's T newest tokens, q (T, H, D), over the rows of one layer that they may see; (T, H·D)."""
    patterns = span.all_patterns(window)
    T, S = q.shape[0], rows.count
    if T <= CHUNK or span.watch is None:
        mask = _mask(rows, positions, span.visible, patterns, 0, T)
        return grouped_query_attention(q, rows.k, rows.v, mask, layer, span.watch, scale)
    pieces = []
    for a in range(0, T, CHUNK):  # the weights of all queries at once would not fit in memory
        b = min(a + CHUNK, T)
        mask, end = _mask(rows, positions, span.visible, patterns, a, b), S - T + b
        pieces.append(grouped_query_attention(q[a:b], rows.k[:, :end], rows.v[:, :end], mask, layer, span.watch, scale))
    return torch.cat(pieces)


def _mask(
    rows: Rows, positions: Tensor, visible: Tensor | None, patterns: Sequence[Visible], a: int, b: int
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


def grouped_query_attention(
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


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """x (N, heads, D) turned by rotation (N, 1, D/2): RoFormer (arXiv 2104.09864, eq. 34) as a complex product."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotation).flatten(-2)

"""A layer over a prompt, for a processor: many rows of one sequence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.kv.rows import Rows
from llmlab.models.batch import Batch

CHUNK = 128
"""Queries of a prompt whose attention weights exist at once."""

if TYPE_CHECKING:
    from llmlab.models.block import Block


# Prompts ------------------------------------------------------------------------------------------------------------


def suits(block: Block, batch: Batch) -> bool:
    """Whether `read` computes this pass: a stretch of one sequence of which nobody watches matrices or attention."""
    if len(batch.spans) != 1 or any(m._forward_pre_hooks for m in (block.qkv, block.out, block.gate_up, block.down)):
        return False
    (span,) = batch.spans
    return not (span.visible is not None or span.watch is not None or span.all_patterns(block.window))


def prefill_layer(block: Block, h: Tensor, batch: Batch, fill: bool) -> Tensor:
    """As `Block.forward`, for many rows of one sequence on a processor."""
    s, N, takes = block.shape, len(h), block.qkv.takes
    (span,) = batch.spans
    H, KV = s.heads, s.kv_heads
    x = block.norm_attention(h).to(takes)
    qkv = block.qkv.many(x).float()
    if block.qkv.bias is not None:
        qkv = qkv.add_(block.qkv.bias)
    qkv = qkv.view(N, H + 2 * KV, s.head_size)
    if block.norm_q is not None:
        qkv[:, :H], qkv[:, H : H + KV] = block.norm_q(qkv[:, :H]), block.norm_k(qkv[:, H : H + KV])
    torch.view_as_complex(qkv[:, : H + KV].unflatten(-1, (-1, 2))).mul_(batch.rotation)
    rows = span.memory.layers[block.index]
    rows.append_both(qkv[:, H:].view(N, 2, KV, s.head_size).permute(1, 2, 0, 3), span.order(batch))
    if fill:
        return h
    seen = _causal_attention(qkv[:, :H], rows, takes)
    h = h + block.out(seen)
    x = block.norm_feed(h).to(takes)
    if len(block.gate_up.copy) == 2 and block.gate_up.bias is None:
        gate, up = block.gate_up.copy
        return h + block.down(up.times(x, gate.silu(x)))
    gate, up = block.gate_up(x).chunk(2, -1)
    return h + block.down(F.silu(gate, inplace=True).mul_(up))


class Scratch:
    """Memory for attention weights that is used again: fresh pages for each chunk would cost a third of its time."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def __call__(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        n = math.prod(shape)
        held = self._held.get((name, dtype))
        if held is None or held.numel() < n:
            with torch.inference_mode(False):
                held = self._held[name, dtype] = torch.empty(n, dtype=dtype)
        return held[:n].view(shape)


_scratch = Scratch()


def _causal_attention(q: Tensor, rows: Rows, takes: torch.dtype) -> Tensor:
    """Causal attention of the T newest rows, q (T, H, D), over all before them; (T, H·D) in `takes`.

    In chunks of queries over just the keys that they see, with the softmax in float32.
    """
    T, H, D = q.shape
    k, v = rows.k.to(takes), rows.v.to(takes)
    KV, S, _ = k.shape
    G = H // KV
    q = (q * (1 / math.sqrt(D))).to(takes).view(T, KV, G, D).permute(1, 2, 0, 3)
    out = torch.empty(T, KV, G, D, dtype=takes)
    future = torch.full((CHUNK, CHUNK), -torch.inf).triu(1)
    for a in range(0, T, CHUNK):
        n = min(CHUNK, T - a)
        end = S - T + a + n
        scores = _scratch("scores", takes, KV, G * n, end)
        weights = _scratch("weights", torch.float32, KV, G, n, end)
        torch.bmm(q[:, :, a : a + n].reshape(KV, G * n, D), k[:, :end].transpose(1, 2), out=scores)
        weights.copy_(scores.view(KV, G, n, end))
        weights[..., end - n :].add_(future[:n, :n])
        torch._softmax(weights, -1, False, out=weights)
        scores.copy_(weights.view(KV, G * n, end))
        out[a : a + n] = torch.bmm(scores, v[:, :end]).view(KV, G, n, D).permute(2, 0, 1, 3)
    return out.view(T, H * D)

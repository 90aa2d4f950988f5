"""A layer over a prompt, for a processor: many rows of one sequence, where the time goes into products.

The same mathematics as the block's own, in place and with products in the type that the matrices take. Shapes: N rows,
H heads, KV key-value heads, D head size, E width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.models.batch import Batch
from llmlab.models.block import Block
from llmlab.models.feed_forward.gated import GatedFeedForward
from llmlab.models.kernels.fused import fused_parts
from llmlab.models.mixers.attention import Attention


class CpuPrefill:
    """Layers over a stretch of one sequence; a block that it cannot compute runs as it is written."""

    def layer(self, block: Block, h: Tensor, batch: Batch, kv_only: bool) -> Tensor:
        parts = fused_parts(block)
        if parts is None or not suits(block, parts[0], batch):
            return block(h, batch, kv_only)
        return prefill_layer(block, *parts, h, batch, kv_only)


def suits(block: Block, mixer: Attention, batch: Batch) -> bool:
    """Whether a pass is a stretch of one sequence whose matrices and attention are not watched."""
    if len(batch.spans) != 1 or any(m._forward_pre_hooks for m in block.linears().values()):
        return False
    (span,) = batch.spans
    watched = span.visible is not None or span.watch is not None or span.bias is not None
    return not (watched or span.all_patterns(mixer.window))


def prefill_layer(
    block: Block, mixer: Attention, feed: GatedFeedForward, h: Tensor, batch: Batch, kv_only: bool
) -> Tensor:
    """As `Block.forward`, for many rows of one sequence on a processor."""
    s, N, takes = mixer.shape, len(h), mixer.qkv.takes
    (span,) = batch.spans
    H, KV = s.heads, s.kv_heads
    x = block.norm_mixer(h).to(takes)
    qkv = mixer.qkv.many(x).float()
    if mixer.qkv.bias is not None:
        qkv = qkv.add_(mixer.qkv.bias)
    qkv = qkv.view(N, H + 2 * KV, s.head_size)
    if mixer.norm_q is not None and mixer.norm_k is not None:
        qkv[:, :H], qkv[:, H : H + KV] = mixer.norm_q(qkv[:, :H]), mixer.norm_k(qkv[:, H : H + KV])
    torch.view_as_complex(qkv[:, : H + KV].unflatten(-1, (-1, 2))).mul_(batch.rotation)
    rows = span.memory.layers[block.index]
    rows.append(qkv[:, H:].view(N, 2, KV, s.head_size).permute(1, 2, 0, 3), span.order(batch))
    if kv_only:
        return h
    h = h + mixer.out(rows.storage.attend_prompt(qkv[:, :H], rows.count, takes))
    x = block.norm_feed(h).to(takes)
    gate_up = feed.gate_up
    if len(gate_up.copy) == 2 and gate_up.bias is None:
        gate, up = gate_up.copy
        return h + feed.down(up.times(x, gate.silu(x)))
    gates, up_ = gate_up(x).chunk(2, -1)
    return h + feed.down(F.silu(gates, inplace=True).mul_(up_))

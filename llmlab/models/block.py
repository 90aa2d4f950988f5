"""One layer of a decoder."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.models.batch import Batch
from llmlab.models.formats.linear import Linear
from llmlab.models.kernels import cpu_prefill, reference
from llmlab.models.kernels.reference import attention
from llmlab.models.shape import Shape


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
        self.bound: dict[bool, Any] = {False: None, True: None}
        self.reference_copy = False

    def forward(self, h: Tensor, batch: Batch, fill: bool = False) -> Tensor:
        """h (N, E) to (N, E). With `fill`, only this layer's keys and values are made; h returns unchanged.

        Where `fast` has a way for this pass it goes there; what stands here is the same as the papers write it. A pass
        of a few rows changes h in place.
        """
        if batch.kernel is not None:
            return batch.kernel.layer(self, h, batch, fill)
        if h.is_cpu and not self.reference_copy and cpu_prefill.suits(self, batch):
            return cpu_prefill.prefill_layer(self, h, batch, fill)
        s = self.shape
        N = h.shape[0]
        qkv = self.qkv(self.norm_attention(h)).view(N, s.heads + 2 * s.kv_heads, s.head_size)
        q, k, v = qkv.split([s.heads, s.kv_heads, s.kv_heads], 1)  # (N, heads, D)
        if self.norm_q is not None:
            q, k = self.norm_q(q), self.norm_k(k)
        q, k = reference.rotate(q, batch.rotation), reference.rotate(k, batch.rotation)
        parts = []
        for span in batch.spans:
            at = slice(span.start, span.stop)
            rows = span.memory.layers[self.index]
            rows.append(k[at].transpose(0, 1), v[at].transpose(0, 1), span.order(batch))
            if not fill:
                parts.append(attention(q[at], rows, batch.positions[at], span, self.index, self.window))
        if fill:
            return h
        h = h + self.out(parts[0] if len(parts) == 1 else torch.cat(parts))
        gate, up = self.gate_up(self.norm_feed(h)).chunk(2, -1)
        return h + self.down(F.silu(gate) * up)

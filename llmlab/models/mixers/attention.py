"""Softmax attention with rotary positions and grouped queries: the mixer of Llama, Mistral and Qwen.

Shapes: N tokens, H query heads, KV key-value heads, D head size, E width.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from llmlab.kv.rows import Rows
from llmlab.kv.storage import MirroredStorage, PlainStorage
from llmlab.models.batch import Batch
from llmlab.models.capabilities import Capability
from llmlab.models.formats.linear import Linear
from llmlab.models.kernels.reference import attention, rotate
from llmlab.models.norm import Norm
from llmlab.models.shape import Shape
from llmlab.models.version import Versioned


class Attention(Versioned):
    """softmax(q kᵀ / √D) v over the rows of the layer's memory (Vaswani et al., arXiv 1706.03762, section 3.2).

    `qkv` (H·D + 2·KV·D, E) holds queries, keys and values, the former two with their rows in interleaved order;
    `window` is how many positions a query sees, None for all.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability)

    def __init__(
        self, shape: Shape, window: int | None, qkv: Linear, out: Linear, head_norms: tuple[Norm, Norm] | None = None
    ) -> None:
        super().__init__()
        self.shape, self.window = shape, window
        self.qkv, self.out = qkv, out
        self.norm_q: Norm | None
        self.norm_k: Norm | None
        self.norm_q, self.norm_k = head_norms or (None, None)

    def linears(self) -> dict[str, Linear]:
        return {"qkv": self.qkv, "out": self.out}

    def memory(self, dtype: torch.dtype, device: torch.device, mirrored: bool) -> Rows:
        storage = MirroredStorage if mirrored else PlainStorage
        return Rows(storage(self.shape.kv_heads, self.shape.head_size, dtype, device), device)

    def project(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (N, E), normed, to q (N, H, D), k and v (N, KV, D), the former two turned by rotation (N, 1, D/2)."""
        s = self.shape
        qkv = self.qkv(x).view(len(x), s.heads + 2 * s.kv_heads, s.head_size)
        q, k, v = qkv.split([s.heads, s.kv_heads, s.kv_heads], 1)
        if self.norm_q is not None and self.norm_k is not None:
            q, k = self.norm_q(q), self.norm_k(k)
        return rotate(q, rotation), rotate(k, rotation), v

    def mix(self, x: Tensor, batch: Batch, layer: int, kv_only: bool) -> Tensor | None:
        q, k, v = self.project(x, batch.rotation)
        kv = torch.stack([k, v]).transpose(1, 2)  # (2, KV, N, D)
        seen = []
        for span in batch.spans:
            at = slice(span.start, span.stop)
            rows = span.memory.layers[layer]
            rows.append(kv[:, :, at], span.order(batch))
            if not kv_only:
                seen.append(attention(q[at], rows, batch.positions[at], span, layer, span.all_patterns(self.window)))
        return None if kv_only else self.out(seen[0] if len(seen) == 1 else torch.cat(seen))

    def flops(self, rows: int) -> float:
        return 4.0 * rows * self.shape.heads * self.shape.head_size

"""Attention without a softmax, whose memory is a sum: Transformers are RNNs (Katharopoulos et al., arXiv 2006.16236).

Shapes: N tokens, H heads, D head size, E width.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.kv.state import LinearState
from llmlab.models.batch import Batch
from llmlab.models.capabilities import Capability
from llmlab.models.formats.linear import Linear
from llmlab.models.norm import Norm
from llmlab.models.shape import Shape
from llmlab.models.version import Versioned


class LinearAttention(Versioned):
    """y = φ(q) Σ φ(k) vᵀ / φ(q) Σ φ(k), with φ(x) = elu(x) + 1 (sections 3.2 to 3.4).

    Takes the matrices of an `Attention` as they are, without its rotation: a sum knows no positions. Key-value heads
    that several query heads share are repeated.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.MANY_ROWS, Capability.ROLLBACK, Capability.LAYERS, Capability.STATES, Capability.WEIGHTS}
    )

    def __init__(self, shape: Shape, qkv: Linear, out: Linear, head_norms: tuple[Norm, Norm] | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.qkv, self.out = qkv, out
        self.norm_q: Norm | None
        self.norm_k: Norm | None
        self.norm_q, self.norm_k = head_norms or (None, None)

    def linears(self) -> dict[str, Linear]:
        return {"qkv": self.qkv, "out": self.out}

    def memory(self, dtype: torch.dtype, device: torch.device, mirrored: bool) -> LinearState:
        """In float32 whatever `dtype` is: the sum runs over the whole text."""
        return LinearState(self.shape.heads, self.shape.head_size, self.shape.head_size, device)

    def mix(self, x: Tensor, batch: Batch, layer: int, kv_only: bool) -> Tensor | None:
        s, N = self.shape, len(x)
        qkv, out = (self.qkv.rowwise, self.out.rowwise) if batch.exact else (self.qkv, self.out)
        q, k, v = qkv(x).view(N, -1, s.head_size).split([s.heads, s.kv_heads, s.kv_heads], 1)
        if self.norm_q is not None and self.norm_k is not None:
            q, k = self.norm_q(q), self.norm_k(k)
        G = s.heads // s.kv_heads
        q = (F.elu(q) + 1).transpose(0, 1)  # (H, N, D)
        k = (F.elu(k) + 1).repeat_interleave(G, 1).transpose(0, 1)
        v = v.repeat_interleave(G, 1).transpose(0, 1)
        seen = []
        for span in batch.spans:
            at = slice(span.start, span.stop)
            state = cast(LinearState, span.memory.layers[layer])
            state.append(k[:, at], v[:, at])
            if not kv_only:
                T = span.stop - span.start
                visible = torch.ones(T, T, dtype=torch.bool).tril() if span.visible is None else span.visible
                seen.append(state.attend(q[:, at], visible.to(x.device)).transpose(0, 1).flatten(1))
        return None if kv_only else out(torch.cat(seen))

    def flops(self, rows: int) -> float:
        return 4.0 * self.shape.heads * self.shape.head_size**2

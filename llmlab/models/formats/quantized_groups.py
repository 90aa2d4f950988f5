"""4-bit codes with one scale and one minimum per group of 32 inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 32


@dataclass(frozen=True)
class QuantizedGroups:
    """w = d·q + m per group. q (N, K) uint8 in 0..15; d and m (N, K/32) float32."""

    q: Tensor
    d: Tensor
    m: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.q.shape

    def dense(self) -> Tensor:
        """(N, K) float32."""
        N, K = self.q.shape
        groups = self.q.view(N, K // GROUP, GROUP).float()
        return (self.d[..., None] * groups + self.m[..., None]).view(N, K)

    @classmethod
    def of(cls, dense: Tensor) -> QuantizedGroups:
        """Round each group of `dense` (N, K) to the nearest of 16 levels between its minimum and its maximum."""
        N, K = dense.shape
        groups = dense.float().view(N, K // GROUP, GROUP)
        m = groups.amin(-1)
        d = (groups.amax(-1) - m) / 15
        q = ((groups - m[..., None]) / d.clamp_min(1e-12)[..., None]).round_().clamp_(0, 15)
        return cls(q.view(N, K).to(torch.uint8), d, m)


GROUP = 32

"""Codes of a few bits with one scale, and one minimum where wanted, per group of inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llmlab.models.loading.progress import check

GROUP = 32
PIECE = 4096
"""Rows that are rounded at once, so that it can be stopped, and its intermediate numbers stay small."""

Zero = Literal["minimum", "symmetric"]
"""Where a group's levels lie: from its minimum to its maximum, or alike on both sides of zero."""


@dataclass(frozen=True)
class QuantizedGroups:
    """w = d·q + m per group of `group` inputs. q (N, K) uint8 in 0 … 2^bits - 1; d and m (N, K / group) float32."""

    q: Tensor
    d: Tensor
    m: Tensor
    bits: int = 4
    group: int = GROUP

    @property
    def shape(self) -> torch.Size:
        return self.q.shape

    def dense(self) -> Tensor:
        """(N, K) float32."""
        N, K = self.q.shape
        groups = self.q.view(N, K // self.group, self.group).float()
        return (self.d[..., None] * groups + self.m[..., None]).view(N, K)

    def rows(self, index: Tensor) -> QuantizedGroups:
        """The rows of `index` (n,), in that order."""
        return QuantizedGroups(self.q[index], self.d[index], self.m[index], self.bits, self.group)

    @classmethod
    def of(cls, dense: Tensor, bits: int = 4, group: int = GROUP, zero: Zero = "minimum") -> QuantizedGroups:
        """Round `dense` (N, K) to the nearest of the 2^bits levels of each group; K must be a multiple of `group`.

        The levels lie between a group's minimum and its maximum; with `zero` "symmetric" they are (q - 2^(bits-1)) · d,
        the largest magnitude at the end of the shorter side, so that nothing is cut off.
        """
        check()
        N, K = dense.shape
        if N > PIECE:
            return cls.joined([cls.of(part, bits, group, zero) for part in dense.split(PIECE)])
        groups = dense.float().view(N, K // group, group)
        top = 2**bits - 1
        if zero == "minimum":
            m = groups.amin(-1)
            d = (groups.amax(-1) - m) / top
        else:
            half = 2 ** (bits - 1)
            d = groups.abs().amax(-1) / (half - 1)
            m = -half * d
        q = ((groups - m[..., None]) / d.clamp_min(1e-12)[..., None]).round_().clamp_(0, top).nan_to_num_(0)
        return cls(q.view(N, K).to(torch.uint8), d, m, bits, group)

    @classmethod
    def joined(cls, parts: Sequence[QuantizedGroups]) -> QuantizedGroups:
        """Codes of one kind, one below the other."""
        q, d, m = (torch.cat([getattr(p, name) for p in parts]) for name in "qdm")
        return cls(q, d, m, parts[0].bits, parts[0].group)


Matrix = Tensor | QuantizedGroups
"""A weight matrix (N, K) on its way into a format: numbers, or codes that a file holds."""


def as_dense(weight: Matrix) -> Tensor:
    return weight.dense() if isinstance(weight, QuantizedGroups) else weight


def pick_rows(weight: Matrix, index: Tensor) -> Matrix:
    """The rows of `index` (n,), in that order."""
    return weight.rows(index) if isinstance(weight, QuantizedGroups) else weight[index]


def stacked(parts: Sequence[Matrix]) -> Matrix:
    """Matrices with the same inputs one below the other; codes stay codes where all are, and of one kind."""
    codes = [p for p in parts if isinstance(p, QuantizedGroups)]
    if len(codes) == len(parts) and len({(p.bits, p.group) for p in codes}) == 1:
        return QuantizedGroups.joined(codes)
    return torch.cat([as_dense(p) for p in parts])

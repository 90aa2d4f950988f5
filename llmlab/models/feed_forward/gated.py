"""The gated feed-forward block: SwiGLU (Shazeer, arXiv 2002.05202, equation 6)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from llmlab.models.formats.linear import Linear
from llmlab.models.version import Versioned


class GatedFeedForward(Versioned):
    """down(silu(gate x) · up x), with gate and up in one matrix `gate_up` (2F, E) and `down` (E, F)."""

    def __init__(self, gate_up: Linear, down: Linear) -> None:
        super().__init__()
        self.gate_up, self.down = gate_up, down

    def linears(self) -> dict[str, Linear]:
        return {"gate_up": self.gate_up, "down": self.down}

    def feed(self, x: Tensor, exact: bool = False) -> Tensor:
        gate_up, down = (self.gate_up.rowwise, self.down.rowwise) if exact else (self.gate_up, self.down)
        gate, up = gate_up(x).chunk(2, -1)
        return down(F.silu(gate) * up)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from llmlab.models.capabilities import Capability
from llmlab.runtime.calibration import walk_layers
from llmlab.runtime.configurable import knob
from llmlab.runtime.roles import WeightTransform
from llmlab.runtime.tools import Tools

MULTIPLE = 32


@dataclass(frozen=True)
class NeuronDrop(WeightTransform):
    """Feed-forward neuron removal.

    Idea: Remove whole neurons of the feed-forward blocks: a row of gate and up, a column of down. The matrices really
    become smaller, so memory and time follow at once, with no special kernel.
    Method: score(j) = ‖X_j‖₂ · ‖W_down[:, j]‖₂ with X the neurons' outputs on a calibration text; each block loses the
    `ratio` of neurons with the lowest score.
    What to look for: Weight memory, time per pass and quality, all three at once: this saving is real, and so is its
    price.
    Differences from the paper: LLM-Pruner scores by gradients, removes coupled heads too and fine-tunes afterwards;
    here is its forward-only part, without recovery. Counts are rounded so that the low-bit kernels still fit.
    """

    covers = ("llm-pruner",)
    needs = frozenset({Capability.WEIGHTS})
    stage = 0
    claim = "Removes whole neurons: smaller matrices, real savings."
    claim_zh = "去掉整个神经元：矩阵变小，节省是真实的。"
    noop_settings = {"ratio": 0.0}
    biting_settings = {"ratio": 0.4}
    main_knob = "ratio"

    ratio: float = knob(0.1, 0.0, 0.9, "share of feed-forward neurons removed per layer")
    calibration: int = knob(1024, 64, 8192, "calibration tokens", advanced=True)

    def apply(self, model: Any, tools: Tools) -> str:
        for block, inputs in walk_layers(model, tools.calibration(self.calibration)):
            linears = block.linears()
            down, gate_up = linears["down"].dense(), linears["gate_up"].dense()  # (E, F), (2F, E)
            F = down.shape[1]
            kept = max(MULTIPLE, round(F * (1 - self.ratio) / MULTIPLE) * MULTIPLE) if self.ratio else F
            score = inputs["down"].norms * down.norm(dim=0)
            rows = score.topk(min(kept, F)).indices.sort().values
            block.store("down", down[:, rows].contiguous())
            block.store("gate_up", gate_up[torch.cat([rows, F + rows])])
        return f"{F - len(rows)} of {F} neurons removed in each of {len(model.layers)} layers"

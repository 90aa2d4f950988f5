from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmlab.models.capabilities import Capability
from llmlab.runtime.calibration import walk_layers
from llmlab.runtime.configurable import knob
from llmlab.runtime.roles import WeightTransform
from llmlab.runtime.tools import Tools
from llmlab.techniques.weights.sparsity import PATTERNS, lowest, zeros


@dataclass(frozen=True)
class Wanda(WeightTransform):
    """Wanda.

    Idea: A weight matters as much as what flows through it. Some inputs are far larger than others, so a small weight
    on a loud input outranks a large one on a silent input.
    Method: score = |W_ij| · ‖X_j‖₂ with X the inputs on a calibration text; per output row, zero the lowest `ratio`.
    Layer after layer, each calibrated on what the pruned layers before it put out.
    What to look for: Quality against magnitude pruning at the same ratio. At a half, the difference is the paper's
    point.
    Differences from the paper: Calibrated on a short text of our own in place of 128 × 2048 tokens of C4. In the
    low-bit formats the pruned matrix is quantized anew, so that some zeros come back as small numbers; the note of the
    run counts those that hold.
    """

    covers = ("https://arxiv.org/abs/2306.11695", "idea-unstructured-50-60", "nm-sparsity")
    needs = frozenset({Capability.WEIGHTS})
    claim = "Zeroes the weights whose size times input is smallest."
    claim_zh = "把“大小×输入”最小的权重置零。"
    speed = "simulated"
    noop_settings = {"ratio": 0.0, "pattern": "unstructured"}
    biting_settings = {"ratio": 0.4}
    main_knob = "ratio"

    ratio: float = knob(0.5, 0.0, 0.95, "share of weights removed")
    pattern: str = knob("unstructured", choices=PATTERNS, help="2:4 and 4:8 remove half, whatever the ratio says")
    calibration: int = knob(1024, 64, 8192, "calibration tokens", advanced=True)

    def apply(self, model: Any, tools: Tools) -> str:
        for block, inputs in walk_layers(model, tools.calibration(self.calibration)):
            for name, linear in block.linears().items():
                W = linear.dense()
                scores = W.abs() * inputs[name].norms
                block.store(name, W.masked_fill(lowest(scores, self.ratio, self.pattern), 0))
        none, total = zeros(model)
        return f"{none / total:.0%} of {total / 1e6:.1f} million weights are zero; the matrices are stored dense"

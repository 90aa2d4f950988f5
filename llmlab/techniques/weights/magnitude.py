from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmlab.models.capabilities import Capability
from llmlab.runtime.configurable import knob
from llmlab.runtime.roles import WeightTransform
from llmlab.runtime.tools import Tools
from llmlab.techniques.weights.sparsity import PATTERNS, lowest, zeros


@dataclass(frozen=True)
class Magnitude(WeightTransform):
    """Magnitude pruning.

    Idea: Small weights matter least. Set them to zero.
    Method: In each row of each matrix, zero the `ratio` of weights with the smallest |w|; with 2:4 or 4:8, the smaller
    half of every four or eight neighbours.
    What to look for: The quality table. Language models tolerate little of this: compare with Wanda at the same ratio.
    Speed does not move, because a dense product multiplies zeros as carefully as anything else.
    Differences from the paper: Weights compete within their row, as Wanda's do, so that both differ in their score
    alone; the classic rule lets the whole matrix compete.
    """

    covers = ("idea-unstructured-50-60", "nm-sparsity")
    needs = frozenset({Capability.WEIGHTS})
    claim = "Sets the smallest weights to zero."
    claim_zh = "把最小的权重置零。"
    speed = "simulated"
    noop_settings = {"ratio": 0.0, "pattern": "unstructured"}
    biting_settings = {"ratio": 0.4}
    main_knob = "ratio"

    ratio: float = knob(0.3, 0.0, 0.95, "share of weights removed")
    pattern: str = knob("unstructured", choices=PATTERNS, help="2:4 and 4:8 remove half, whatever the ratio says")

    def apply(self, model: Any, tools: Tools) -> str:
        for block in model.layers:
            for name, linear in block.linears().items():
                W = linear.dense()
                block.store(name, W.masked_fill(lowest(W.abs(), self.ratio, self.pattern), 0))
        none, total = zeros(model)
        return f"{none / total:.0%} of {total / 1e6:.1f} million weights are zero; the matrices are stored dense"

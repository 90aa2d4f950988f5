from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmlab.errors import Refused
from llmlab.models.block import Blocks
from llmlab.models.capabilities import Capability
from llmlab.runtime.calibration import layer_influence
from llmlab.runtime.configurable import knob
from llmlab.runtime.roles import WeightTransform
from llmlab.runtime.tools import Tools


@dataclass(frozen=True)
class LayerDrop(WeightTransform):
    """Layer removal.

    Idea: Neighbouring layers of a deep model do similar work. Remove those that change their input least; time, weights
    and KV memory all shrink by that share.
    Method: influence(l) = 1 − mean cos(h_in, h_out) on a calibration text; remove the `count` layers with the lowest.
    What to look for: Everything gets cheaper in proportion. In a small model every layer works for its living: see how
    few can go before the text does.
    Differences from the paper: This is ShortGPT's rule. LayerDrop proper trains with random layers missing so that any
    may be left out later; without such training the loss is larger.
    """

    covers = ("https://arxiv.org/abs/2403.03853",)
    needs = frozenset({Capability.WEIGHTS, Capability.LAYERS})
    stage = 0
    claim = "Removes whole layers: weights, time and KV memory shrink together."
    claim_zh = "去掉整层：权重、时间和 KV 内存一起减少。"
    noop_settings = {"count": 0}
    biting_settings = {"count": 1}
    main_knob = "count"

    count: int = knob(2, 0, 64, "layers removed")
    calibration: int = knob(512, 64, 8192, "calibration tokens", advanced=True)

    def apply(self, model: Any, tools: Tools) -> str:
        total = len(model.layers)
        if self.count >= total:
            raise Refused(self.title, f"cannot remove {self.count} of {total} layers", f"Ask for {total - 1} or fewer")
        scores = layer_influence(model, tools.calibration(self.calibration))
        gone = set(sorted(range(total), key=scores.__getitem__)[: self.count])
        model.layers = Blocks(block for i, block in enumerate(model.layers) if i not in gone)
        named = ", ".join(str(i) for i in sorted(gone))
        return f"{self.count} of {total} layers removed ({named})" if gone else "no layer removed"

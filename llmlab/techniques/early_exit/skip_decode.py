from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import Tensor

from llmlab.models.batch import Batch
from llmlab.models.capabilities import Capability
from llmlab.models.decoder import Decoder, Plan
from llmlab.models.result import PlanResult
from llmlab.runtime.configurable import knob
from llmlab.runtime.roles import LayerPlan
from llmlab.runtime.tools import Tools


@dataclass(frozen=True)
class SkipDecode(LayerPlan):
    """SkipDecode.

    Idea: The first words of an answer are the hardest, so depth falls with position, the same for every sequence of a
    batch. Lower layers are left out first. Since depth never rises again, a layer that is left out is never asked for
    the rows it lacks: nothing has to be filled in, and the memory shrinks too.
    Method: New token t runs d(t) = round(max − (max − `least`) · min(1, t / `over`)) layers: the lowest `warmup` and
    the highest d(t) − `warmup`. The prompt runs all L.
    What to look for: Rows of keys and values per layer: the left-out ones stop growing. The text falls apart with
    depth, for this model has never run without its lower layers.
    Differences from the paper: The paper fine-tunes the model for the schedule; this one is frozen, which is harsher.
    `over` is a setting, where the paper knows how long the answer may become.
    """

    covers = ("skipdecode",)
    needs = frozenset({Capability.LAYERS})
    disables = frozenset({Capability.MANY_ROWS})
    claim = "Later tokens run fewer layers, by position alone."
    claim_zh = "越靠后的词元运行的层越少，只看位置。"
    noop_settings = {"least": 128, "most": 0}
    biting_settings = {"least": 2, "over": 10}
    main_knob = "least"

    least: int = knob(8, 1, 128, "layers of the last tokens; as many as the model has: all run")
    most: int = knob(0, 0, 128, "layers of the first new token; 0: all")
    over: int = knob(64, 1, 4096, "new tokens over which depth falls from most to least")
    warmup: int = knob(1, 0, 16, "lowest layers that always run", advanced=True)

    def layers_at(self, t: int, count: int) -> list[int]:
        """Which of `count` layers new token t (from 0) runs, ascending."""
        most = min(self.most or count, count)
        least = min(self.least, most)
        d = round(most - (most - least) * min(1.0, t / self.over))
        low = min(self.warmup, d)
        return [*range(low), *range(count - (d - low), count)]

    def plan(self, model: Decoder, tools: Tools) -> Plan:
        passes = itertools.count()

        def plan(model: Decoder, h: Tensor, batch: Batch) -> PlanResult:
            count = len(model.layers)
            chosen = self.layers_at(next(passes), count)
            low = next((i for i, layer in enumerate(chosen) if i != layer), len(chosen))
            h = model.run_layers(h, batch, 0, low)
            h = model.run_layers(h, batch, count - len(chosen) + low) if low < len(chosen) else h
            return PlanResult(h, float(len(chosen)))

        return plan

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmlab.errors import Refused
from llmlab.models.capabilities import Capability
from llmlab.models.mixers.attention import Attention
from llmlab.models.mixers.linear_attention import LinearAttention as LinearMixer
from llmlab.runtime.calibration import layer_influence
from llmlab.runtime.configurable import knob
from llmlab.runtime.roles import WeightTransform
from llmlab.runtime.tools import Tools


@dataclass(frozen=True)
class LinearAttention(WeightTransform):
    """Linear attention in some layers.

    Idea: Without the softmax, attention is a sum that can be carried along: instead of a row of keys and values per
    token, a layer remembers one matrix per head, however long the text becomes.
    Method: y = φ(q) Σ φ(k) vᵀ / (φ(q) Σ φ(k)) with φ(x) = elu(x) + 1, in place of softmax attention in the `layers`
    layers that change their input least on a calibration text.
    What to look for: KV memory: converted layers hold no rows, and their state does not grow. And the text: even one
    layer costs quality, since its matrices were trained for a softmax.
    Differences from the paper: The paper trains such layers from the start. Here a trained layer's matrices are taken
    as they are, without its rotary positions and without any training after it.
    """

    covers = ("https://arxiv.org/abs/2006.16236",)
    needs = frozenset({Capability.WEIGHTS, Capability.LAYERS})
    stage = 0
    claim = "Replaces softmax attention by a running sum in some layers."
    claim_zh = "在部分层中用累加状态代替 softmax 注意力。"
    noop_settings = {"layers": 0}
    biting_settings = {"layers": 2}
    main_knob = "layers"

    layers: int = knob(1, 0, 64, "layers converted, those that change their input least first")
    calibration: int = knob(512, 64, 8192, "calibration tokens", advanced=True)

    def disabled(self) -> frozenset[Capability]:
        gone = frozenset(Capability) - LinearMixer.capabilities
        return gone if self.layers else frozenset()

    def apply(self, model: Any, tools: Tools) -> str:
        total = len(model.layers)
        if self.layers > total:
            raise Refused(self.title, f"cannot convert {self.layers} of {total} layers", f"Ask for {total} or fewer")
        scores = layer_influence(model, tools.calibration(self.calibration))
        chosen = sorted(sorted(range(total), key=scores.__getitem__)[: self.layers])
        for i in chosen:
            old: Attention = model.layers[i].mixer
            norms = None if old.norm_q is None or old.norm_k is None else (old.norm_q, old.norm_k)
            model.layers[i].mixer = LinearMixer(old.shape, old.qkv, old.out, norms)
        return (
            f"{len(chosen)} of {total} layers keep a state in place of rows ({', '.join(map(str, chosen)) or 'none'})"
        )

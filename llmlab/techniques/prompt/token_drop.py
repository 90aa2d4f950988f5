from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmlab.errors import Refused
from llmlab.models.capabilities import Capability
from llmlab.models.decoder import Plan
from llmlab.runtime.configurable import knob
from llmlab.runtime.roles import LayerPlan
from llmlab.runtime.token_drop_plan import TokenDropPlan, Top, places
from llmlab.runtime.tools import Tools


@dataclass(frozen=True)
class TokenDrop(LayerPlan):
    """Token dropping.

    Idea: Deep in the model most words of a prompt have done their work. While the prompt is read, those that
    get little attention go no further, and the rest of the layers reads a shorter prompt.
    Method: At `times` layers from `first` on, keep the (1 − `ratio`)·T tokens of largest significance. received: Sig(j)
    = Σ_h Σ_i A_h[i, j], the attention that token j draws; mean: the same divided by how many could look, since early
    tokens are seen by more; last: what the last token pays to it. The memory of the layers below keeps all rows, that
    of the layers above only the survivors'.
    What to look for: Time to the first token against rows in memory. The weights of the layers that choose must be
    made, which the fast prefill never does: on short prompts that costs more than it saves. The text follows
    fewer and fewer of the prompt's details.
    Differences from the paper: PoWER-BERT drops words from a fine-tuned encoder between attention and feed-forward, and
    learns how many; here a causal model loses them after a whole layer, at one ratio (the study of dropped tokens
    learns it). The first token stays: the others lean on it. LazyLLM, whose score is the last token's attention, brings
    dropped tokens back when a later one asks for them; here they are gone, and of a prompt over 512 tokens each piece
    drops its own.
    """

    covers = ("https://arxiv.org/abs/2407.14057",)
    needs = frozenset({Capability.LAYERS, Capability.ATTENTION})
    disables = frozenset({Capability.ROTARY})
    phase = "prefill"
    claim = "Lets a prompt's unattended words leave before the deeper layers."
    claim_zh = "让提示中没人注意的词在进入深层之前离开。"
    noop_settings = {"ratio": 0.0}
    biting_settings = {"ratio": 0.5, "first": 1, "times": 2}
    main_knob = "ratio"

    ratio: float = knob(0.3, 0.0, 0.9, "share of the tokens dropped each time")
    first: int = knob(0, 0, 64, "layers that every token goes through; 0: a third of them")
    times: int = knob(3, 1, 16, "how often tokens are dropped, evenly up to the last layer")
    score: str = knob("last", choices=("last", "received", "mean", "random"), help="whose attention counts, or chance")

    def plan(self, model: Any, tools: Tools) -> Plan | None:
        count = len(model.layers)
        first = self.first or max(1, count // 3)
        if self.ratio and first >= count:
            raise Refused(self.title, f"would drop nothing: it waits for layer {first} of {count}", "Lower first")
        if not self.ratio:
            return None
        chosen = Top(1 - self.ratio, self.score)  # type: ignore[arg-type]
        return TokenDropPlan({layer: chosen for layer in places(count, first, self.times)}, answer=False)

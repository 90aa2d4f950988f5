from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmlab.errors import Refused
from llmlab.models.auxiliary.exit_heads import HEADS, ExitHeads
from llmlab.models.batch import Batch
from llmlab.models.cached import cached_on
from llmlab.models.capabilities import Capability
from llmlab.models.decoder import Decoder, Plan
from llmlab.runtime.configurable import knob
from llmlab.runtime.early_exit_plan import FILLS, EarlyExitPlan, ExitTest
from llmlab.runtime.roles import LayerPlan
from llmlab.runtime.tools import Tools
from llmlab.techniques.early_exit import rules, thresholds
from llmlab.techniques.early_exit.heads import WORDS, answers_on_own_words, exit_heads

ARXIV = "https://arxiv.org/abs/"
RULES = ("probability", "margin", "entropy", "speed", "patience", "consistency", "learned")


@dataclass(frozen=True)
class EarlyExit(LayerPlan):
    """Early exit by confidence.

    Idea: Where a rule finds the head of a middle layer sure enough, its word is the token; the rest is skipped.
    Method: After each head, over its distribution p: max p > θ; p₁ − p₂ > θ (CALM); entropy < 1 − θ, in nats
    (BranchyNet, DeeBERT) or over ln |p| (FastBERT); `patience` heads in a row agree (PABEE); a regression (CATs) or a
    trained gate (CALM) is surer than θ. `epsilon` sets θ so that a share 1 − ε of tokens stays (CATs).
    What to look for: Layers and time per pass. The logit lens, the model's own head on middle states, rarely agrees.
    Differences from the paper: They train the exits; here the model is frozen, and an exit knows its shortlist only.
    CATs promise 1 − ε for inputs that are exchangeable. In generation they are not: each word depends on earlier exits,
    and the bar comes from other texts. Measured with trained exits and `rule=margin` (default model, int4, 30 held-out
    prompts, 48 words of each, against what all layers say at each place): 98.9 ± 0.3 % the same for ε = 0.02, 95.2 ±
    0.8 for 0.05, 91.2 ± 1.1 for 0.1, 85.8 ± 1.4 for 0.2; but on code, where the exits are surest, 91.7 ± 2.1 for 0.05
    and 85.9 ± 2.8 for 0.1. `python -m benchmarks.exits --own-text` repeats it."""

    covers = ("branchynet", "deebert", "fastbert", "pabee", "cats", ARXIV + "2207.07061", ARXIV + "2310.05424")
    needs = frozenset({Capability.LAYERS})
    disables = frozenset({Capability.MANY_ROWS})
    claim = "Stops at a middle layer when the model is already sure."
    claim_zh = "模型已有把握时在中间层停下。"
    noop_settings = {"threshold": 1.0}
    biting_settings = {"threshold": 0.15, "first": 2, "step": 1, "fill": "copy"}
    main_knob = "threshold"

    rule: str = knob("probability", choices=RULES, help="what counts as sure")
    threshold: float = knob(0.95, 0.0, 1.0, "θ: how sure is sure enough; 1 never exits, whatever the rule")
    head: str = knob("logit-lens", choices=HEADS, help="the model's own head, or exits trained for this model")
    epsilon: float = knob(0.0, 0.0, 0.5, "share of tokens that may differ: sets the threshold; 0 leaves it as it is")
    fill: str = knob("later", choices=FILLS, help="skipped keys and values: made later, or of a copied state")
    gate: float = knob(0.5, 0.0, 1.0, "ask a trained exit's head only from these odds of its gate on; 0: always")
    patience: int = knob(2, 1, 10, "heads in a row that must agree (rule patience)", advanced=True)
    first: int = knob(0, 0, 128, "layers that every token goes through; 0: seven of eight, or up to the first exit")
    step: int = knob(2, 1, 32, "layers between two checks of the logit lens", advanced=True)
    words: int = knob(WORDS, 0, 1 << 18, "words that the logit lens looks at; 0: all of them", advanced=True)

    def disabled(self) -> frozenset[Capability]:
        return self.disables | ({Capability.EVICTION} if self.fill == "later" else frozenset())

    def prepare(self, model: Any, tools: Tools) -> None:
        if self.threshold < 1:
            self._ready(model, tools)

    def _ready(self, model: Decoder, tools: Tools | None) -> tuple[ExitHeads, tuple[int, ...], rules.Rule]:
        """The heads, after how many layers they are asked, and the rule."""
        count, trained = len(model.layers), self.head == "trained"
        if self.rule == "learned" and not trained:
            raise Refused(self.title, "has no gate beside the logit lens", "Choose another rule, or head=trained")
        first = self.first or (1 if trained else count * 7 // 8)
        heads = exit_heads(model, tools, self.head, range(first, count, self.step), self.words, self.title)
        asked = tuple(layer for layer in heads.layers if first <= layer < count)
        if not asked:
            raise Refused(self.title, f"waits in vain for layer {first} of {count}", "Give a smaller number as first")
        return heads, asked, cached_on(model, (self, asked), lambda: self._set(heads, asked, tools))

    def _set(self, heads: ExitHeads, asked: tuple[int, ...], tools: Tools | None) -> rules.Rule:
        """The rule. Where ε sets its bar, or a regression is fitted, that is done on the model's own words."""
        if not self.epsilon and self.rule != "consistency":
            return rules.named(self.rule, self.threshold, self.patience)
        p, same, odds = answers_on_own_words(heads, tools, asked)
        p = odds[..., None] if self.rule == "learned" else p
        if self.rule == "consistency":
            fit = torch.arange(p.shape[1], device=p.device) % 2 == 0  # what it was fitted on promises nothing
            rule: rules.Rule = thresholds.Consistency.along(p[:, fit], same[:, fit], self.threshold)
            p, same, odds = p[:, ~fit], same[:, ~fit], odds[:, ~fit]
        else:
            rule = rules.named(self.rule, self.threshold, self.patience)
        scores = thresholds.scores_of(rule, p).masked_fill(odds < self._gate(), -torch.inf)
        return thresholds.Above(rule, thresholds.conformal(scores, same, self.epsilon)) if self.epsilon else rule

    def _gate(self) -> float:
        """The odds below which a trained exit's head is not asked; rules that remember its answers want them all."""
        return self.gate if self.rule in RULES[:4] else 0.0

    def plan(self, model: Decoder, tools: Tools) -> Plan | None:
        if self.threshold == 1:
            return None
        heads, asked, rule = self._ready(model, tools)

        def begin(batch: Batch) -> ExitTest:
            answers: list[Tensor] = []

            def test(ran: int, h: Tensor) -> tuple[Tensor, float] | None:
                odds = heads.odds(ran, h)
                if odds < self._gate():
                    return None
                logits = None if self.rule == "learned" else heads.logits(ran, h)
                answers.append(odds[:, None] if logits is None else torch.softmax(logits, -1))
                if not rule.leaves(torch.stack(answers)):
                    return None
                return heads.spread(heads.logits(ran, h) if logits is None else logits), float(answers[-1].amax())

            return test

        return EarlyExitPlan(asked, begin, self.fill)

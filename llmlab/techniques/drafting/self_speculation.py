from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llmlab.models.batch import Batch
from llmlab.models.cached import cached_on
from llmlab.models.capabilities import Capability
from llmlab.models.decoder import Decoder, Plan
from llmlab.models.result import PlanResult
from llmlab.runtime.calibration import layer_influence
from llmlab.runtime.configurable import knob
from llmlab.runtime.draft import Draft, Verdict
from llmlab.runtime.roles import Drafter
from llmlab.runtime.session import Session
from llmlab.runtime.tools import Tools
from llmlab.techniques.drafting.draft_length import AdaptiveLength, row_cost
from llmlab.techniques.drafting.draft_tree import TREES, branches, chain, grow


def skipping(skipped: frozenset[int]) -> Plan:
    """The layers without those in `skipped`; these get no keys and values."""

    def plan(model: Decoder, h: Tensor, batch: Batch) -> PlanResult:
        start, count = 0, len(model.layers)
        for stop in [*sorted(skipped), count]:
            if start < stop:
                h = model.run_layers(h, batch, start, stop)
            start = stop + 1
        return PlanResult(h, float(count - len(skipped)))

    return plan


@dataclass(frozen=True)
class SelfSpeculation(Drafter):
    """Self-speculation.

    Idea: The model drafts for itself by leaving out its least important layers, then checks the draft with all of them.
    No second model, no extra weights.
    Method: Draft with layers {1…L} without S, where S holds the `skip` share of layers that change their input least (1
    − cos(h_in, h_out) on a calibration text, first and last layer excepted); accept as speculative sampling does.
    What to look for: Acceptance rate. A model that was not trained to lose layers agrees little with its own shortened
    self, so expect few accepted tokens; the text stays the same all the same.
    Differences from the paper: Draft & Verify searches S by Bayesian optimisation and adapts its stopping threshold;
    here S comes from one measurement and `confidence` is fixed, while `adapt` fits the length to the rate of the last
    drafts, counting a draft step as 1 − `skip` passes. `tree` drafts several tokens per step.
    """

    covers = ("https://arxiv.org/abs/2309.08168",)
    needs = Drafter.needs | {Capability.LAYERS}
    claim = "The model guesses with some of its layers skipped and checks with all."
    claim_zh = "跳过部分层来猜，再用全部层验证。"
    biting_settings = {"length": 5, "confidence": 0.0, "skip": 0.5}
    main_knob = "length"

    skip: float = knob(0.2, 0.05, 0.8, "share of the layers left out while drafting")
    length: int = knob(3, 1, 16, "tokens drafted per pass")
    tree: str = knob("1", choices=TREES, help="children per step; the last number goes on")
    adapt: bool = knob(False, help="shorten the draft where guesses are rejected, up to length where not")
    confidence: float = knob(0.5, 0.0, 1.0, "stop drafting below this probability", advanced=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        branches(self.tree, self.title)

    def prepare(self, model: Any, tools: Tools) -> None:
        self._influence(model, tools)

    def _influence(self, model: Decoder, tools: Tools) -> list[float]:
        """Per layer, how much it turns its input on the calibration text; measured once per model."""
        return cached_on(model, "influence", lambda: layer_influence(model, tools.calibration(512)))

    def drafts(self, session: Session, tools: Tools) -> Generator[Draft, Verdict, None]:
        influence = self._influence(session.model, tools)
        order = sorted(range(1, len(influence) - 1), key=influence.__getitem__)
        plan = skipping(frozenset(order[: round(self.skip * len(influence))]))
        shape = branches(self.tree, self.title)
        pace = AdaptiveLength(self.length, row_cost(session.model) + 1 - self.skip)

        def score(draft: Draft) -> Tensor:
            with session.speculative_scope() as ahead:
                return ahead.forward(draft, plan).logits

        while True:
            k = min(pace.length() if self.adapt else self.length, session.max_draft_depth())
            if shape == (1,):
                with session.speculative_scope() as ahead:
                    draft = chain(session, ahead, k, self.confidence, plan)
            else:
                draft = grow(session, score, shape, k, self.confidence)
            pace.learn((yield draft))

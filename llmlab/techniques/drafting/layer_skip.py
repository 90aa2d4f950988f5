from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmlab.errors import Refused
from llmlab.models.auxiliary.exit_heads import HEADS, ExitHeads
from llmlab.models.batch import Batch
from llmlab.models.capabilities import Capability
from llmlab.models.decoder import Decoder, Plan
from llmlab.models.result import PlanResult
from llmlab.runtime.configurable import knob
from llmlab.runtime.draft import Draft, Verdict
from llmlab.runtime.roles import Drafter
from llmlab.runtime.session import Session
from llmlab.runtime.tools import Tools
from llmlab.techniques.early_exit.heads import exit_heads, sample_draft


def lower(layer: int) -> Plan:
    """The first `layer` layers, whose output (N, E) stands for logits that nobody asks for."""

    def plan(model: Decoder, h: Tensor, batch: Batch) -> PlanResult:
        h = model.run_layers(h, batch, 0, layer).clone()  # a pass of a few rows changes h in place
        return PlanResult(h, float(layer), h)

    return plan


def upper(layer: int, states: Tensor) -> Plan:
    """The layers above `layer`, from states (n, E) that are at hand for the rows of this pass.

    The rows of the layers below are as the drafting passes wrote them: taken back, but still in their buffers.
    """

    def plan(model: Decoder, h: Tensor, batch: Batch) -> PlanResult:
        (span,) = batch.spans
        for rows in span.memory.layers[:layer]:
            rows.reclaim(span.order(batch))
        h = states[: len(batch.tokens)]
        if batch.taps:
            batch.taps.states |= {at: h for at in batch.taps.layers if at <= layer}
        return PlanResult(model.run_layers(h, batch, layer), float(len(model.layers)))

    return plan


@dataclass(frozen=True)
class LayerSkip(Drafter):
    """LayerSkip.

    Idea: Early exit without loss. The model drafts by exiting after a middle layer, and checks the draft with the
    layers that it left out, going on from the hidden states, keys and values that drafting has made already.
    Method: Draft d₁ … d_k from the head after layer `layer`, while it gives them at least `confidence`; then run layers
    `layer` + 1 … L on all k + 1 rows in one pass and accept as speculative decoding does. A pass that accepts a tokens
    costs (k + 1) · `layer` + (L − `layer`) layers, the latter shared by a few rows, for a + 1 tokens.
    What to look for: Acceptance rate, and time per pass. Nothing is computed twice, but what is rejected was computed
    in vain.
    Differences from the paper: The paper trains the model with layer dropout and an early-exit loss so that its middle
    layers speak its language; here the model is frozen and a trained exit (or the logit lens) translates. Under a cache
    policy that watches attention, the check runs all layers, for drafting passes are not watched.
    """

    covers = ("https://arxiv.org/abs/2404.16710",)
    needs = Drafter.needs | {Capability.LAYERS}
    claim = "Drafts by exiting early, then checks with only the layers left out."
    claim_zh = "提前退出来打草稿，再只用剩下的层验证。"
    biting_settings = {"length": 5, "confidence": 0.0, "layer": 3}
    main_knob = "length"

    layer: int = knob(0, 0, 127, "layers that a draft goes through; 0: half, or four fifths to a trained exit")
    length: int = knob(3, 1, 16, "tokens drafted per pass")
    confidence: float = knob(0.6, 0.0, 1.0, "stop drafting below this probability")
    head: str = knob("logit-lens", choices=HEADS, help="the model's own head, or exits trained for this model")
    gate: float = knob(0.5, 0.0, 1.0, "ask a trained exit's head only from these odds of its gate on; 0: always")
    words: int = knob(8192, 0, 1 << 18, "words that the logit lens looks at; 0: all of them", advanced=True)

    def prepare(self, model: Any, tools: Tools) -> None:
        self._exit(model, tools)

    def _exit(self, model: Decoder, tools: Tools) -> tuple[ExitHeads, int]:
        count = len(model.layers)
        layer = min(self.layer or max(1, count // 2), count - 1)
        heads = exit_heads(model, tools, self.head, (layer,), self.words, self.title)
        if self.head == "trained" and not self.layer:
            layer = min(heads.layers, key=lambda at: abs(at - 0.8 * count))  # earlier ones are too often wrong
        if layer not in heads.layers:
            sits = ", ".join(map(str, heads.layers))
            raise Refused(self.title, f"finds no trained exit after layer {layer}", f"Give one of {sits}")
        return heads, layer

    def drafts(self, session: Session, tools: Tools) -> Generator[Draft, Verdict, None]:
        heads, layer = self._exit(session.model, tools)
        watched = session.policy is not None and session.policy.observes
        while True:
            k, kept = min(self.length, session.max_draft_depth()), list[Tensor]()
            tokens: list[int] = []
            q: list[Tensor | None] = []
            with session.speculative_scope() as ahead:
                # One row more than is drafted goes through the lower layers: the last guess's own.
                while True:
                    kept.append(ahead.forward(plan=lower(layer)).logits)
                    state = kept[-1][-1:]
                    if len(tokens) == k or float(heads.odds(layer, state)) < self.gate:
                        break
                    token, qi, sure = sample_draft(heads, layer, state, session)
                    if sure < self.confidence and session.sampler.greedy:
                        break
                    tokens.append(token)
                    q.append(qi)
                    ahead.append_token(token)
            yield Draft.chain(tokens, q, None if watched else upper(layer, torch.cat(kept)))

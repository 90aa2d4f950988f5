from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from llmlab.abilities import Ability, Refused
from llmlab.doors import ForwardPatch
from llmlab.models.decoder import Batch, Decoder
from llmlab.session import Session
from llmlab.technique import knob


def confidence(logits: Tensor, rule: str) -> float:
    """How sure logits (V,) are, in 0..1: the top probability, its lead over the second, or 1 - entropy / log V."""
    p = torch.softmax(logits.float(), -1)
    if rule == "entropy":
        return 1 - float(torch.special.entr(p).sum()) / math.log(p.shape[-1])
    first, second = p.topk(2).values.tolist()
    return first if rule == "probability" else first - second


@dataclass(frozen=True)
class EarlyExit(ForwardPatch):
    """Early exit by confidence.

    Idea: Easy tokens are decided before the last layer. After some layers, ask the head what it would say; when it is
    sure enough, say it and skip the rest.
    Rule: After layer l ≥ `first`, every `step` layers: confidence c(head(norm(h_l))) with c the top probability, the
    lead of the first over the second, or 1 − entropy / log V. Exit when c > `threshold`. The skipped layers get keys
    and values made from the exit's hidden state (state propagation), so that later tokens find rows in every layer.
    Watch: Layers run per token, and time per pass. On a model without trained exits the intermediate layers agree
    little with the last one (SmolLM2-135M: the same best token for 14 % of positions after layer 15 of 30, 34 % after
    23, 58 % after 29), and one check on the whole vocabulary costs as much as four to five layers: expect a small gain,
    none, or a loss.
    Differs: CALM trains its exits and calibrates the threshold to a promise about the output; this is its rule on the
    plain model.
    """

    covers = ("https://arxiv.org/abs/2207.07061",)
    needs = frozenset({Ability.LAYERS})
    spoils = ForwardPatch.spoils | {Ability.MANY_ROWS}
    claim = "Stops at a middle layer when the model is already sure."
    identity = {"threshold": 1.0}

    rule: str = knob("probability", choices=("probability", "margin", "entropy"), help="what counts as sure")
    threshold: float = knob(0.95, 0.0, 1.0, "how sure is sure enough; 1 never exits")
    first: int = knob(0, 0, 64, "layers that every token goes through; 0: seven of eight")
    step: int = knob(2, 1, 32, "layers between two checks", advanced=True)

    @contextmanager
    def installed(self, session: Session) -> Iterator[None]:
        count = len(session.model.layers)
        first = self.first or count * 7 // 8
        if self.threshold < 1 and first >= count:
            raise Refused(
                self.title, f"would never exit: it waits for layer {first} of {count}", "Give a smaller number as first"
            )

        def depth(model: Decoder, h: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
            layers = list(model.layers)
            for ran, block in enumerate(layers, 1):
                h = block(h, batch)
                if self.threshold < 1 and first <= ran < len(layers) and (ran - first) % self.step == 0:
                    logits = model.head(h)
                    sure = confidence(logits[-1], self.rule)
                    if sure > self.threshold:
                        for later in layers[ran:]:
                            later(h, batch, fill=True)
                        session.exits.append((ran, sure))
                        session.layers_run = float(ran)
                        return h, logits
            session.layers_run = float(len(layers))
            return h, None

        session.depth = depth
        try:
            yield
        finally:
            session.depth = None

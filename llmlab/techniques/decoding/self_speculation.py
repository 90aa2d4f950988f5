from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llmlab.abilities import Ability
from llmlab.doors import Drafter
from llmlab.draft import Draft, Verdict
from llmlab.models.decoder import Batch, Decoder, Depth
from llmlab.session import Session
from llmlab.technique import knob
from llmlab.tools import Tools


def skipping(skipped: frozenset[int]) -> Depth:
    """The layers without those in `skipped`; these get no keys and values."""

    def depth(model: Decoder, h: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        for block in model.layers:
            if block.index not in skipped:
                h = block(h, batch)
        return h, None

    return depth


@dataclass(frozen=True)
class SelfSpeculation(Drafter):
    """Self-speculation.

    Idea: The model drafts for itself by leaving out its least important layers, then checks the draft with all of them.
    No second model, no extra weights.
    Rule: Draft with layers {1…L} without S, where S holds the `skip` share of layers that change their input least
    (1 − cos(h_in, h_out) on a calibration text, first and last layer excepted); accept as speculative sampling does.
    Watch: Acceptance rate. A model that was not trained to lose layers agrees little with its own shortened self, so
    expect few accepted tokens; the text stays the same all the same.
    Differs: Draft & Verify searches S by Bayesian optimisation and adapts its stopping threshold; here S comes from one
    measurement and `confidence` is fixed.
    """

    covers = ("https://arxiv.org/abs/2309.08168",)
    needs = Drafter.needs | {Ability.LAYERS}
    claim = "The model guesses with some of its layers skipped and checks with all."

    skip: float = knob(0.2, 0.05, 0.8, "share of the layers left out while drafting")
    length: int = knob(3, 1, 16, "tokens drafted per pass")
    confidence: float = knob(0.5, 0.0, 1.0, "stop drafting below this probability", advanced=True)

    def prepare(self, model: Any, tools: Tools) -> None:
        tools.influence(model)

    def drafts(self, session: Session, tools: Tools) -> Generator[Draft, Verdict, None]:
        influence = tools.influence(session.model)
        order = sorted(range(1, len(influence) - 1), key=influence.__getitem__)
        depth = skipping(frozenset(order[: round(self.skip * len(influence))]))
        while True:
            k = min(self.length, session.room())
            tokens: list[int] = []
            q = []
            with session.scratch() as ahead:
                while len(tokens) < k:
                    token, qi, sure = session.guess(ahead.forward(depth=depth)[0])
                    if session.sampler.greedy and sure < self.confidence:
                        break
                    tokens.append(token)
                    q.append(qi)
                    ahead.push(token)
            yield Draft.chain(tokens, q)

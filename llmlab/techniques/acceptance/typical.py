from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmlab.runtime.configurable import knob
from llmlab.runtime.draft import Draft
from llmlab.runtime.roles import Acceptor
from llmlab.runtime.sampling import RandomSource, Sampler
from llmlab.runtime.tools import Tools


@dataclass(frozen=True)
class TypicalAcceptance(Acceptor):
    """Typical acceptance.

    Idea: A guess need not be what the model would have drawn; it is enough that the model finds it typical. Where many
    words could follow, a less likely one is typical too.
    Method: Accept x where p(x) > min(ε, δ exp(−H(p))), with H the entropy of p in nats, all along a path; of a tree,
    the longest such path, and among equals the likeliest. The token after it is the model's own and always stands.
    What to look for: Tokens per pass against the quality. A flat p has a low bar: then nearly anything is accepted, and
    the text becomes the drafter's. At `temperature` 0 a greedy run stays what it is.
    Differences from the paper: Medusa takes p at the run's temperature and its own token greedily, which is what a
    greedy run does here, judged at `temperature`; a sampled run draws its own token too. Where ε is 1 and δ at least
    the size of the vocabulary, no guess can pass.
    """

    covers = ("https://arxiv.org/abs/2401.10774",)
    claim = "Accepts guesses that the model finds typical, not only its own choice."
    claim_zh = "只要模型认为猜测合乎情理就接受，不必是它的首选。"
    noop_settings = {"epsilon": 1.0, "delta": 1e6}
    biting_settings = {"epsilon": 0.01, "delta": 0.1}
    main_knob = "epsilon"

    epsilon: float = knob(0.09, 0.0, 1.0, "probability that is always enough")
    delta: float = knob(0.3, 0.0, 1e6, "share of exp(-entropy) that is enough where less is certain")
    temperature: float = knob(0.7, 0.0, 2.0, "at which a greedy run is judged; a sampled one has its own")

    def accept(
        self, draft: Draft, logits: Tensor, sampler: Sampler, chance: RandomSource, tools: Tools
    ) -> tuple[tuple[int, ...], int]:
        p = (Sampler(self.temperature) if sampler.greedy else sampler).distribution(logits)
        bar = (self.delta * torch.exp(-torch.special.entr(p).sum(-1))).clamp_max(self.epsilon)
        own = draft.scores(p)
        path = draft.longest((own > draft.scores(bar[:, None].expand_as(p))).tolist(), own.log())
        return path, sampler.sample(logits[path[-1] + 1 if path else 0], chance)

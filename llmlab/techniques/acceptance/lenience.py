from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from llmlab.models.kernels.topk import argmax
from llmlab.runtime.configurable import knob
from llmlab.runtime.draft import Draft
from llmlab.runtime.roles import Acceptor
from llmlab.runtime.sampling import RandomSource, Sampler, accept
from llmlab.runtime.tools import Tools


@dataclass(frozen=True)
class Lenience(Acceptor):
    """Lenience.

    Idea: Two models of one kind never agree to the last digit. Let the guess win where it is nearly as good as the
    model's own choice, and more of every draft stands.
    Method: With l for `lenience`, sampled: accept x drawn from q with probability min(1, p(x) / (l q(x))); after a
    rejection draw from max(p − q, 0), normalised, as speculative sampling does. No token then comes with more than p(x)
    / l. Greedy: accept x where p(x) ≥ l · max p, with p as it is at temperature 1. l = 1 is exact.
    What to look for: The acceptance rate while l goes from 1 to 0.1, against the text. Rare tokens stay rare, but
    nothing keeps a likely one from becoming rare: samples lose variety.
    Differences from the paper: The paper prints the greedy rule with ≤, which would take the unlikely tokens. It leaves
    open whether l also enters what is drawn after a rejection: without it the bound holds too, and the law stays as
    near to p as acceptance allows. Drafts may be trees; greedily, the longest path that passes is kept.
    """

    covers = ("speculative-decoding",)
    claim = "Lets a guess stand when it is nearly as likely as the model's own choice."
    claim_zh = "猜测与模型首选的概率相差不大时，就让它算数。"
    noop_settings = {"lenience": 1.0}
    biting_settings = {"lenience": 0.01}
    main_knob = "lenience"

    lenience: float = knob(0.3, 0.0, 1.0, "1 is exact, 0 accepts whatever is possible at all")

    def accept(
        self, draft: Draft, logits: Tensor, sampler: Sampler, chance: RandomSource, tools: Tools
    ) -> tuple[tuple[int, ...], int]:
        if not sampler.greedy:
            return accept(draft, sampler.distribution(logits), chance, self.lenience)
        best = argmax(logits)
        behind = draft.scores(logits - logits.amax(-1, keepdim=True))  # ln p(x) / max p
        fits = [x == best[p + 1] for x, p in zip(draft.tokens, draft.parents, strict=True)]
        if self.lenience < 1:  # at 1, two tokens that tie for the best would both pass
            fits = (behind.exp() >= self.lenience).tolist()
        path = draft.longest(fits, behind)
        return path, best[path[-1] + 1 if path else 0]

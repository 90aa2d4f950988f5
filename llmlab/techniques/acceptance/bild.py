from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from llmlab.runtime.configurable import knob
from llmlab.runtime.draft import Draft
from llmlab.runtime.roles import Acceptor
from llmlab.runtime.sampling import RandomSource, Sampler
from llmlab.runtime.tools import Tools


@dataclass(frozen=True)
class BigLittleRollback(Acceptor):
    """Big Little Decoder.

    Idea: A little model writes until it is unsure (fallback). Then the big one looks over all of it at once, lets pass
    what it finds believable, and goes back to the first word that it finds too surprising (rollback).
    Method: Fallback where max q < α_FB: the knob `confidence` of the draft model, 0.6 in the paper, which also lets it
    write 10 tokens at most. Rollback to the first drafted x with −ln p(x) > α_RB, in whose place the big model's own
    token stands.
    What to look for: Passes of the big model per token against the quality, with both thresholds moved. A high α_RB
    leaves the little model's text as it is.
    Differences from the paper: This is the rollback; for the whole, switch on `draft-model:length=10,confidence=0.6`
    beside it. The paper also tunes the little model on the big one's text. The draft model falls back in greedy runs
    only. Of a tree, the longest path that is believable throughout is kept.
    """

    covers = ("bild",)
    claim = "The little model's words stand unless they surprise the big one too much."
    claim_zh = "小模型的词元照用，除非大模型觉得太意外。"
    noop_settings = {"rollback": 0.0}
    biting_settings = {"rollback": 5.0}
    main_knob = "rollback"

    rollback: float = knob(5.0, 0.0, 20.0, "surprise in nats above which a word is taken back")

    def accept(
        self, draft: Draft, logits: Tensor, sampler: Sampler, chance: RandomSource, tools: Tools
    ) -> tuple[tuple[int, ...], int]:
        p = (Sampler(1.0) if sampler.greedy else sampler).distribution(logits)
        own = draft.scores(p).log()
        path = draft.longest((-own <= self.rollback).tolist(), own)
        return path, sampler.sample(logits[path[-1] + 1 if path else 0], chance)

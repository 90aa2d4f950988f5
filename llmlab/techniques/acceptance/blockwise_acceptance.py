from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llmlab.errors import Refused
from llmlab.models.kernels.topk import argmax
from llmlab.runtime.configurable import knob
from llmlab.runtime.draft import Draft
from llmlab.runtime.roles import Acceptor
from llmlab.runtime.sampling import RandomSource, Sampler, accept
from llmlab.runtime.tools import Tools


@dataclass(frozen=True)
class BlockwiseAcceptance(Acceptor):
    """Blockwise acceptance.

    Idea: Blockwise decoding checks a block of guesses at once. Greedy equality is the strictest test; a laxer one, or a
    least size for every block, buys fewer passes with a text that may change.
    Method: A guess x stands if it is the model's best token b (`exact`), among its k best (`top-k`), or, where tokens
    mean amounts, if |x − b| ≤ ε (`tolerance`). The first `block` − 1 guesses stand whatever they are, so that a pass
    gives `block` tokens wherever enough were drafted.
    What to look for: Tokens per pass and quality as k grows. A whole block in each pass is as fast as it gets, and then
    the heads write most of the text.
    Differences from the paper: The paper's scale of amounts is the brightness of pixels. In text the only tokens on
    such a scale are those that read as whole numbers, so the tolerance is for them and every other token must be b; it
    makes numbers wrong by design. The block counts the model's own token last, the paper first. k = 1 and ε = 0 are
    `exact`, which in a sampled run is speculative sampling.
    """

    covers = ("blockwise-parallel",)
    claim = "Guesses among the model's k best, or near its number, stand too."
    claim_zh = "猜测在模型的前 k 个之内，或数值相近，也算数。"
    noop_settings = {"rule": "exact", "block": 1}
    biting_settings = {"k": 20}
    main_knob = "k"

    rule: str = knob("top-k", choices=("exact", "top-k", "tolerance"), help="which guesses stand")
    k: int = knob(2, 1, 32, "how many of the model's best tokens are good enough (top-k)")
    tolerance: int = knob(2, 0, 1000, "how far a number may be off (tolerance)")
    block: int = knob(1, 1, 16, "tokens that a pass gives at least, if drafted")

    @property
    def strict(self) -> bool:
        """Whether only the model's own choice stands, the forced part aside."""
        return {"exact": True, "top-k": self.k == 1, "tolerance": self.tolerance == 0}[self.rule]

    def lossless(self) -> bool:
        return self.strict and self.block == 1

    def prepare(self, model: Any, tools: Tools) -> None:
        self._numbers((), tools)

    def accept(
        self, draft: Draft, logits: Tensor, sampler: Sampler, chance: RandomSource, tools: Tools
    ) -> tuple[tuple[int, ...], int]:
        if self.strict and not sampler.greedy:
            return accept(draft, sampler.distribution(logits), chance, sure=self.block - 1)
        best = argmax(logits)
        close = self._close(draft, logits, best, tools)
        fits = [d < self.block or near for d, near in zip(draft.depths(), close, strict=True)]
        path = draft.longest(fits, draft.scores(logits.float().log_softmax(-1)))
        return path, sampler.sample(logits[path[-1] + 1 if path else 0], chance)

    def _close(self, draft: Draft, logits: Tensor, best: Sequence[int], tools: Tools) -> list[bool]:
        """Per node, whether the rule lets its token pass for the model's own."""
        wanted = [best[p + 1] for p in draft.parents]
        same = [x == b for x, b in zip(draft.tokens, wanted, strict=True)]
        if self.strict:
            return same
        if self.rule == "top-k":
            better = logits[[p + 1 for p in draft.parents]] > draft.scores(logits)[:, None]
            return (better.sum(-1) < self.k).tolist()
        pairs = zip(same, self._numbers(draft.tokens, tools), self._numbers(wanted, tools), strict=True)
        return [s or (x is not None and b is not None and abs(x - b) <= self.tolerance) for s, x, b in pairs]

    def _numbers(self, tokens: Sequence[int], tools: Tools) -> list[int | None]:
        """The whole numbers that tokens read as, None for the others. Refused without a tokenizer to read them with."""
        if self.rule != "tolerance" or self.tolerance == 0:
            return [None] * len(tokens)
        if tools.tokenizer is None:
            raise Refused(self.title, "has no tokenizer to read numbers with", "Choose another rule")
        texts = [tools.tokenizer.decode([t]).strip() for t in tokens]
        return [int(text) if text.isascii() and text.isdigit() else None for text in texts]

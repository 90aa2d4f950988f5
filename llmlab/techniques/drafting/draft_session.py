"""A draft model's own session: it follows the text of the run, and speaks of the run's vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from llmlab.models.decoder import Plan
from llmlab.models.result import ForwardResult
from llmlab.runtime.draft import Draft
from llmlab.runtime.session import Session


class DraftSession(Session):
    """A session of `model` for a run over `vocab` tokens.

    Models that share a tokenizer pad their embeddings to different sizes: Qwen2.5-0.5B has 151936 rows, Qwen2.5-7B
    152064. A row that only one of them has is no guess: what the draft model says beyond the run's vocabulary is left
    out and the rest normalised, and what it cannot say has no chance. Acceptance is exact for every q over the run's
    vocabulary (Leviathan et al., arXiv 2211.17192, appendix A.1), so for this one too.
    """

    def __init__(self, model: Any, vocab: int) -> None:
        super().__init__(model)
        self.vocab = vocab

    def follow(self, tokens: Sequence[int], depth: int) -> int:
        """Take in the run's `tokens`; how deep it can draft then, at most `depth`, 0 where it cannot go on.

        It reads over tokens for which it has no embedding, and drafts nothing right behind one, or past its context.
        """
        own = self.model.vocab
        known = tokens if own >= self.vocab else [t for t in tokens if t < own]
        if not depth or tokens[-1] >= own or len(known) >= self.model.context:
            return 0
        self.sync_to(known)
        return int(min(depth, self.model.context - len(known)))

    def forward(self, draft: Draft | None = None, plan: Plan | None = None) -> ForwardResult:
        """As `Session.forward`, the logits (1 + nodes, V) over the run's vocabulary."""
        result = super().forward(draft, plan)
        if result.logits.shape[-1] == self.vocab:
            return result
        return replace(result, logits=over_vocabulary(result.logits, self.vocab))


def over_vocabulary(logits: Tensor, vocab: int) -> Tensor:
    """Logits (…, V) over the first `vocab` tokens: cut, or with -∞, which is no chance at all, for those that lack."""
    short = vocab - logits.shape[-1]
    return logits[..., :vocab] if short <= 0 else F.pad(logits, (0, short), value=float("-inf"))

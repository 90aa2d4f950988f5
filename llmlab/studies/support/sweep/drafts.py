"""Drafts counted over several runs, and the formulas that say what they should have come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmlab.runtime.events import Committed, Drafted, Event


def expected_tokens(a: float, g: int) -> float:
    """Tokens per pass with drafts of g tokens, each accepted with probability a: (1 − a^(g+1)) / (1 − a)."""
    return sum(a**i for i in range(g + 1))


@dataclass
class Drafts:
    """What became of the drafts of several runs, counted over passes whose draft was whole."""

    lengths: set[int] = field(default_factory=set)
    passes: int = 0
    tokens: int = 0
    accepted: int = 0
    rejected: int = 0
    drafted: int = 0
    seconds: float = 0.0

    def count(self, events: Sequence[Event], limit: int) -> None:
        """Add one run. A draft that the end of the run or a stop token cut short says nothing about its length."""
        draft, produced = None, 0
        for e in events:
            if isinstance(e, Drafted):
                draft = e
            elif isinstance(e, Committed):
                n = len(draft.tokens) if draft else 0
                if draft:
                    self.seconds += draft.seconds
                    self.drafted += n
                if n < limit - produced - 1 and len(e.tokens) == len(e.path) + 1:
                    chain = draft is None or list(draft.parents) == list(range(-1, n - 1))
                    self.lengths.add(n if chain else -1)
                    self.passes += 1
                    self.tokens += len(e.tokens)
                    self.accepted += len(e.path)
                    self.rejected += len(e.path) < n
                draft, produced = None, produced + len(e.tokens)

    @property
    def length(self) -> int | None:
        """How long every draft was; None where they differ, are trees or were none."""
        (only,) = self.lengths if len(self.lengths) == 1 else (0,)
        return only if only > 0 else None

"""Drafts counted over several runs, the formulas that say what they should have come to, and how far they did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from torch import Tensor

from llmlab.measure.statistics import Estimate, bootstrap
from llmlab.runtime.events import Committed, Drafted, Event


def expected_tokens(a: float, g: int) -> float:
    """Tokens per pass with drafts of g tokens, each accepted with probability a: (1 − a^(g+1)) / (1 − a)."""
    return sum(a**i for i in range(g + 1))


@dataclass
class Counts:
    """What became of some drafts: `seconds` are those of their passes, drafting included."""

    passes: int = 0
    tokens: int = 0
    accepted: int = 0
    rejected: int = 0
    drafted: int = 0
    draft_seconds: float = 0.0
    seconds: float = 0.0

    def add(self, draft: Drafted | None, commit: Committed) -> None:
        n = len(draft.tokens) if draft else 0
        self.passes += 1
        self.tokens += len(commit.tokens)
        self.accepted += len(commit.path)
        self.rejected += len(commit.path) < n
        self.drafted += n
        self.draft_seconds += draft.seconds if draft else 0.0
        self.seconds += commit.seconds

    @classmethod
    def sum(cls, parts: Sequence[Counts]) -> Counts:
        return cls(*(sum(getattr(p, f.name) for p in parts) for f in fields(cls)))

    @property
    def acceptance(self) -> float:
        """a: accepted of tested tokens; NaN where none was tested."""
        tested = self.accepted + self.rejected
        return self.accepted / tested if tested else math.nan


@dataclass
class Drafts:
    """What became of the drafts of several runs, counted over passes whose draft was whole."""

    lengths: set[int] = field(default_factory=set)
    drafted: int = 0
    seconds: float = 0.0
    firsts: Counts = field(default_factory=Counts)
    """The first pass of each run: with its draft the drafter reads the prompt, which is no step of a draft."""
    runs: list[tuple[Counts, Counts]] = field(default_factory=list)
    """Per run, the other passes dealt in turn to two halves: one gives a and c, the other is judged."""

    def count(self, events: Sequence[Event], limit: int) -> None:
        """Add one run. A draft that the end of the run or a stop token cut short says nothing about its length."""
        draft, produced, whole = None, 0, 0
        self.runs.append((Counts(), Counts()))
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
                    (self.runs[-1][whole % 2] if produced else self.firsts).add(draft, e)
                    whole += 1
                draft, produced = None, produced + len(e.tokens)

    @property
    def all(self) -> Counts:
        return Counts.sum([self.firsts, *(half for run in self.runs for half in run)])

    @property
    def length(self) -> int | None:
        """How long every draft was; None where they differ, are trees or were none."""
        (only,) = self.lengths if len(self.lengths) == 1 else (0,)
        return only if only > 0 else None


HALVES = (0, 1)


@dataclass(frozen=True)
class Chains:
    """A technique that drafted chains of g tokens on n prompts, and the seconds of plain passes on each, (n,).

    Everything takes `at`, indices of prompts with repetitions, so that prompts can be resampled. What the formulas
    need, a and c, comes from one half of the passes, and what they are held against from the other: fitted on the same
    drafts, equation 1 is true of any drafts of one token.
    """

    technique: str
    g: int
    runs: Sequence[tuple[Counts, Counts]]
    plain: Sequence[float]

    @property
    def accepts(self) -> bool:
        """Whether anything was accepted."""
        return any(half.accepted for run in self.runs for half in run)

    @property
    def tells(self) -> bool:
        """Whether equation 1 could fail: not where all drafts are accepted, or none."""
        return self.accepts and any(half.rejected for run in self.runs for half in run)

    def half(self, which: int, at: Tensor) -> Counts:
        return Counts.sum([self.runs[i][which] for i in at.tolist()])

    def a(self, which: int, at: Tensor) -> float:
        return self.half(which, at).acceptance

    def c(self, which: int, at: Tensor) -> float:
        """A draft step in plain passes."""
        half = self.half(which, at)
        plain = sum(self.plain[i] for i in at.tolist()) / len(at)
        return half.draft_seconds / half.drafted / plain if half.drafted else math.nan

    def speed(self, which: int, at: Tensor) -> float:
        """Times as fast as plain decoding."""
        plain = sum(self.plain[i] * self.runs[i][which].tokens for i in at.tolist())
        seconds = self.half(which, at).seconds
        return plain / seconds if seconds else math.nan

    def equation(self, which: int, at: Tensor) -> float:
        """Tokens per pass by equation 1."""
        return expected_tokens(self.a(which, at), self.g)

    def theorem(self, which: int, at: Tensor) -> float:
        """The speed-up by theorem 3.8."""
        return self.equation(which, at) / (self.g * self.c(which, at) + 1)

    def tokens_ratio(self, at: Tensor) -> float:
        """Measured tokens per pass over equation 1."""
        found = []
        for judged in HALVES:
            half = self.half(judged, at)
            found.append(half.tokens / half.passes / self.equation(1 - judged, at) if half.passes else math.nan)
        return sum(found) / len(found)

    def speed_ratio(self, at: Tensor) -> float:
        """The measured speed-up over theorem 3.8."""
        return sum(self.speed(j, at) / self.theorem(1 - j, at) for j in HALVES) / len(HALVES)

    def lead(self, at: Tensor) -> float:
        """a − c."""
        return sum(self.a(j, at) - self.c(j, at) for j in HALVES) / len(HALVES)

    def estimate(self, what: str) -> Estimate:
        """One of the above, by its name, over the prompts."""
        return bootstrap(getattr(self, what), len(self.runs))

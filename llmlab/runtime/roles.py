"""The doors: what a technique may take part in. Each is a class with one verb; the core knows doors, not papers.

Shapes: H heads, Q queries, S rows, D head size, E width, V vocabulary, L layers; no batch axis inside techniques.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from llmlab.models.capabilities import Capability
from llmlab.runtime.draft import Draft, Verdict
from llmlab.runtime.sampling import RandomSource, Sampler
from llmlab.runtime.technique import Technique

if TYPE_CHECKING:
    from llmlab.kv.rows import Rows
    from llmlab.runtime.session import Session
    from llmlab.runtime.tools import Tools

UNBOUNDED = 65536
"""A budget that no text reaches, so that a cache policy with it changes nothing."""
ROLES = ("WeightTransform", "ForwardPatch", "AttentionPattern", "CachePolicy", "Drafter", "Acceptor")
"""Canonical order: a stack runs in this order whatever order it was given in."""


@dataclass(frozen=True)
class WeightTransform(Technique):
    """Changes a private copy of the model, once, before the run. `stage`: 0 reshape, 1 prune, 2 quantize."""

    role: ClassVar[str] = "WeightTransform"
    job: ClassVar[str] = "changing the weights"
    stage: ClassVar[int] = 1

    def apply(self, model: Any, tools: Tools) -> str:
        """Change `model` (a private copy) in place; return a phrase that says what was done, with numbers."""
        raise NotImplementedError


@dataclass(frozen=True)
class ForwardPatch(Technique):
    """Changes how a session's tokens go through the layers; undone when the context ends."""

    role: ClassVar[str] = "ForwardPatch"
    slot = "one"
    job: ClassVar[str] = "deciding how far a token goes through the layers"
    disables = frozenset({Capability.STATES})

    def installed(self, session: Session) -> AbstractContextManager[None]:
        raise NotImplementedError


@dataclass(frozen=True)
class AttentionPattern(Technique):
    """Hides rows from queries by their positions; all patterns of a stack are AND-ed."""

    role: ClassVar[str] = "AttentionPattern"
    job: ClassVar[str] = "hiding rows from attention"
    needs = frozenset({Capability.EVICTION})

    def visible(self, q: Tensor, k: Tensor) -> Tensor:
        """q (Q, 1) and k (1, S): positions; returns (Q, S) bool, True where the query may see the row."""
        raise NotImplementedError


@dataclass(frozen=True)
class CachePolicy(Technique):
    """Decides which rows of keys and values stay.

    The session asks for `keep` only when a layer has reached `budget + every` rows, and clips every draft so that it
    never crosses that line. What a token attends to then depends on how many tokens are committed, never on how they
    were grouped into passes, and that is why speculation stays exact under eviction.
    """

    role: ClassVar[str] = "CachePolicy"
    slot = "one"
    job: ClassVar[str] = "deciding which keys and values stay"
    needs = frozenset({Capability.EVICTION})
    observes: ClassVar[bool] = False
    """Whether `observe` wants the attention weights."""
    during_prompt: ClassVar[bool] = True
    """Whether the prompt is read in pieces with eviction in between, or whole with one eviction at its end."""

    def budget_and_slack(self) -> tuple[int, int]:
        """(budget, every): rows kept, and how many more may gather before the next eviction."""
        raise NotImplementedError

    def observe(self, rows: Rows, attention: Tensor) -> None:
        """attention (H, n, S): what the n tokens just committed paid to the layer's S rows. Write to `rows.stats`."""

    def keep(self, rows: Rows) -> Tensor:
        """Rows of one layer to keep, ascending: (n,), or (H, n) with H key-value heads."""
        raise NotImplementedError

    def after_eviction(self, rows: Rows, session: Session) -> None:
        """After `keep` was carried out on a layer: the chance to move what stayed to new positions."""


@dataclass(frozen=True)
class Drafter(Technique):
    """Guesses tokens for the model to check. Exact by construction: the model decides every token."""

    role: ClassVar[str] = "Drafter"
    slot = "one"
    job: ClassVar[str] = "guessing the next tokens"
    exact = True
    needs = frozenset({Capability.MANY_ROWS, Capability.ROLLBACK})

    def taps(self, model: Any, tools: Tools) -> tuple[int, ...]:
        """After which layers, counted from 1, the session must keep the model's hidden states for it."""
        return ()

    def drafts(self, session: Session, tools: Tools) -> Generator[Draft, Verdict, None]:
        """Yield a draft, receive its verdict, for as long as asked; the paper's algorithm with its state in locals.

        `session.tokens` are the tokens so far (the prompt and everything committed); `session.room()` is how deep a
        draft may go now.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Acceptor(Technique):
    """Decides which guesses stand, in place of the rule that keeps the model's own words. Has no say without a draft.

    What it costs is the text: only at knobs that make it the exact rule, or let it accept nothing that the model could
    have said otherwise, is the stack lossless.
    """

    role: ClassVar[str] = "Acceptor"
    slot = "one"
    job: ClassVar[str] = "deciding which guesses stand"
    beside = Drafter

    def accept(
        self, draft: Draft, logits: Tensor, sampler: Sampler, chance: RandomSource, tools: Tools
    ) -> tuple[tuple[int, ...], int]:
        """The nodes of the draft that are accepted, from the root down, and one more token of the model's own.

        `logits` (T, V), T = 1 + nodes, are what the model says after the root and after every node; `sampler` makes
        the run's distributions of them, and every random act goes through `chance`.
        """
        raise NotImplementedError

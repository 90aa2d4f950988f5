"""The roles that a technique can play, each a class with a single verb; the core knows roles, not papers.

Shapes: H heads, Q queries, S rows, D head size, E width, V vocabulary, L layers; no batch axis inside techniques.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from llmlab.kv.rows import Rows
from llmlab.models.capabilities import Capability
from llmlab.models.decoder import Plan
from llmlab.runtime.draft import Draft, Verdict
from llmlab.runtime.prompt import Prompt
from llmlab.runtime.sampling import RandomSource, Sampler
from llmlab.runtime.session import Session
from llmlab.runtime.technique import Technique
from llmlab.runtime.tools import Tools

UNBOUNDED = 65536
"""A budget that no text reaches, so that a cache policy with it changes nothing."""
ROLES = (
    "PromptCompressor",
    "WeightTransform",
    "LayerPlan",
    "ForwardPatch",
    "AttentionPattern",
    "CachePolicy",
    "Drafter",
    "Acceptor",
    "Router",
)
"""Canonical order: a stack runs in this order whatever order it was given in."""


@dataclass(frozen=True)
class PromptCompressor(Technique):
    """Makes the prompt of a lane shorter before it is read; several follow one another."""

    role: ClassVar[str] = "PromptCompressor"
    job: ClassVar[str] = "shortening the prompt"

    def compress(self, prompt: Prompt, tools: Tools) -> Prompt:
        raise NotImplementedError


@dataclass(frozen=True)
class WeightTransform(Technique):
    """Changes a private copy of the model, once, before the run. `stage`: 0 reshape, 1 prune, 2 quantize."""

    role: ClassVar[str] = "WeightTransform"
    job: ClassVar[str] = "changing the weights"
    stage: ClassVar[int] = 1

    def apply(self, model: Any, tools: Tools) -> str:
        """Change `model` (a private copy) in place; return a phrase that says what was done, with numbers.

        A matrix is changed by `block.store(name, dense)` or `block.replace(name, linear)`.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class LayerPlan(Technique):
    """Decides which layers a pass runs for which of its rows."""

    role: ClassVar[str] = "LayerPlan"
    slot = "one"
    job: ClassVar[str] = "deciding how far a token goes through the layers"
    phase: ClassVar[Literal["decode", "prefill"]] = "decode"
    """Whether it plans the passes that decode, or those that read the prompt."""

    def plan(self, model: Any, tools: Tools) -> Plan | None:
        """A plan for one sequence, which may remember that sequence; None for all layers."""
        raise NotImplementedError


@dataclass(frozen=True)
class ForwardPatch(Technique):
    """Changes what a session's passes compute; undone when the context ends, and installed again where passes follow:
    others may use the model in between, so whatever it remembers of a sequence belongs to the session."""

    role: ClassVar[str] = "ForwardPatch"
    job: ClassVar[str] = "changing what a layer computes"

    def installed(self, session: Session) -> AbstractContextManager[None]:
        raise NotImplementedError


@dataclass(frozen=True)
class AttentionPattern(Technique):
    """Hides rows from queries by their positions; all patterns of a stack are AND-ed."""

    role: ClassVar[str] = "AttentionPattern"
    job: ClassVar[str] = "hiding rows from attention"
    needs = frozenset({Capability.EVICTION})

    def visible(self, q: Tensor, k: Tensor, layer: int, head: Tensor) -> Tensor:
        """q (1, Q, 1) and k (1 or H, 1, S): positions; head (H, 1, 1): key-value heads. True, in (1 or H, Q, S), where
        the query may see the row."""
        raise NotImplementedError

    def select(self, q: int, rows: Tensor, layer: int) -> Tensor | None:
        """To save work for a single query at position q: indices (n,), ascending, of those of the rows, at positions
        rows (H, S), that it may see. None to look at all and hide. `visible` still holds among them."""
        return None


@dataclass(frozen=True)
class CachePolicy(Technique):
    """Decides which rows of keys and values stay.

    The session asks for `keep` only when a layer has reached `budget + slack` rows, and clips every draft so that it
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
    """Whether the prompt is read in pieces with eviction in between, or whole, with one eviction after its last
    token."""

    def budget_and_slack(self) -> tuple[int, int]:
        """Rows kept, and how many more may gather before the next eviction."""
        raise NotImplementedError

    def text_limit(self, context: int) -> int | None:
        """Tokens that prompt and text may have together on a model that reads `context` of them; None: any number,
        because positions are counted among the rows that stay."""
        return context

    def observe(self, rows: Rows, attention: Tensor) -> None:
        """attention (H, n, S): what the n tokens just committed paid to the layer's S rows. Write to `rows.stat`."""

    def keep(self, rows: Rows) -> Tensor:
        """Rows of one layer to keep, ascending: (n,), or (H, n) with H key-value heads."""
        raise NotImplementedError

    def after_eviction(self, rows: Rows, session: Session) -> None:
        """After `keep` was carried out on a layer: the chance to move what stayed to new positions."""


@dataclass(frozen=True)
class Drafter(Technique):
    """Proposes tokens for the model to check. Exact by construction: the model decides every token."""

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

        `session.tokens` are the tokens so far (the prompt and everything committed); `session.max_draft_depth()` is how
        deep a draft may go now.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Acceptor(Technique):
    """Decides which drafted tokens stand, in place of the rule that keeps the model's own words.

    Does nothing without a draft. What it costs is the text: only at knobs that make it the exact rule, or let it accept
    nothing but the model's own choices, is the stack lossless.
    """

    role: ClassVar[str] = "Acceptor"
    slot = "one"
    job: ClassVar[str] = "deciding which guesses stand"
    requires = Drafter

    def accept(
        self, draft: Draft, logits: Tensor, sampler: Sampler, random: RandomSource, tools: Tools
    ) -> tuple[tuple[int, ...], int]:
        """The nodes of the draft that are accepted, from the root down, and one more token of the model's own.

        `logits` (T, V), T = 1 + nodes, are what the model says after the root and after every node; `sampler` makes
        the run's distributions of them, and every random act goes through `random`.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Router(Technique):
    """Decides, after a model has answered, whether another one should."""

    role: ClassVar[str] = "Router"
    slot = "one"
    job: ClassVar[str] = "choosing who answers"

    def next(self, answers: Sequence[str]) -> str | None:
        """The model to ask next, by catalogue id or path, from the answers so far (the first is the run's own model's);
        None to keep the last one."""
        raise NotImplementedError

"""A given text forced through a model, pass by pass: what a stack makes of it beside what the unmodified model does."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from llmlab.models.cached import cached_on
from llmlab.models.capabilities import Capability
from llmlab.models.embedding import EmbeddingAndHead
from llmlab.runtime.draft import Draft
from llmlab.runtime.piece import forward_pieces
from llmlab.runtime.roles import ForwardPatch
from llmlab.runtime.session import PIECE, Session
from llmlab.runtime.stack import Stack
from llmlab.runtime.tools import Tools

DECIDING = ("Drafter", "Acceptor", "Router")
"""Roles that choose among tokens or models and do not change the probabilities of a given text."""
NARROW, WIDE = 32, 128
"""Tokens in a pass at most: where rows must be computed as if alone (below float32), and where rounding may differ."""
READ = 128
"""Tokens of context in a pass below float32, where a prompt's passes are computed otherwise than those of few rows."""
LONG, SHORT = 0.24, 0.1
"""Seconds of a pass above which the next one is half as wide, and below which it is twice as wide: whoever asks to stop
waits for the end of one pass."""


class Forced:
    """A text that goes through a model under a stack, in passes that are equal to step by step for that stack.

    Evictions, exits and changed weights take effect as they would in a run; drafts, and rules that accept them, have
    nothing to decide. Nothing is installed on the model between two calls, so that others may use it meanwhile.
    """

    def __init__(
        self,
        model: Any,
        stack: Stack,
        tokens: Sequence[int],
        start: int,
        tools: Tools | None = None,
        keep: bool = False,
    ) -> None:
        """The first `start` of the tokens are context, read as a prompt is. With `keep` the states are kept."""
        self.model, self.stack, self.tokens, self.at = model, stack.without(*DECIDING), list(tokens), start
        alone = any(Capability.MANY_ROWS in t.disabled() for t in self.stack)
        self.whole = model.weights == "dense-fp32"
        self.most = 1 if alone else WIDE if self.whole else NARROW
        self.width = min(16, self.most)
        planned = self.stack.one("LayerPlan") is not None
        tapped = Capability.STATES in model.capabilities and not planned
        self.own_head = tapped and not self.whole  # a pass would unpack the head anew for each row
        self.session = self.stack.session(
            model,
            tools,
            exact=not self.whole,
            exact_top=EmbeddingAndHead.CANDIDATES if self.own_head else 0,
            taps=(len(model.layers),) if self.own_head or (tapped and keep) else (),
        )
        self.kept: list[Tensor] = []
        self.session.begin(self.tokens[:start])

    @torch.inference_mode()
    def context(self) -> Iterator[None]:
        """Read the context; yields after each pass."""
        session = self.session
        while session.unread:
            with self._installed(session):
                started = time.perf_counter()
                # What drops tokens from a prompt looks at as much of it at once as in a run.
                most = PIECE if session.prefill_plan else self.width if self.whole else READ
                piece = session.prefill_piece(most)
                session.prefilled(piece, forward_pieces(self.model, [piece], session.prefill_plan)[0])
            self.adapt(time.perf_counter() - started)
            self._keep()
            yield

    @torch.inference_mode()
    def next(self) -> Tensor:
        """Log-probabilities (n, V) of what follows each of the next n tokens, the first being the last one read."""
        session, at = self.session, self.at
        n = min(self.width, len(self.tokens) - at, session.max_draft_depth() + 1)
        draft = Draft.chain(self.tokens[at : at + n - 1])
        with self._installed(session):
            result = session.forward(draft)
            states = None if result.states is None else result.states[-n:, 0]
            logits = result.logits
            if self.own_head:
                assert states is not None
                logits = exact_logits(self.model, states)
            session.commit(range(n - 1), self.tokens[at + n - 1], draft)
        self._keep()
        self.at += n
        return torch.log_softmax(logits.float(), -1).cpu()

    @property
    def over(self) -> bool:
        return self.at >= len(self.tokens)

    def passes(self) -> Iterator[Tensor]:
        """What `next` gives, to the text's end; each pass is as wide as the one before it took."""
        while not self.over:
            started = time.perf_counter()
            logp = self.next()
            self.adapt(time.perf_counter() - started)
            yield logp

    def _keep(self) -> None:
        if self.session.taps:
            self.kept.append(self.session.states()[:, 0])

    def _installed(self, session: Session) -> ExitStack:
        undo = ExitStack()
        for patch in self.stack:
            if isinstance(patch, ForwardPatch):
                undo.enter_context(patch.installed(session))
        return undo

    def adapt(self, seconds: float) -> None:
        """Make the next passes narrower or wider, by what all that belonged to the last one took."""
        if seconds > LONG:
            self.width = max(1, self.width // 2)
        elif seconds < SHORT:
            self.width = min(self.most, self.width * 2)


def exact_logits(model: Any, states: Tensor) -> Tensor:
    """Logits (n, V) of the states (n, E) after the last layer, all of them exact, with one product for all rows."""
    logits: Tensor = model.embedding.head.logits(model.norm(states))
    return logits


class Unmodified:
    """The unmodified model's log-probabilities of a text, read ahead. The states from which they follow are kept with
    the model where it shows them, so that the next comparison on the same text pays for the head alone."""

    def __init__(self, model: Any, tokens: Sequence[int], start: int, remember: bool) -> None:
        """`remember`: whether this text will come again."""
        self.model, self.at, self.remember = model, start, remember
        self.key = (start, tuple(tokens))
        self.made: dict[Any, Tensor] = cached_on(model, "read texts", dict)
        self.states = self.made.get(self.key)
        self.forced = None if self.states is not None else Forced(model, Stack(), tokens, start, keep=remember)
        self.ahead = torch.empty(0, 0)

    def context(self) -> Iterator[None]:
        if self.forced is not None:
            yield from self.forced.context()

    def read(self, n: int) -> Generator[None, None, Tensor]:
        """Log-probabilities (n, V) of the next n tokens; yields after each pass."""
        while len(self.ahead) < n:
            fresh = self._pass()
            self.ahead = torch.cat([self.ahead, fresh]) if len(self.ahead) else fresh
            yield
        taken, self.ahead = self.ahead[:n], self.ahead[n:]
        return taken

    @torch.inference_mode()
    def _pass(self) -> Tensor:
        if self.forced is None:
            assert self.states is not None
            rows = self.states[self.at - 1 : self.at - 1 + NARROW]
            self.at += len(rows)
            return torch.log_softmax(exact_logits(self.model, rows).float(), -1).cpu()
        fresh = next(self.forced.passes())
        if self.forced.over and self.forced.kept and self.remember:
            self.made[self.key] = torch.cat(self.forced.kept)
        return fresh


def score(model: Any, stack: Stack, tokens: Sequence[int], start: int, tools: Tools | None = None) -> Tensor:
    """Log-probabilities (n, V), n = len(tokens) - start, of every token from `start` on as the stack computes them.

    The tokens are forced, so that two stacks answer the same questions.
    """
    forced = Forced(model, stack, tokens, start, tools)
    for _ in forced.context():
        pass
    return torch.cat(list(forced.passes()))

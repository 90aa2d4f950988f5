"""One step of decoding: propose a tree of tokens, check it in one pass, keep a path of it.

The playground's loop, the server and batches all take this step. Plain decoding has an empty draft.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from llmlab.models.kernels.topk import argmax
from llmlab.models.not_finite import no_numbers
from llmlab.models.result import ForwardResult
from llmlab.runtime.draft import Draft, Verdict
from llmlab.runtime.piece import Piece, forward_pieces
from llmlab.runtime.sampling import NoDistribution, RandomSource, Sampler, accept, accept_greedy
from llmlab.runtime.session import Evicted, Session
from llmlab.runtime.tools import Tools


class Acceptance(Protocol):
    """Decides which nodes of a draft stand; see `roles.Acceptor`."""

    def accept(
        self, draft: Draft, logits: Tensor, sampler: Sampler, random: RandomSource, tools: Tools
    ) -> tuple[tuple[int, ...], int]: ...


@dataclass(frozen=True)
class Outcome:
    """What a step did to a sequence. `tokens` are the accepted ones and the model's own, up to a stop token (`ended`);
    `path` the accepted nodes among them."""

    tokens: tuple[int, ...]
    path: tuple[int, ...]
    ended: bool
    evicted: Evicted | None
    layers_run: float
    exits: tuple[tuple[int, float], ...]


@dataclass(eq=False)
class Lane:
    """A sequence that decodes, who drafts for it and who accepts. Of `limit` new tokens `produced` are there."""

    session: Session
    tools: Tools
    limit: int
    stop_tokens: Collection[int] = ()
    drafts: Generator[Draft, Verdict, None] | None = None
    acceptor: Acceptance | None = None
    produced: int = 0
    verdict: Verdict | None = field(default=None, init=False)

    @property
    def context_full(self) -> bool:
        return bool(self.session.memory.next_position >= self.session.model.context)

    def propose(self, most: int | None = None) -> Draft:
        """What its drafter expects next, at most `most` tokens deep and never past what policy and limit allow."""
        if self.drafts is None or most == 0:
            return Draft()
        self.session.limit_drafts(most)
        draft = next(self.drafts) if self.verdict is None else self.drafts.send(self.verdict)
        self.verdict = Verdict()
        return draft.clipped(min(self.session.max_draft_depth(), self.limit - self.produced - 1))

    def accept(self, draft: Draft, logits: Tensor) -> tuple[tuple[int, ...], int, list[int]]:
        """The nodes that stand, one more token, and the model's best tokens where they are needed.

        Raises Refused where a row that decided is NaN or infinite; rows of nodes that fell may be what they are.
        """
        best = argmax(logits) if self.drafts is not None or self.session.sampler.greedy else []
        try:
            path, bonus = self._choose(draft, logits, best)
        except NoDistribution as e:
            raise no_numbers(self.session.model, self.session.tokens) from e
        decided = [0, *(i + 1 for i in path)]
        # NaN counts as the highest of all. Without `best` there is no draft, and the only row is soon looked through.
        highest = logits[decided, [best[i] for i in decided]] if best else logits[0].max()
        if not highest.isfinite().all():
            raise no_numbers(self.session.model, [*self.session.tokens, *(draft.tokens[i] for i in path)])
        return path, bonus, best

    def _choose(self, draft: Draft, logits: Tensor, best: list[int]) -> tuple[tuple[int, ...], int]:
        sampler, random = self.session.sampler, self.session.random
        if self.acceptor and len(draft):
            return self.acceptor.accept(draft, logits, sampler, random, self.tools)
        if sampler.greedy:
            return accept_greedy(draft, best)
        return accept(draft, sampler.distribution(logits), random)

    def commit(self, draft: Draft, result: ForwardResult) -> Outcome:
        """Accept a path of the draft, and keep it."""
        path, bonus, best = self.accept(draft, result.logits)
        tokens, ended = [draft.tokens[i] for i in path] + [bonus], False
        for i, token in enumerate(tokens):
            if token in self.stop_tokens:
                tokens, ended = tokens[: i + 1], True
                break
        evicted = self.session.commit(path, bonus, draft)
        if self.verdict is not None:  # its drafter has been asked
            self.verdict = Verdict(path, tuple(tokens), draft, tuple(best))
        self.produced += len(tokens)
        return Outcome(tuple(tokens), path[: len(tokens)], ended, evicted, result.layers_run, result.exits)

    def close(self) -> None:
        """End the drafter."""
        if self.drafts is not None:
            self.drafts.close()
            self.drafts = None


@dataclass(frozen=True)
class Work:
    """A lane's share of a pass: `read` tokens of its prompt, or else a draft to check."""

    lane: Lane
    draft: Draft = field(default_factory=Draft)
    read: int = 0


def verify(model: Any, works: Sequence[Work]) -> list[tuple[Piece, ForwardResult]]:
    """One pass over every lane's piece of prompt or draft; each lane's piece and result, in the order given.

    Lanes whose layers follow a plan decide for themselves how far they go: they take a pass each.
    """
    pieces = [w.lane.session.prefill_piece(w.read) if w.read else w.lane.session.decode_piece(w.draft) for w in works]
    results: list[ForwardResult | None] = [None] * len(works)
    together = []
    for i, w in enumerate(works):
        session = w.lane.session
        plan = session.prefill_plan if w.read else w.draft.plan or session.plan
        if plan or len(works) == 1:
            (results[i],) = forward_pieces(model, [pieces[i]], plan)
        else:
            together.append(i)
    together.sort(key=lambda i: pieces[i].last > 0)  # logits are those of a batch's last rows
    if together:
        for i, result in zip(together, forward_pieces(model, [pieces[i] for i in together], None), strict=True):
            results[i] = result
    out = []
    for w, piece, got in zip(works, pieces, results, strict=True):
        assert got is not None
        if not w.read:
            w.lane.session.passed(got)
        out.append((piece, got))
    return out

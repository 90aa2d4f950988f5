"""A sequence under way: its tokens, its memory, and one pass of the model over a draft.

The memory holds what belongs to every committed token but the last ones (`uncached`, at least one). A pass reads those
and the draft's nodes together, so plain decoding is a pass with an empty draft.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.errors import Refused
from llmlab.kv.memory import Memory
from llmlab.kv.rows import Rows
from llmlab.models.batch import Pattern
from llmlab.models.decoder import Plan
from llmlab.models.embedding import EmbeddingAndHead
from llmlab.models.not_finite import no_numbers
from llmlab.models.result import ForwardResult
from llmlab.runtime.draft import Draft
from llmlab.runtime.piece import Piece, forward_pieces
from llmlab.runtime.prompt import Prompt
from llmlab.runtime.sampling import NoDistribution, RandomSource, Sampler, SeededRandom

SHORTEN = "Shorten it, choose a model with a longer context, or switch StreamingLLM on, which keeps only a window"
PIECE = 512
"""Prompt tokens read in one pass, so that a stop is noticed and memory stays bounded."""

Evicted = tuple[list[int], list[int]]
"""Rows per layer before and after an eviction."""


class Policy(Protocol):
    """What a session asks of the policy that decides which rows stay; see `roles.CachePolicy`."""

    observes: ClassVar[bool]
    during_prompt: ClassVar[bool]

    def budget_and_slack(self) -> tuple[int, int]: ...
    def text_limit(self, context: int) -> int | None: ...

    def observe(self, rows: Rows, attention: Tensor) -> None: ...

    def keep(self, rows: Rows) -> Tensor: ...

    def after_eviction(self, rows: Rows, session: Session) -> None: ...


class Session:
    """One sequence on one model. Nothing here knows which technique is at work: policy, patterns and plans are handed
    in, `stack.session` takes them from a stack."""

    def __init__(
        self,
        model: Any,
        policy: Policy | None = None,
        patterns: Sequence[Pattern] = (),
        *,
        plan: Plan | None = None,
        prefill_plan: Plan | None = None,
        taps: Sequence[int] = (),
        sampler: Sampler | None = None,
        random: RandomSource | None = None,
        exact: bool = True,
        exact_top: int | None = None,
        memory: Memory | None = None,
    ) -> None:
        """`model` is a Decoder or a Wrapped model. `plan` says which layers a pass goes through, `prefill_plan` those
        of the prompt; None for all. `taps`: after which layers, counted from 1, hidden states are kept for `states`.
        Without `exact`, passes of several rows may differ in their last bits from passes of one, and are faster.
        `exact_top` of the highest logits must be exact, 0 for all; None: as many as the next token can reasonably be
        chosen from. `memory`: an empty one to use, in place of a new one.
        """
        self.model, self.memory = model, memory or model.memory()
        self.policy, self.patterns = policy, tuple(patterns)
        self.plan, self.prefill_plan, self.taps = plan, prefill_plan, tuple(taps)
        self.sampler, self.random = sampler or Sampler(), random or SeededRandom(0)
        self.exact = exact
        if exact_top is None:
            exact_top = EmbeddingAndHead.CANDIDATES if self.sampler.greedy else EmbeddingAndHead.REACHABLE
        self.exact_top = exact_top
        self.tokens: list[int] = []
        self.uncached = 0
        self._embeddings: Tensor | None = None
        self.speculating = False
        self._draft_limit: int | None = None
        self._marks: list[int] = self.memory.mark()
        self._seen: dict[int, list[Tensor]] = {}
        self._pass_states: Tensor | None = None
        self._states: list[Tensor] = []

    def states(self) -> Tensor:
        """(n, taps, E): the tapped states of the tokens committed and computed since the last call, oldest first."""
        taken, self._states = self._states, []
        return torch.cat(taken) if taken else torch.empty(0, len(self.taps), self.model.shape.width)

    # The prompt -----------------------------------------------------------------------------------------------------

    def begin(self, prompt: Sequence[int] | Prompt, cached: int = 0) -> None:
        """Take a prompt on, of which the memory holds the first `cached` tokens.

        Raises Refused for an empty prompt and for one longer than the model's context, unless the cache policy keeps
        positions below that.
        """
        given = prompt if isinstance(prompt, Prompt) else Prompt(tuple(prompt))
        if not len(given):
            raise Refused("The prompt", "is empty, so there is nothing to continue", "Write something")
        limit = self.policy.text_limit(self.model.context) if self.policy else self.model.context
        if limit is not None and len(given) > limit:
            raise Refused("The prompt", f"has {len(given)} tokens and this model reads at most {limit}", SHORTEN)
        self.tokens, self._embeddings = list(given.ids), given.embeddings
        if cached and self.model.length_limit is not None and len(self.tokens) > self.model.length_limit:
            self.memory.clear()  # its rows were turned for a shorter text
            cached = 0
        self.uncached = len(self.tokens) - cached
        self.memory.whole = len(self.tokens)

    @property
    def unread(self) -> int:
        """Tokens of the prompt still to be read: all but the last, which goes through with the first new token."""
        return self.uncached - 1

    def prefill_piece(self, most: int = PIECE) -> Piece:
        """The next at most `most` tokens of the prompt, as far as the policy lets them in before it evicts."""
        at, n = len(self.tokens) - self.uncached, min(most, self.unread)
        if self.policy and self.policy.during_prompt:
            n = min(n, self._depth_to_eviction() + 1)
        return self._piece(self.tokens[at : at + n], None, 0, None, observed=True)

    def prefilled(self, piece: Piece, result: ForwardResult) -> Evicted | None:
        """After a pass over a piece of the prompt: what the policy evicted, if it did."""
        if result.states is not None:
            self._states.append(result.states)
        self.memory.settle(len(piece.tokens))
        self.uncached -= len(piece.tokens)
        # Its last token is still to be read: a policy that reads the prompt whole waits for that token's look too.
        return self._evict(prompt_over=False)

    def prefill(self, prompt: Sequence[int] | Prompt) -> Iterator[tuple[int, Evicted | None]]:
        """Take the prompt in, all but its last token, in pieces. Raises Refused as `begin` does.

        Yields how many tokens have been read after each piece, and once more, with the rows per layer before and after,
        where that made the policy evict.
        """
        self.begin(prompt)
        done = 0
        while self.unread:
            piece = self.prefill_piece()
            (result,) = forward_pieces(self.model, [piece], self.prefill_plan)
            done += len(piece.tokens)
            evicted = self.prefilled(piece, result)
            yield done, None
            if evicted:
                yield done, evicted

    def sync_to(self, tokens: Sequence[int]) -> None:
        """Make this session's tokens equal `tokens`, keeping what it has computed of their common prefix."""
        same = 0
        for a, b in zip(self.tokens, tokens, strict=False):
            if a != b:
                break
            same += 1
        held = self.memory.rewind(min(same, len(tokens) - 1, self.memory.next_position))
        self.tokens = list(tokens)
        self.uncached = len(tokens) - held
        if not held or len(tokens) <= (self.model.length_limit or 0) < self.memory.whole:
            self.memory.clear()
            self.uncached = self.memory.whole = len(tokens)
        self._read_down_to(PIECE)

    def _read_down_to(self, most: int, plan: Plan | None = None) -> None:
        """Read tokens in pieces, through the layers as `plan` says, until at most so many are uncached."""
        while self.uncached > most:
            piece = self.prefill_piece()
            self.prefilled(piece, forward_pieces(self.model, [piece], plan)[0])

    def _outgrown(self) -> bool:
        """Whether the next pass reads the text anew, because its rows were turned for a shorter one."""
        limit = self.model.rereads_at
        return limit is not None and not self.speculating and self.memory.whole <= limit < len(self.tokens)

    def _reread(self) -> None:
        """Read the text anew where it has outgrown the rotations that its rows were given; see `LengthRule`.

        A pass never crosses that line, as drafts are clipped there, so this happens at the same token whatever drafts.
        """
        if not self._outgrown():
            return
        fresh, states = self.uncached - 1, self._states
        self.memory.clear()
        self.memory.whole = self.uncached = len(self.tokens)
        self._states = []
        self._read_down_to(1, self.prefill_plan)
        if self.taps and fresh:  # states of the other tokens have been handed out
            states = [*states, torch.cat(self._states)[-fresh:]]
        self._states = states

    # Passes ---------------------------------------------------------------------------------------------------------

    def decode_piece(self, draft: Draft) -> Piece:
        """What a pass over the uncached tokens and a draft reads; marks where the memory is now."""
        self._reread()
        tokens = self.tokens[len(self.tokens) - self.uncached :]
        visible, offsets = None, None
        if not draft.is_chain:
            T = self.uncached + len(draft)
            visible = torch.ones(T, T, dtype=torch.bool).tril()
            visible[self.uncached - 1 :, self.uncached - 1 :] = draft.visible()
            offsets = list(range(self.uncached)) + [self.uncached - 1 + d for d in draft.depths()]
        self._marks = self.memory.mark()
        self._seen = {}
        return self._piece([*tokens, *draft.tokens], visible, 1 + len(draft), offsets)

    def forward(self, draft: Draft | None = None, plan: Plan | None = None) -> ForwardResult:
        """Logits (1 + nodes, V): what follows the last committed token, and what follows each of the draft's nodes.

        The pass goes through the layers as `plan` says, else the draft's own plan, else the session's.
        """
        draft = draft or Draft()
        piece = self.decode_piece(draft)
        (result,) = forward_pieces(self.model, [piece], plan or draft.plan or self.plan)
        self.passed(result)
        return result

    def passed(self, result: ForwardResult) -> None:
        """After a pass over a decode piece: keep its states until the commit."""
        self._pass_states = result.states

    def _piece(
        self,
        tokens: Sequence[int],
        visible: Tensor | None,
        last: int,
        offsets: list[int] | None,
        observed: bool = False,
    ) -> Piece:
        T, start = len(tokens), self.memory.next_position
        positions = torch.arange(start, start + T) if offsets is None else torch.tensor(offsets) + start
        watch = None
        if self.policy and self.policy.observes and not self.speculating:
            watch = self._observe_now if observed else self._hold_back
        soft = None
        if self._embeddings is not None:
            at = len(self.tokens) - self.uncached
            soft = self._soft(tokens, at)
        return Piece(
            list(tokens),
            positions,
            last,
            self.memory,
            visible,
            start if offsets is None else None,
            self.patterns,
            watch,
            soft,
            () if self.speculating else self.taps,
            self.exact,
            self.exact_top,
        )

    def _soft(self, tokens: Sequence[int], at: int) -> Tensor:
        """(T, E): the prompt's own embeddings for its tokens from place `at` on, the model's for what follows."""
        assert self._embeddings is not None
        given = self._embeddings[at : at + len(tokens)]
        rest = torch.tensor(list(tokens[len(given) :]), dtype=torch.long, device=self.model.device)
        return torch.cat([given, self.model.embedding.lookup(rest)])

    def _observe_now(self, layer: int, attention: Tensor) -> None:
        assert self.policy is not None
        self.policy.observe(self.memory.layers[layer], attention)

    def _hold_back(self, layer: int, attention: Tensor) -> None:
        # A rejected token must not count as having looked, so the policy sees the weights only at the commit.
        self._seen.setdefault(layer, []).append(attention)

    def take_back(self) -> None:
        """Undo the last pass over a draft, nothing of which is kept."""
        self.memory.restore(self._marks)
        self._pass_states = None

    def commit(self, path: Sequence[int], bonus: int, draft: Draft | None = None) -> Evicted | None:
        """Keep the accepted nodes' rows, drop the others', add the tokens. Returns (before, after) rows if evicted."""
        draft = draft or Draft()
        u = self.uncached
        kept = list(range(u)) + [u + i for i in path]
        with torch.inference_mode():
            held = self._marks
            self.memory.commit(held, u + len(draft), kept)
            for index, pieces in self._seen.items():
                assert self.policy is not None
                # A long draft is looked at in pieces, of which only the last sees every row.
                S = pieces[-1].shape[2]
                attention = torch.cat([F.pad(piece, (0, S - piece.shape[2])) for piece in pieces], 1)
                columns = torch.cat([torch.arange(held[index]), held[index] + torch.tensor(kept)])
                columns = columns.to(attention.device)
                self.policy.observe(self.memory.layers[index], attention[:, kept].index_select(2, columns))
            self._seen = {}
            if self._pass_states is not None:
                self._states.append(self._pass_states[kept])
                self._pass_states = None
            self.tokens += [draft.tokens[i] for i in path] + [bonus]
            self.uncached = 1
            return self._evict(prompt_over=True)

    # Eviction -------------------------------------------------------------------------------------------------------

    def max_draft_depth(self) -> int:
        """How deep a draft may go: never across the line at which rows are evicted, nor past the model's context.

        A pass that reads the text anew takes no draft: afterwards the policy may hold more rows than it lets stay.
        """
        if self._outgrown():
            return 0
        free, limit = self._depth_to_eviction(), self.model.rereads_at
        if limit is not None and self.memory.whole <= limit and len(self.tokens) <= limit:
            free = min(free, limit - len(self.tokens))
        return free if self._draft_limit is None else min(free, self._draft_limit)

    def _depth_to_eviction(self) -> int:
        free: int = self.model.context - self.memory.next_position - 1
        if self.policy:
            budget, slack = self.policy.budget_and_slack()
            free = min(free, budget + slack - self.memory.longest - 1)
        return max(0, free)

    def limit_drafts(self, most: int | None) -> None:
        """Let the next drafts be at most `most` deep, because others share the pass; None: as deep as they may."""
        self._draft_limit = most

    def _evict(self, prompt_over: bool) -> Evicted | None:
        if not self.policy or (not prompt_over and not self.policy.during_prompt):
            return None
        budget, slack = self.policy.budget_and_slack()
        if self.memory.longest < budget + slack:
            return None
        before = self.memory.rows()
        with torch.inference_mode():
            for rows in self.memory.layers:
                if rows.count >= budget + slack:
                    rows.keep(self.policy.keep(rows))
                    self.policy.after_eviction(rows, self)
        return before, self.memory.rows()

    def reposition(self, rows: Rows) -> None:
        """Give a layer's rows the positions 0, 1, 2, …, turning the keys accordingly; the next token follows on."""
        old = rows.positions
        new = torch.arange(rows.count, device=old.device)
        turn = (new - old).float()[..., None] * self.model.rotary.angles  # (H, S, D/2)
        rows.reposition(new, torch.polar(torch.ones_like(turn), turn))
        self.memory.next_position = rows.count

    # Trying out -----------------------------------------------------------------------------------------------------

    @contextmanager
    def speculative_scope(self) -> Iterator[Session]:
        """Decode ahead inside, with `forward` and `append_token`; on exit, tokens and memory are what they were."""
        marks, position, tokens, uncached = (
            self.memory.mark(),
            self.memory.next_position,
            list(self.tokens),
            self.uncached,
        )
        policy, self.policy = self.policy, None
        self.speculating = True
        try:
            yield self
        finally:
            self.policy, self.speculating = policy, False
            self.memory.restore(marks)
            self.memory.next_position, self.tokens, self.uncached = position, tokens, uncached
            self._pass_states = None

    def sample_draft(self, logits: Tensor) -> tuple[int, Tensor | None, float]:
        """A draft token from logits (V,), as the run samples: (token, its q or None when certain, its probability)."""
        if self.sampler.greedy:
            token = int(logits.argmax())
            return token, None, float(torch.softmax(logits.float(), -1)[token])
        q = self.sampler.distribution(logits)
        try:
            token = self.random.categorical(q)
        except NoDistribution as e:
            raise no_numbers(self.model, self.tokens) from e
        return token, q, float(q[token])

    def append_token(self, token: int) -> None:
        """After a `forward` without a draft: add a token without asking any policy."""
        self.memory.next_position += self.uncached
        self.tokens.append(token)
        self.uncached = 1

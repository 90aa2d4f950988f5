"""A sequence under way: its tokens, its memory, and one pass of the model over a draft.

The memory holds the keys and values of every committed token but the last ones (`unread`, at least one). A pass reads
those and the draft's nodes together, so plain decoding is a pass with an empty draft.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.errors import Refused
from llmlab.kv.rows import Rows, Tail
from llmlab.models.batch import Batch, Span, Visible
from llmlab.models.decoder import Depth, Taps
from llmlab.models.embedding import EmbeddingAndHead
from llmlab.runtime.draft import Draft
from llmlab.runtime.sampling import RandomSource, Sampler, SeededRandom

if TYPE_CHECKING:
    from llmlab.runtime.tools import Tools

PIECE = 512
"""Prompt tokens read in one pass, so that a stop is noticed and memory stays bounded."""


class Policy(Protocol):
    """What a session asks of the policy that decides which rows stay; see `roles.CachePolicy`."""

    observes: ClassVar[bool]
    during_prompt: ClassVar[bool]

    def budget_and_slack(self) -> tuple[int, int]: ...

    def observe(self, rows: Rows, attention: Tensor) -> None: ...

    def keep(self, rows: Rows) -> Tensor: ...

    def after_eviction(self, rows: Rows, session: Session) -> None: ...


class Session:
    """One sequence on one model under one stack.

    `model` is a Decoder or a Wrapped model. `exits` collects (layer, confidence) of the last pass where a patch ends
    tokens early; `depth` and `reading` are what passes and the prompt go through where a patch has set them. Nothing
    here knows which technique is at work: policy and patterns come through their doors.
    """

    def __init__(self, model: Any, policy: Policy | None = None, patterns: Sequence[Visible] = ()) -> None:
        """`exact` may be unset afterwards: passes of several rows may then differ in their last bits from passes of
        one, and are faster. `scoring` asks for logits that are exact down to the least likely token."""
        self.model = model
        self.memory = model.memory()
        self.policy = policy
        self.patterns = tuple(patterns)
        self.tokens: list[int] = []
        self.uncached = 0
        self.depth: Depth | None = None
        self.prefill_plan: Depth | None = None
        self.tools: Tools | None = None
        self.sampler = Sampler()
        self.random: RandomSource = SeededRandom(0)
        self.exact = True
        self.scoring = False
        self.exits: list[tuple[int, float]] = []
        self.layers_run = float(len(self.memory.layers))
        self._held: list[int] = self.memory.rows()
        self._seen: dict[int, list[Tensor]] = {}
        self._taps: Taps | None = None
        self._states: list[Tensor] = []

    def tap(self, layers: Sequence[int]) -> None:
        """Keep the hidden states that stand after these layers (counted from 1), for `states`; before any pass."""
        self._taps = Taps(layers)

    def states(self) -> Tensor:
        """(n, taps, E): what the taps saw of the tokens committed and computed since the last call, oldest first."""
        assert self._taps is not None
        taken, self._states = self._states, []
        return torch.cat(taken) if taken else torch.empty(0, len(self._taps.layers), self.model.shape.width)

    # Reading ---------------------------------------------------------------------------------------------------

    def prefill(self, prompt: Sequence[int]) -> Iterator[tuple[int, tuple[list[int], list[int]] | None]]:
        """Take the prompt in, all but its last token, in pieces.

        Yields how many tokens have been read after each piece, and once more, with the rows per layer before and after,
        where that made the policy evict.

        Raises Refused for an empty prompt and for one longer than the model's context.
        """
        if not prompt:
            raise Refused("The prompt", "is empty, so there is nothing to continue", "Write something")
        if len(prompt) > self.model.context:
            raise Refused(
                "The prompt",
                f"has {len(prompt)} tokens and this model reads at most {self.model.context}",
                "Shorten it or choose a model with a longer context",
            )
        self.tokens, done = list(prompt), 0
        while done < len(prompt) - 1:
            n = min(PIECE, len(prompt) - 1 - done)
            if self.policy and self.policy.during_prompt:
                n = min(n, self.max_draft_depth() + 1)
            self._forward(prompt[done : done + n], None, 0, observed=True)
            if self._taps:
                self._states.append(self._taps.taken())
            done += n
            yield done, None
            if evicted := self._evict(prompt_over=done == len(prompt) - 1):
                yield done, evicted
        self.uncached = 1

    def sync_to(self, tokens: Sequence[int]) -> None:
        """Make this session's tokens equal `tokens`, keeping what it has computed of their common prefix."""
        same = 0
        for a, b in zip(self.tokens, tokens, strict=False):
            if a != b:
                break
            same += 1
        held = min(same, len(tokens) - 1, self.memory.longest)
        self.memory.restore([held] * len(self.memory.layers))
        self.memory.next_position = held
        self.tokens = list(tokens)
        self.uncached = len(tokens) - held
        while self.uncached > PIECE:
            at = len(tokens) - self.uncached
            self._forward(tokens[at : at + PIECE], None, 0)
            self.uncached -= PIECE

    # Passes ----------------------------------------------------------------------------------------------------

    def forward(self, draft: Draft | None = None, depth: Depth | None = None) -> Tensor:
        """Logits (1 + nodes, V): what follows the last committed token, and what follows each of the draft's nodes."""
        draft = draft or Draft()
        unread = self.tokens[len(self.tokens) - self.uncached :]
        visible, offsets = None, None
        if not draft.is_chain:
            T = self.uncached + len(draft)
            visible = torch.ones(T, T, dtype=torch.bool).tril()
            visible[self.uncached - 1 :, self.uncached - 1 :] = draft.visible()
            offsets = list(range(self.uncached)) + [self.uncached - 1 + d for d in draft.depths()]
        self._held = self.memory.rows()
        self._seen = {}
        return self._forward([*unread, *draft.tokens], visible, 1 + len(draft), offsets, depth)

    @property
    def _best(self) -> int:
        """How many of the highest logits must be exact: those that the next token can reasonably be chosen from."""
        if self.scoring:
            return 0
        return EmbeddingAndHead.CANDIDATES if self.sampler.greedy else EmbeddingAndHead.REACHABLE

    @torch.inference_mode()
    def _forward(
        self,
        tokens: Sequence[int],
        visible: Tensor | None,
        last: int,
        offsets: list[int] | None = None,
        depth: Depth | None = None,
        observed: bool = False,
    ) -> Tensor:
        T = len(tokens)
        device = self.model.device
        start = self.memory.next_position
        first = start if offsets is None else None
        positions = torch.arange(start, start + T) if offsets is None else torch.tensor(offsets) + start
        watch = None
        if self.policy and self.policy.observes:
            watch = self._observe_now if observed else self._hold_back
        span = Span(0, T, self.memory, visible, self.patterns, watch, first)
        batch = Batch(torch.tensor(tokens, device=device), positions.to(device), [span], self.exact and last > 0)
        if last == 0:
            self.memory.next_position += T
            return self.model.forward(batch, self.prefill_plan or self._taps, 0)
        self.exits = []
        return self.model.forward(batch, depth or self.depth or self._taps, last, self._best)

    def _observe_now(self, layer: int, attention: Tensor) -> None:
        self.policy.observe(self.memory.layers[layer], attention)

    def _hold_back(self, layer: int, attention: Tensor) -> None:
        # A rejected token must not count as having looked, so the policy sees the weights only at the commit.
        self._seen.setdefault(layer, []).append(attention)

    def commit(self, path: Sequence[int], bonus: int, draft: Draft | None = None) -> tuple[list[int], list[int]] | None:
        """Keep the accepted nodes' rows, drop the others', add the tokens. Returns (before, after) rows if evicted."""
        draft = draft or Draft()
        u = self.uncached
        kept = list(range(u)) + [u + i for i in path]
        with torch.inference_mode():
            inner = kept != list(range(len(kept)))
            dropped = len(kept) < u + len(draft)  # where nothing is, every layer has what it should
            for layer, held in zip(self.memory.layers, self._held, strict=True) if dropped else ():
                if layer.count == held:  # the pass left this layer out
                    continue
                held = layer.count - u - len(draft)  # rows that earlier passes had left out may have been made up for
                if inner:
                    layer.keep(Tail(held, held + torch.tensor(kept), self.memory.next_position))
                else:
                    layer.keep(range(held + len(kept)))
            for index, pieces in self._seen.items():
                # A long draft is looked at in pieces, of which only the last sees every row.
                S = pieces[-1].shape[2]
                attention = torch.cat([F.pad(piece, (0, S - piece.shape[2])) for piece in pieces], 1)
                columns = torch.cat([torch.arange(self._held[index]), self._held[index] + torch.tensor(kept)])
                columns = columns.to(attention.device)
                self.policy.observe(self.memory.layers[index], attention[:, kept].index_select(2, columns))
            self._seen = {}
            if self._taps:
                self._states.append(self._taps.taken()[kept])
            self.memory.next_position += len(kept)
            self.tokens += [draft.tokens[i] for i in path] + [bonus]
            self.uncached = 1
            return self._evict(prompt_over=True)

    # Eviction --------------------------------------------------------------------------------------------------

    def max_draft_depth(self) -> int:
        """How deep a draft may go: never across the line at which rows are evicted, nor past the model's context."""
        free = self.model.context - self.memory.next_position - 1
        if not self.policy:
            return max(0, free)
        budget, every = self.policy.budget_and_slack()
        return max(0, min(free, budget + every - self.memory.longest - 1))

    def _evict(self, prompt_over: bool) -> tuple[list[int], list[int]] | None:
        if not self.policy or (not prompt_over and not self.policy.during_prompt):
            return None
        budget, every = self.policy.budget_and_slack()
        if self.memory.longest < budget + every:
            return None
        before = self.memory.rows()
        with torch.inference_mode():
            for rows in self.memory.layers:
                if rows.count >= budget + every:
                    rows.keep(self.policy.keep(rows))
                    self.policy.after_eviction(rows, self)
        return before, self.memory.rows()

    def reposition(self, rows: Rows) -> None:
        """Give a layer's rows the positions 0, 1, 2, …, turning the keys accordingly; the next token follows on."""
        old = rows.positions
        new = torch.arange(rows.count, device=old.device)
        turn = (new - old).float()[..., None] * self.model.angles  # (H, S, D/2)
        rows.reposition(new, torch.polar(torch.ones_like(turn), turn))
        self.memory.next_position = rows.count

    @contextmanager
    def with_plan(self, depth: Depth | None) -> Iterator[None]:
        """Inside, passes go through the layers as `depth` says; None: through them all."""
        self.depth = depth
        try:
            yield
        finally:
            self.depth = None

    # Trying out ------------------------------------------------------------------------------------------------

    @contextmanager
    def speculative_scope(self) -> Iterator[Session]:
        """Decode ahead inside, with `forward` and `push`; on leaving, tokens and memory are what they were."""
        rows, position, tokens, unread = self.memory.rows(), self.memory.next_position, list(self.tokens), self.uncached
        policy, self.policy = self.policy, None
        try:
            yield self
        finally:
            self.policy = policy
            self.memory.restore(rows)
            self.memory.next_position, self.tokens, self.uncached = position, tokens, unread

    def sample_draft(self, logits: Tensor) -> tuple[int, Tensor | None, float]:
        """A draft token from logits (V,), as the run samples: (token, its q or None when certain, its probability)."""
        if self.sampler.greedy:
            token = int(logits.argmax())
            return token, None, float(torch.softmax(logits.float(), -1)[token])
        q = self.sampler.distribution(logits)
        token = self.random.categorical(q)
        return token, q, float(q[token])

    def append_token(self, token: int) -> None:
        """After a `forward` without a draft: add a token without asking any policy."""
        self.memory.next_position += self.uncached
        self.tokens.append(token)
        self.uncached = 1

"""A small server: requests arrive on a clock, are read, and decode together, one forward for all of them.

The clock is virtual. It goes on by what each pass took, measured, and jumps to the next arrival when there is nothing
to do: so arrivals are the same on every machine, and nobody sleeps. What a pass works on, a scheduler says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmlab.errors import Refused
from llmlab.kv.memory import Memory
from llmlab.models.batch import Batch, Span
from llmlab.models.decoder import Decoder
from llmlab.models.embedding import EmbeddingAndHead
from llmlab.models.kernels.topk import argmax
from llmlab.runtime.clock import Clock
from llmlab.runtime.draft import Draft, Verdict
from llmlab.runtime.roles import Drafter
from llmlab.runtime.sampling import accept_greedy
from llmlab.runtime.tools import Tools
from llmlab.serving.scheduler import Request, Scheduler, Share, Slot


@dataclass(frozen=True)
class Pass:
    """What a pass did, and the clock after it. `mandatory` rows are the running requests' own, one each."""

    now: float
    seconds: float
    waiting: int
    read: int
    mandatory: int
    drafted: int
    accepted: int


class Server:
    """Seats for requests on one model. Their keys and values share tensors, and stay allocated from run to run."""

    def __init__(self, model: Any, seats: int, clock: Callable[[], float] | None = None) -> None:
        if not isinstance(model, Decoder):
            raise Refused("Serving", "puts several texts into one pass; this model takes one", "Choose another model")
        self.model, self.clock = model, clock or Clock(model.device)
        self.seats = [Slot(model) for _ in range(seats)]
        Memory.pooled([seat.memory for seat in self.seats])

    def serve(
        self,
        requests: Sequence[Request],
        scheduler: Scheduler,
        drafter: Drafter | None = None,
        tools: Tools | None = None,
        ends: Collection[int] = (),
    ) -> Iterator[Pass]:
        """Carry out all requests, greedily; their texts and times are in them afterwards. `ends` are stop tokens.

        Raises Refused, before anything is computed, for a prompt that is empty or too long.
        """
        for request in requests:
            if not 1 <= len(request.prompt) <= self.model.context:
                why = f"has {len(request.prompt)} tokens and this model reads 1 to {self.model.context}"
                raise Refused("A request's prompt", why, "Change it or leave it out")
        coming = deque(sorted(requests, key=lambda r: r.arrival))
        waiting: list[Request] = []
        running: list[Request] = []
        free, now = list(self.seats), 0.0
        while coming or waiting or running:
            while coming and coming[0].arrival <= now:
                waiting.append(coming.popleft())
            start = self.clock()
            plan = scheduler.plan(waiting, running, len(free)) if waiting or running else []
            if not plan and not coming:
                raise RuntimeError(f"{type(scheduler).__name__} plans nothing, and nobody else will come")
            if not plan:
                now = coming[0].arrival
                continue
            for share in plan:
                request = share.request
                if request.seat is None:
                    waiting.remove(request)
                    running.append(request)
                    request.sit(free.pop(0))
                    request.drafts = drafter.drafts(request.seat, tools or Tools()) if drafter else None
            gains = self._advance(plan)
            now += (seconds := self.clock() - start)
            for request, tokens in gains:
                if request.take(tokens, ends, now) or request.seat.memory.next_position >= self.model.context:
                    running.remove(request)
                    free = [seat for seat in self.seats if seat in (*free, request.seat)]
                    request.seat = request.drafts = None
            read, drafted = sum(s.read for s in plan), sum(len(s.draft) for s in plan)
            accepted = sum(len(tokens) - 1 for _, tokens in gains)
            yield Pass(now, seconds, len(waiting), read, len(gains), drafted, accepted)

    @torch.inference_mode()
    def _advance(self, plan: Sequence[Share]) -> list[tuple[Request, list[int]]]:
        """One pass; per request that is not just being read, the tokens it gains: accepted ones and one more."""
        # Logits are those of a batch's last rows, so what needs none comes first.
        order = sorted(plan, key=lambda s: (not s.read, self.seats.index(s.request.seat)))
        tokens: list[int] = []
        spans = []
        for share in order:
            seat, first, start = share.request.seat, share.request.seat.memory.next_position, len(tokens)
            tokens += [*seat.tokens[first : first + (share.read or 1)], *share.draft]
            spans.append(Span(start, len(tokens), seat.memory, first=first))
        positions = torch.cat([torch.arange(s.first, s.first + s.stop - s.start) for s in spans])
        device, rows = self.model.device, len(tokens) - sum(share.read for share in plan)
        batch = Batch(torch.tensor(tokens, device=device), positions.to(device), spans)
        logits = self.model.forward(batch, last=rows, best=EmbeddingAndHead.CANDIDATES)
        best = argmax(logits) if rows else []
        gains = []
        for share in order:
            memory = share.request.seat.memory
            memory.next_position += share.read
            if not share.read:
                draft = Draft.chain(share.draft)
                own, best = best[: 1 + len(draft)], best[1 + len(draft) :]
                path, bonus = accept_greedy(draft, own)
                memory.restore([held - len(draft) + len(path) for held in memory.rows()])
                memory.next_position += 1 + len(path)
                gains.append((share.request, [*share.draft[: len(path)], bonus]))
                if len(draft):
                    share.request.verdict = Verdict(path, tuple(gains[-1][1]), draft, tuple(own))
        return gains

"""A small server: requests arrive on a clock, are read, and decode together, one forward for all of them.

The clock is virtual. It goes on by what each pass took, measured, and jumps to the next arrival when there is nothing
to do: so arrivals are the same on every machine, and nobody sleeps. What a pass works on, a scheduler says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmlab.errors import Refused
from llmlab.kv.memory import Memory
from llmlab.models.decoder import Decoder
from llmlab.runtime.clock import Clock
from llmlab.runtime.stack import Stack
from llmlab.runtime.step import Work, verify
from llmlab.runtime.tools import Tools
from llmlab.serving.scheduler import Request, Scheduler, Share


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


@dataclass
class _Queue:
    """Where every request is: to come, waiting for a slot, or running in one; `now` is the clock."""

    coming: deque[Request]
    free: list[int]
    waiting: list[Request] = field(default_factory=list)
    running: dict[Request, int] = field(default_factory=dict)
    now: float = 0.0

    def arrive(self) -> None:
        while self.coming and self.coming[0].arrival <= self.now:
            self.waiting.append(self.coming.popleft())

    def admit(self, request: Request) -> int:
        """A free slot for a request that has waited."""
        self.waiting.remove(request)
        self.running[request] = self.free.pop(0)
        return self.running[request]

    def leave(self, request: Request) -> None:
        self.free = sorted([*self.free, self.running.pop(request)])


class Server:
    """Slots for requests on one model. Their keys and values share tensors, and stay allocated from run to run."""

    def __init__(self, model: Any, slots: int, clock: Callable[[], float] | None = None) -> None:
        if not isinstance(model, Decoder):
            raise Refused("Serving", "puts several texts into one pass; this model takes one", "Choose another model")
        self.model, self.clock = model, clock or Clock(model.device)
        self.memories = [model.memory() for _ in range(slots)]
        Memory.pooled(self.memories)

    def serve(
        self,
        requests: Sequence[Request],
        scheduler: Scheduler,
        stack: Stack | None = None,
        tools: Tools | None = None,
        ends: Collection[int] = (),
    ) -> Iterator[Pass]:
        """Carry out all requests, greedily; their texts and times are in them afterwards. `ends` are stop tokens.

        `stack` acts on every request by itself: its drafter, acceptor, policy, patterns and plan of layers; the model
        must carry its weight transforms already.

        Raises Refused, before anything is computed, for a prompt that is empty or too long, and for a stack that cannot
        run on this model.
        """
        stack, tools = stack or Stack(), tools or Tools()
        stack.require(self.model.capabilities)
        for request in requests:
            if not 1 <= len(request.prompt) <= self.model.context:
                why = f"has {len(request.prompt)} tokens and this model reads 1 to {self.model.context}"
                raise Refused("A request's prompt", why, "Change it or leave it out")
        queue = _Queue(deque(sorted(requests, key=lambda r: r.arrival)), list(range(len(self.memories))))
        while queue.coming or queue.waiting or queue.running:
            queue.arrive()
            start = self.clock()
            busy = queue.waiting or queue.running
            plan = scheduler.plan(queue.waiting, list(queue.running), len(queue.free)) if busy else []
            if not plan and not queue.coming:
                raise RuntimeError(f"{type(scheduler).__name__} plans nothing, and nobody else will come")
            if not plan:
                queue.now = queue.coming[0].arrival
                continue
            for share in plan:
                if share.request.lane is None:
                    self._seat(share.request, queue.admit(share.request), stack, tools, ends)
            yield self._advance(plan, queue, start)

    def _seat(self, request: Request, slot: int, stack: Stack, tools: Tools, ends: Collection[int]) -> None:
        """Give a request a slot, of which whoever was there before is forgotten."""
        self.memories[slot].clear()
        session = stack.session(self.model, tools, memory=self.memories[slot], exact=False)
        session.begin(request.prompt)
        request.lane = stack.lane(session, tools, request.limit, ends)

    def _advance(self, plan: Sequence[Share], queue: _Queue, start: float) -> Pass:
        """One pass over all shares, and what everybody gains by it."""
        # Slots in order, so that a pass of all of them finds their rows side by side.
        order = sorted(plan, key=lambda s: queue.running[s.request])
        works = []
        for share in order:
            assert share.request.lane is not None
            works.append(Work(share.request.lane, share.draft, share.read))
        told = verify(self.model, works)
        gains, read, drafted = [], 0, 0
        for share, work, (piece, result) in zip(order, works, told, strict=True):
            if share.read:
                work.lane.session.prefilled(piece, result)
                read += len(piece.tokens)
            else:
                gains.append((share.request, work.lane.commit(share.draft, result)))
                drafted += len(share.draft)
        queue.now += (seconds := self.clock() - start)
        for request, outcome in gains:
            request.take(outcome.tokens, queue.now)
            lane = request.lane
            assert lane is not None
            if outcome.ended or lane.produced >= request.limit or lane.context_full:
                lane.close()
                request.lane = None
                queue.leave(request)
        accepted = sum(len(outcome.path) for _, outcome in gains)
        return Pass(queue.now, seconds, len(queue.waiting), read, len(gains), drafted, accepted)

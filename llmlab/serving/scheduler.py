"""Who is served when: requests, and what a scheduler gives them of a pass."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field

from llmlab.errors import Refused
from llmlab.runtime.draft import Draft, Verdict
from llmlab.runtime.session import PIECE, Session


class Slot(Session):
    """A place for one running request. `rows`: how deep its next draft may go, because others share the pass."""

    rows = 0

    def max_draft_depth(self) -> int:
        return min(self.rows, super().max_draft_depth())


@dataclass(eq=False)
class Request:
    """A prompt to be continued by at most `limit` tokens, and what became of it. Times are the clock's, in seconds."""

    prompt: Sequence[int]
    limit: int
    arrival: float = 0.0
    text: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """When each token of `text` was there."""
    seat: Slot | None = None
    drafts: Generator[Draft, Verdict, None] | None = None
    verdict: Verdict | None = None
    """What its drafter hears next."""

    @property
    def unread(self) -> int:
        """Tokens of the prompt still to be read; the last one is not, it goes through with the first new token."""
        done = self.seat.memory.next_position if self.seat else 0
        return max(0, len(self.prompt) - 1 - done)

    def sit(self, seat: Slot) -> None:
        """Take a seat, of which whoever sat there before is forgotten."""
        self.seat, seat.tokens, seat.memory.next_position = seat, list(self.prompt), 0
        seat.memory.restore([0] * len(seat.memory.layers))

    def guess(self, most: int) -> tuple[int, ...]:
        """At most `most` tokens that its drafter expects next; none where it has no drafter."""
        most = min(most, self.limit - len(self.text) - 1)
        if self.drafts is None or most < 1:
            return ()
        self.seat.rows = most
        draft = self.drafts.send(self.verdict)
        self.verdict = Verdict()
        if not draft.is_chain:
            raise Refused("Serving", "checks chains of guesses and was given a tree", "Choose another drafter")
        return draft.clipped(self.seat.max_draft_depth()).tokens

    def take(self, tokens: Sequence[int], ends: Collection[int], now: float) -> bool:
        """Add tokens, up to a stop token; whether that ends the text."""
        self.seat.tokens += tokens
        for token in tokens:
            self.text.append(token)
            self.times.append(now)
            if token in ends:
                return True
        return len(self.text) >= self.limit


@dataclass(frozen=True)
class Share:
    """What a request gets of a pass: `read` tokens of its prompt; or, with 0, its next token and `draft` to check.

    A request that is still waiting takes a free seat with its first share.
    """

    request: Request
    read: int = 0
    draft: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scheduler:
    """Decides what each pass works on. This one is first come, first served, with requests coming and going between
    passes (Orca, OSDI 2022, section 3.1): a prompt is read, alone, as soon as a seat is free; then all decode."""

    def plan(self, waiting: Sequence[Request], running: Sequence[Request], free: int) -> list[Share]:
        """Shares of the next pass, of those waiting for at most `free`; an empty plan lets the next request come."""
        here = [*running, *waiting[:free]]
        for request in here:
            if request.unread:
                return [Share(request, read=min(request.unread, PIECE))]
        return self.decode(here, len(waiting[free:]))

    def decode(self, here: Sequence[Request], waiting: int) -> list[Share]:
        """A pass of those who have a seat, while `waiting` others have none."""
        return [Share(request) for request in here]

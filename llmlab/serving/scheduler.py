"""Who is served when: requests, and what a scheduler gives them of a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmlab.runtime.draft import Draft
from llmlab.runtime.session import PIECE
from llmlab.runtime.step import Lane


@dataclass(eq=False)
class Request:
    """A prompt to be continued by at most `limit` tokens, and what became of it. Times are the clock's, in seconds."""

    prompt: Sequence[int]
    limit: int
    arrival: float = 0.0
    text: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """When each token of `text` was there."""
    lane: Lane | None = None
    """Where it decodes, while it has a slot."""

    @property
    def unread(self) -> int:
        """Tokens of the prompt still to be read; the last one is not, it goes through with the first new token."""
        if self.lane is None:
            return len(self.prompt) - 1
        return 0 if self.text else self.lane.session.unread

    def propose(self, most: int) -> Draft:
        """At most `most` tokens deep, what its drafter expects next; nothing where it has no drafter."""
        most = min(most, self.limit - len(self.text) - 1)
        return self.lane.propose(most) if self.lane and most > 0 else Draft()

    def take(self, tokens: Sequence[int], now: float) -> None:
        """Tokens that are there now."""
        self.text += tokens
        self.times += [now] * len(tokens)


@dataclass(frozen=True)
class Share:
    """What a request gets of a pass: `read` tokens of its prompt; or, with 0, its next token and `draft` to check.

    A request that is still waiting takes a free slot with its first share.
    """

    request: Request
    read: int = 0
    draft: Draft = field(default_factory=Draft)


@dataclass(frozen=True)
class Scheduler:
    """Decides what each pass works on. This one is first come, first served, with requests coming and going between
    passes (Orca, OSDI 2022, section 3.1): a prompt is read, alone, as soon as a slot is free; then all decode."""

    def plan(self, waiting: Sequence[Request], running: Sequence[Request], free: int) -> list[Share]:
        """Shares of the next pass, of those waiting for at most `free`; an empty plan lets the next request come."""
        here = [*running, *waiting[:free]]
        for request in here:
            if request.unread:
                return [Share(request, read=min(request.unread, PIECE))]
        return self.decode(here, len(waiting[free:]))

    def decode(self, here: Sequence[Request], waiting: int) -> list[Share]:
        """A pass of those who have a slot, while `waiting` others have none."""
        return [Share(request) for request in here]

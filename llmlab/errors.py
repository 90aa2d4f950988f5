"""Refusing well: one sentence that says who, why and what now, before a weight is loaded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """Why something cannot work, in one sentence that also says what to do instead."""

    who: str
    why: str
    now: str

    def __str__(self) -> str:
        return f"{self.who} {self.why.rstrip('.')}. {self.now.rstrip('.')}."


class Refused(ValueError):
    """Raised for input that cannot work; its text is fit for the page and for standard error."""

    def __init__(self, who: str, why: str, now: str) -> None:
        self.refusal = Refusal(who, why, now)
        super().__init__(str(self.refusal))


Faults = list[tuple[str, Refused]]
"""What was left out of something read, and why: (its name, the refusal)."""


@contextmanager
def noted(faults: Faults | None, name: str) -> Iterator[None]:
    """Notes a refusal inside under `name`, and goes on after the block; without `faults` it stays an exception."""
    try:
        yield
    except Refused as e:
        if faults is None:
            raise
        faults.append((name, e))


def unknown_name(kind: str, name: str, known: Iterable[str]) -> Refused:
    """The refusal of a name that is not among those `known`, with a hint at the one that was meant."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 1)
    listed = ", ".join(known) if len(known) <= 12 else f"the {len(known)} that the command line lists"
    hint = f"Did you mean {near[0]}" if near else f"Choose one of {listed}"
    return Refused(f"No {kind} is called {name[:40]!r};", "the name was not found", hint)

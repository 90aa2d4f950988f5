"""Refusing well: one sentence that says who, why and what now, before a weight is loaded."""

from __future__ import annotations

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

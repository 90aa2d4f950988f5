"""What a model or a stack can do, and refusing well: who, why, what now, before a weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmlab.stack import Stack


class Ability(Enum):
    """One thing that a technique may need. The value completes the sentence "X needs …"."""

    MANY_ROWS = "the model to score several tokens in one pass"
    ROLLBACK = "keys and values that can be taken back"
    EVICTION = "keys and values that can be dropped row by row"
    ATTENTION = "the attention weights of each token"
    ROTARY = "rotary positions, which can be moved after the fact"
    LAYERS = "a decoder whose layers can be skipped one by one"
    STATES = "the hidden states that stand after its layers"
    WEIGHTS = "weight matrices that can be read and replaced"


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


def check(stack: Stack, abilities: frozenset[Ability], model: str = "this model") -> list[Refusal]:
    """Every reason why `stack` cannot run on a model with `abilities`; an empty list means that it can."""
    refusals: list[Refusal] = []
    holder: dict[str, str] = {}
    for technique in stack:
        if technique.slot == "one":
            if technique.door in holder:
                other = holder[technique.door]
                refusals.append(
                    Refusal(technique.title, f"does the same job as {other}: {technique.job}", "Switch one of them off")
                )
            holder.setdefault(technique.door, technique.title)
        if technique.beside and not stack.through(technique.beside.door):
            why = f"works beside a technique for {technique.beside.job}, and the stack has none"
            refusals.append(Refusal(technique.title, why, "Switch one on"))
        for need in sorted(technique.required(), key=lambda a: a.name):
            if need not in abilities:
                refusals.append(
                    Refusal(
                        technique.title, f"needs {need.value}, which {model} does not offer", "Choose another model"
                    )
                )
                continue
            for other in stack:
                if other is not technique and need in other.spoiled():
                    refusals.append(
                        Refusal(
                            technique.title,
                            f"needs {need.value}, which {other.title} does not allow",
                            "Switch one of them off",
                        )
                    )
    return refusals

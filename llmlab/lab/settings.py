"""Everything that determines a run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from llmlab.errors import Refused
from llmlab.measure.hardware import cores
from llmlab.runtime.stack import Stack

CHOICES = {"verify": ("bitwise", "fast"), "copies": ("auto", "none")}
"""Settings with a few named values, the default first."""


def within(name: str, value: Any, low: float, high: float, kind: type) -> Any:
    """`value` as a number of `kind` from `low` to `high`. Raises Refused for anything else."""
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or number != float(value) or not low <= number <= high:
        shown = name.replace("_", " ")
        raise Refused(f"The setting {shown}", f"cannot be {str(value)[:20]}", f"Give {low} to {high}")
    return number


@dataclass(frozen=True)
class Settings:
    """Everything that determines a run. `chat` None means: as a chat where the model has a chat template."""

    model: str = "smollm2-135m"
    prompt: str = ""
    chat: bool | None = None
    max_new_tokens: int = 64
    weights: str = "dense-fp32"
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    device: str = "auto"
    verify: str = "bitwise"
    """"bitwise": a pass over several tokens computes, to the bit, what passes over one token each would. "fast": its
    rows share products, and below float32 a near tie may fall the other way."""
    copies: str = "auto"
    """"auto": weights are kept a second time, in a form that is quicker to read prompts with, where half of the free
    memory holds them. "none": never."""
    threads: int = 0
    """Of the processor; 0: as many as were found best when the lab started."""
    stack: Stack = field(default_factory=Stack)

    def __post_init__(self) -> None:
        limits = {
            "max_new_tokens": (1, 4096, int),
            "temperature": (0.0, 5.0, float),
            "top_k": (0, 1_000_000, int),
            "top_p": (0.01, 1.0, float),
            "seed": (0, 2**31 - 1, int),
            "threads": (0, cores(), int),
        }
        for name, (low, high, kind) in limits.items():
            object.__setattr__(self, name, within(name, getattr(self, name), low, high, kind))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                value = str(getattr(self, name))[:20]
                raise Refused(f"The setting {name}", f"cannot be {value!r}", f"Give {' or '.join(choices)}")

    def to_json(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "chat": self.chat,
            "max_new_tokens": self.max_new_tokens,
            "weights": self.weights,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "seed": self.seed,
            "device": self.device,
            "verify": self.verify,
            "copies": self.copies,
            "threads": self.threads,
        }


def without_techniques(settings: Settings) -> Settings:
    """The same run without any technique."""
    return replace(settings, stack=Stack())

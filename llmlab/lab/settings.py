"""Everything that determines a run: each setting is one knob, from which all that shows or reads it is derived."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llmlab.errors import Refused
from llmlab.runtime.configurable import Configurable, Knob, knob

if TYPE_CHECKING:
    from llmlab.runtime.stack import Stack

# What needs PyTorch is imported where it is called for: the command line reads its options from here and starts fast.


def _processors() -> int:
    from llmlab.measure.hardware import cores

    return cores()


def _formats() -> tuple[str, ...]:
    """The weight formats; a name beyond them is refused by whoever loads the model."""
    from llmlab.models.loading.catalog import FORMATS

    return (*FORMATS, "*")


def _plain() -> Stack:
    from llmlab.runtime.stack import Stack

    return Stack()


@dataclass(frozen=True)
class Settings(Configurable):
    """The run.

    Everything that determines it. `chat` None: as a chat where the model has a chat template.
    """

    model: str = knob("smollm2-135m", help="catalogue id, Hub id, local folder or GGUF file", short="m")
    prompt: str = knob("", help="what the model answers or continues", short="p")
    chat: bool | None = knob(None, help="use the chat template (default: where the model has one)")
    max_new_tokens: int = knob(64, 1, 32_768, "tokens to generate at most", short="n", usual=(1, 512))
    weights: str = knob(
        "dense-fp32",
        help="dense-fp32, dense-bf16, int8, int4, or bitsandbytes' nf4 and bnb-int8",
        choices=_formats,
        short="w",
    )
    temperature: float = knob(0.0, 0.0, 5.0, "0: always the likeliest token", short="temp", usual=(0.0, 2.0))
    top_k: int = knob(0, 0, 1_000_000, "sample among so many tokens; 0: among all")
    top_p: float = knob(1.0, 0.01, 1.0, "sample among the likeliest that share so much", usual=(0.05, 1.0))
    seed: int = knob(0, 0, 2**31 - 1, "of everything random")
    device: str = knob(
        "auto", choices=("auto", "cpu", "cuda", "*"), help="auto, cpu or cuda; auto: cuda if there is one"
    )
    verify: str = knob("bitwise", choices=("bitwise", "fast"), help="bitwise, or fast: rows of a pass share products")
    """"bitwise": a pass over several tokens computes, to the bit, what passes over one token each would. "fast": its
    rows share products, and below float32 a near tie may fall the other way."""
    copies: str = knob(
        "auto", choices=("auto", "none"), help="auto: keep weights twice to read prompts faster; or none"
    )
    """"auto": weights are kept a second time, in a form that is quicker to read prompts with, where half of the free
    memory holds them. "none": never."""
    threads: int = knob(0, 0, _processors, "of the processor; 0: as many as prove best")
    """0: as many as were found best when the lab started."""
    stack: Stack = field(default_factory=_plain)

    @classmethod
    def validated(cls, k: Knob, value: Any) -> Any:
        try:
            return k.parse(value)
        except ValueError as e:
            shown, span = str(value)[:20], f"Give {k.low} to {k.high}"
            if k.kind in ("bool", "choice"):
                words = k.choices if k.kind == "choice" else ("true", "false")
                shown, span = repr(shown), f"Give {' or '.join(words)}"
            raise Refused(f"The setting {k.label}", f"cannot be {shown}", span) from e

    def to_json(self) -> dict[str, Any]:
        """All but the model and the stack, which a record holds beside them."""
        return {name: value for name, value in self.settings().items() if name != "model"}


STUDIED = ("model", "weights", "device", "seed", "threads")
"""The settings that a study looks at."""


def without_techniques(settings: Settings) -> Settings:
    """The same run without any technique."""
    return replace(settings, stack=_plain())


def within(name: str, value: Any, low: float, high: float, kind: type[int] | type[float]) -> Any:
    """`value` as a number of `kind` from `low` to `high`, for a command's own options.

    Raises Refused for anything else.
    """
    return Settings.validated(Knob(name, kind(low), (low, high)), value)

"""What has knobs and a card: a frozen dataclass whose fields are its settings and whose docstring describes it."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import ModuleType
from typing import Any, ClassVar, Literal, TypeVar

from llmlab.errors import Refused

LABELS = ("Idea", "Method", "What to look for", "Differences from the paper")


def knob(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    help: str = "",
    choices: tuple[str, ...] = (),
    advanced: bool = False,
) -> Any:
    """A technique's setting. Its metadata draws the control, validates the value and names the test sweep.

    `low` and `high` are inclusive. `choices` are offered as a list; `("…", "*")` ends with `*` where any text is
    allowed.
    """
    return field(
        default=default, metadata={"low": low, "high": high, "help": help, "choices": choices, "advanced": advanced}
    )


@dataclass(frozen=True)
class Knob:
    """A knob as the page, the command line and the tests see it."""

    name: str
    default: Any
    low: float | None
    high: float | None
    help: str
    choices: tuple[str, ...]
    advanced: bool

    @property
    def kind(self) -> Literal["bool", "int", "float", "choice"]:
        if isinstance(self.default, bool):
            return "bool"
        if isinstance(self.default, int):
            return "int"
        return "float" if isinstance(self.default, float) else "choice"

    def read(self, owner: str, value: Any) -> Any:
        """`value` (a number, a truth value or text) as this knob's type.

        Raises Refused when it is of another type, out of range or not among the choices.
        """
        asked = f"has no use for {self.name} = {str(value)[:40]!r}"
        if self.kind == "bool":
            words = {
                "true": True,
                "1": True,
                "yes": True,
                "on": True,
                "false": False,
                "0": False,
                "no": False,
                "off": False,
            }
            truth = value if isinstance(value, bool) else words.get(str(value).strip().lower())
            if truth is None:
                raise Refused(owner, asked, "Give true or false")
            return truth
        if self.kind == "choice":
            if str(value) in self.choices or "*" in self.choices:
                return str(value)
            raise Refused(owner, asked, f"Choose one of {', '.join(self.choices)}")
        try:
            number = float(value)
            number = int(number) if self.kind == "int" and number == int(number) else number
        except (TypeError, ValueError, OverflowError):
            number = None
        span = f"Give {'a whole number' if self.kind == 'int' else 'a number'} from {self.low} to {self.high}"
        if number is None or isinstance(value, bool) or (self.kind == "int" and not isinstance(number, int)):
            raise Refused(owner, asked, span)
        if not (self.low <= number <= self.high):
            raise Refused(owner, asked, span)
        return number


@dataclass(frozen=True)
class Configurable:
    """What has a name, knobs and a card: techniques and studies. Its docstring is the card, its file gives its name."""

    covers: ClassVar[tuple[str, ...]] = ()
    claim: ClassVar[str] = ""
    """The one line that the page shows beside it."""

    def __post_init__(self) -> None:
        for k in self.knobs():
            object.__setattr__(self, k.name, k.read(self.title, getattr(self, k.name)))

    @classmethod
    def knobs(cls) -> tuple[Knob, ...]:
        return tuple(
            Knob(f.name, f.default, **f.metadata) for f in fields(cls) if f.metadata and f.default is not MISSING
        )

    @classmethod
    def _id(cls) -> str:
        return cls.__module__.rsplit(".", 1)[-1].replace("_", "-")

    @property
    def id(self) -> str:
        """Its name on the command line: its file's name in kebab case."""
        return self._id()

    @property
    def title(self) -> str:
        return title(type(self))

    def settings(self) -> dict[str, Any]:
        return {k.name: getattr(self, k.name) for k in self.knobs()}


def title(described: type[Configurable]) -> str:
    """The first line of the docstring, up to its full stop."""
    return (described.__doc__ or described.__name__).strip().splitlines()[0].rstrip(". ")


def card(described: type[Configurable]) -> dict[str, str]:
    """The docstring's four labelled paragraphs: `LABELS`."""
    text = re.sub(r"\n\s+", "\n", (described.__doc__ or "").strip())
    parts = re.split(rf"^({'|'.join(LABELS)}):\s*", text, flags=re.MULTILINE)
    return {parts[i]: " ".join(parts[i + 1].split()) for i in range(1, len(parts) - 1, 2)}


T = TypeVar("T", bound=Configurable)


def discover(package: ModuleType, kind: type[T]) -> dict[str, type[T]]:
    """Everything of a kind in a package, by id; found by walking its folder, so a new file is all it takes."""
    found: dict[str, type[T]] = {}
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if info.ispkg:
            continue
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, kind) and value.__module__ == info.name and value.covers:
                found[value._id()] = value
    return dict(sorted(found.items()))


def instantiate(kind: str, known: Mapping[str, type[T]], name: str, settings: Mapping[str, Any]) -> T:
    """What `known` has by that name, with these knobs. Refused as `make` says."""
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        listed = ", ".join(known) if len(known) <= 12 else f"the {len(known)} that the command line lists"
        hint = f"Did you mean {near[0]}" if near else f"Choose one of {listed}"
        raise Refused(f"No {kind} is called {name[:40]!r};", "the name was not found", hint)
    cls = known[name]
    knobs = {k.name: k for k in cls.knobs()}
    for key in settings:
        if key not in knobs:
            near = difflib.get_close_matches(key, knobs, 1)
            hint = f"Did you mean {near[0]}" if near else f"Its knobs are {', '.join(knobs) or 'none'}"
            raise Refused(title(cls), f"has no knob called {key[:40]!r}", hint)
    return cls(**{k: knobs[k].read(title(cls), v) for k, v in settings.items()})

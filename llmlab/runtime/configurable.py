"""What has knobs and a card: a frozen dataclass whose fields are its settings and whose docstring describes it."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeVar

from llmlab.errors import Refused, unknown_name

LABELS = ("Idea", "Method", "What to look for", "Differences from the paper")


Choices = tuple[str, ...]
TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
"""The words that a truth value may be given as."""


def knob(
    default: Any,
    low: float | Callable[[], float] | None = None,
    high: float | Callable[[], float] | None = None,
    help: str = "",
    choices: Choices | Callable[[], Choices] = (),
    advanced: bool = False,
    short: str = "",
    usual: tuple[float, float] | None = None,
) -> Any:
    """A field that someone may set. Its metadata draws the control and the option, and validates the value.

    `low` and `high` are inclusive. `choices` are offered as a list; `("…", "*")` ends with `*` where any text is
    allowed; a text without choices is free. Where bounds or choices depend on the machine, give a function of nothing.
    A default of None is a truth value that may stay open. `short` is its name in a link, if not its own; `usual` the
    part of a wide range that a slider covers.
    """
    given = {"bounds": (low, high), "offered": choices, "help": help, "advanced": advanced}
    return field(default=default, metadata=given | {"short": short, "usual": usual})


@dataclass(frozen=True)
class Knob:
    """A knob as the page, the command line and the tests see it."""

    name: str
    default: Any
    bounds: tuple[Any, Any] = (None, None)
    offered: Choices | Callable[[], Choices] = ()
    help: str = ""
    advanced: bool = False
    short: str = ""
    usual: tuple[float, float] | None = None

    @property
    def low(self) -> Any:
        """The least value, or None where it is no number."""
        return self.bounds[0]() if callable(self.bounds[0]) else self.bounds[0]

    @property
    def high(self) -> Any:
        return self.bounds[1]() if callable(self.bounds[1]) else self.bounds[1]

    @property
    def choices(self) -> Choices:
        return self.offered() if callable(self.offered) else self.offered

    @property
    def kind(self) -> Literal["bool", "int", "float", "choice", "text"]:
        if self.default is None or isinstance(self.default, bool):
            return "bool"
        if isinstance(self.default, int):
            return "int"
        if isinstance(self.default, float):
            return "float"
        return "choice" if self.offered else "text"

    @property
    def label(self) -> str:
        return self.name.replace("_", " ")

    @property
    def option(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def expected(self) -> str:
        """What may be given, as a request."""
        match self.kind:
            case "bool":
                return "Give true or false"
            case "choice":
                return f"Choose one of {', '.join(self.choices)}"
            case "text":
                return "Give a text"
        return f"Give {'a whole number' if self.kind == 'int' else 'a number'} from {self.low} to {self.high}"

    def parse(self, value: Any) -> Any:
        """`value` (a number, a truth value or text) as this knob's type. Raises ValueError where it does not fit."""
        match self.kind:
            case "bool":
                return self._truth(value)
            case "choice":
                if str(value) not in self.choices and "*" not in self.choices:
                    raise ValueError("not among the choices")
                return str(value)
            case "text":
                return str(value)
        return self._number(value)

    def validated(self, owner: str, value: Any) -> Any:
        """As `parse`. Raises Refused in the name of `owner`, which says what would fit."""
        try:
            return self.parse(value)
        except ValueError as e:
            raise Refused(owner, f"has no use for {self.name} = {str(value)[:40]!r}", self.expected) from e

    def _truth(self, value: Any) -> bool | None:
        if isinstance(value, bool) or (value is None and self.default is None):
            return value
        truth = TRUTH.get(str(value).strip().lower())
        if truth is None:
            raise ValueError("not a truth value")
        return truth

    def _number(self, value: Any) -> float:
        if isinstance(value, bool):
            raise ValueError("a truth value is no number")
        try:
            number = float(value)
            number = int(number) if self.kind == "int" and number == int(number) else number
        except (TypeError, OverflowError) as e:
            raise ValueError("not a number") from e
        if (self.kind == "int" and not isinstance(number, int)) or not (self.low <= number <= self.high):
            raise ValueError("not in the range")
        return number


@dataclass(frozen=True)
class Configurable:
    """What has knobs: techniques and studies, whose docstring is their card and whose file gives their name, and a
    run's settings."""

    covers: ClassVar[tuple[str, ...]] = ()
    claim: ClassVar[str] = ""
    """The one line that the page shows beside it."""
    claim_zh: ClassVar[str] = ""
    """The same in Chinese."""

    def __post_init__(self) -> None:
        for k in self.knobs():
            object.__setattr__(self, k.name, self.validated(k, getattr(self, k.name)))

    @classmethod
    def validated(cls, k: Knob, value: Any) -> Any:
        """`value` as the knob's type. Raises Refused."""
        return k.validated(title(cls), value)

    @classmethod
    def knobs(cls) -> tuple[Knob, ...]:
        return tuple(
            Knob(f.name, f.default, **f.metadata) for f in fields(cls) if f.metadata and f.default is not MISSING
        )

    @classmethod
    def knob_named(cls, name: str) -> Knob:
        """The knob called `name`. Raises Refused, with a hint at what was meant."""
        knobs = {k.name: k for k in cls.knobs()}
        if name not in knobs:
            near = difflib.get_close_matches(name, knobs, 1)
            hint = f"Did you mean {near[0]}" if near else f"Its knobs are {', '.join(knobs) or 'none'}"
            raise Refused(title(cls), f"has no knob called {name[:40]!r}", hint)
        return knobs[name]

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


def discover(name: str, kind: type[T]) -> dict[str, type[T]]:
    """Everything of a kind in the package called `name`, by id; found by walking its folder, so a new file is all it
    takes. By name, because what is looked for stands above what looks."""
    found: dict[str, type[T]] = {}
    package = importlib.import_module(name)
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if info.ispkg:
            continue
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, kind) and value.__module__ == info.name and value.covers:
                found[value._id()] = value
    return dict(sorted(found.items()))


def instantiate(kind: str, known: Mapping[str, type[T]], name: str, settings: Mapping[str, Any]) -> T:
    """What `known` has by that name, with these knobs.

    Raises Refused for an unknown name or knob, and for a value that does not fit.
    """
    if name not in known:
        raise unknown_name(kind, name, known)
    for key in settings:
        known[name].knob_named(key)
    return known[name](**settings)

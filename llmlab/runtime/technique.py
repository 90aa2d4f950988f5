"""What a technique is: a frozen dataclass from one paper whose fields are its knobs and whose docstring is its card."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

from llmlab.models.capabilities import Capability
from llmlab.runtime.configurable import Configurable, discover, instantiate


@dataclass(frozen=True)
class Technique(Configurable):
    """The base of every technique. Keeps no state: what a run remembers lives in its session or a generator's
    locals."""

    exact: ClassVar[bool] = False
    needs: ClassVar[frozenset[Capability]] = frozenset()
    disables: ClassVar[frozenset[Capability]] = frozenset()
    speed: ClassVar[Literal["real", "simulated"]] = "real"
    noop_settings: ClassVar[dict[str, Any] | None] = None
    """Knobs with which a lossy technique changes nothing at all; None for an exact one."""
    biting_settings: ClassVar[dict[str, Any] | None] = None
    """Knobs with which it shows on a tiny model: a lossy one changes the text, a drafter drafts as much as it can."""
    main_knob: ClassVar[str] = ""
    """The number that trades its quality or its work for cost: what a sweep turns. Empty where it has no number."""
    requires: ClassVar[type[Technique] | None] = None
    """The role that another member of the stack must play for this one to have something to do."""

    role: ClassVar[str] = ""
    slot: ClassVar[Literal["one", "chain"]] = "chain"
    job: ClassVar[str] = ""

    def prepare(self, model: Any, tools: Any) -> None:
        """Load or measure what a run will need, before its clock starts; `tools` keeps it. Called once per run."""

    def required(self) -> frozenset[Capability]:
        """The abilities that these knobs need; override where a knob adds or removes one."""
        return self.needs

    def disabled(self) -> frozenset[Capability]:
        """The abilities that these knobs take from the others."""
        return self.disables

    def lossless(self) -> bool:
        """Whether, with these knobs, not a single token changes (in float32)."""
        if self.exact:
            return True
        return self.noop_settings is not None and all(getattr(self, k) == v for k, v in self.noop_settings.items())


@cache
def registry() -> dict[str, type[Technique]]:
    """Every technique under `llmlab/techniques`, by id."""
    return discover("llmlab.techniques", Technique)


def make(name: str, /, **settings: Any) -> Technique:
    """The technique called `name` with these knobs; Refused for an unknown name or knob, or a value out of range."""
    return instantiate("technique", registry(), name, settings)

"""What a technique may ask for beyond the session: a partner model, text to calibrate on, the tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from llmlab.assets import ASSETS
from llmlab.errors import Refused
from llmlab.kv.memory import Memory
from llmlab.models.auxiliary import store
from llmlab.models.bytes import nbytes
from llmlab.models.cached import cached_on

T = TypeVar("T")


class Tools:
    """Handed to weight transforms and drafters. A bare one offers nothing and says so."""

    def __init__(
        self,
        tokenizer: Any = None,
        partner: Callable[[str], Any] | None = None,
        calibration: list[int] | None = None,
        parts: Callable[[str, Any, str], dict[str, Tensor]] = store.load,
    ) -> None:
        """`partner(name)` returns a model by catalogue id, or "int4" etc. for the running model in that format.
        `parts` finds trained parts, as `store.load` does."""
        self.tokenizer = tokenizer
        self._partner = partner
        self._calibration = calibration
        self._parts = parts
        self._memories: list[Memory] = []
        self._partners: dict[str, Any] = {}
        self._held: list[Any] = []

    def partner(self, name: str) -> Any:
        """A second model that shares the vocabulary. Raises Refused where there is none."""
        if self._partner is None:
            raise Refused("This run", "has no second model at hand to draft with", "Choose another drafter")
        if name not in self._partners:
            self._partners[name] = self._partner(name)
        return self._partners[name]

    def calibration(self, length: int) -> list[int]:
        """The first `length` tokens of the calibration text, in this model's vocabulary."""
        if self._calibration is None:
            if self.tokenizer is None:
                raise Refused("This run", "has no tokenizer to read the calibration text with", "Give token ids")
            text = (ASSETS / "texts" / "calibration.txt").read_text(encoding="utf-8")
            self._calibration = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._calibration[:length]

    def part(self, kind: str, model: Any, who: str, make: Callable[[Any, dict[str, Tensor]], T]) -> T:
        """`make(model, tensors)` of the part of this kind trained for `model`, made once per model.

        Raises Refused, in the name of `who`, where none was trained.
        """
        return self.hold(cached_on(model, ("part", kind), lambda: make(model, self._parts(kind, model, who))))

    # Counting -----------------------------------------------------------------------------------------------------

    def hold(self, part: T) -> T:
        """Count what the run uses beside its model: a trained part, heads, whatever holds tensors."""
        if not any(part is held for held in self._held):
            self._held.append(part)
        return part

    def remember(self, memory: Memory) -> Memory:
        """Count a memory that a drafter keeps beside the run's own."""
        self._memories.append(memory)
        return memory

    def forget_memories(self) -> None:
        """The runs are over whose drafters kept these memories."""
        self._memories.clear()

    def weight_bytes(self, model: Any) -> int:
        """Bytes of the weights that partners and parts hold beside `model`, each tensor once."""
        return nbytes(*self._partners.values(), *self._held, beside=[model])

    def computing(self, model: Any) -> list[Any]:
        """Whoever counts its `work` (see `models/work.py`) in a run of `model`: first the model, then partners and
        parts that keep an account of their own."""
        found = {id(model.work): model}
        for other in (*self._partners.values(), *self._held):
            if hasattr(other, "work"):
                found.setdefault(id(other.work), other)
        return list(found.values())

    def kv_bytes(self) -> int:
        """Bytes that drafters hold beside the run's own memory."""
        return sum(memory.nbytes for memory in self._memories)

"""What a technique may ask for beyond the session: a partner model, text to calibrate on, the tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from llmlab import trained
from llmlab.abilities import Refused
from llmlab.memory import Memory

ASSETS = Path(__file__).resolve().parent.parent / "assets"


_PARTS: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()
_INFLUENCE: WeakKeyDictionary[Any, list[float]] = WeakKeyDictionary()


class Tools:
    """Handed to weight transforms and drafters. A bare one offers nothing and says so."""

    def __init__(
        self,
        tokenizer: Any = None,
        partner: Callable[[str], Any] | None = None,
        calibration: list[int] | None = None,
        parts: Callable[[str, Any, str], dict[str, Tensor]] = trained.load,
    ) -> None:
        """`partner(name)` returns a model by catalogue id, or "int4" etc. for the running model in that format.
        `parts` finds trained parts, as `trained.load` does."""
        self.tokenizer = tokenizer
        self._partner = partner
        self._calibration = calibration
        self._parts = parts
        self.memories: list[Memory] = []
        self.sessions: list[Any] = []
        self._partners: dict[str, Any] = {}

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

    def part(self, kind: str, model: Any, who: str, make: Callable[[Any, dict[str, Tensor]], Any]) -> Any:
        """`make(model, tensors)` of the part of this kind trained for `model`, made once per model.

        Raises Refused, in the name of `who`, where none was trained.
        """
        made = _PARTS.setdefault(model, {})
        if kind not in made:
            made[kind] = make(model, self._parts(kind, model, who))
        return made[kind]

    def kv_bytes(self) -> int:
        """Bytes that drafters hold beside the run's own memory."""
        return sum(s.memory.nbytes for s in self.sessions) + sum(m.nbytes for m in self.memories)

    def influence(self, model: Any) -> list[float]:
        """Per layer, how much it turns its input on the calibration text; measured once per model."""
        if model not in _INFLUENCE:
            from llmlab.techniques.weights.sparsity import influence

            _INFLUENCE[model] = influence(model, self.calibration(512))
        return _INFLUENCE[model]

"""Which of transformers' architectures the lab runs and how, as `python -m benchmarks.architectures --keep` found."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Literal

from llmlab.assets import ASSETS

KEPT = ASSETS / "architectures.json"


@dataclass(frozen=True)
class Architecture:
    """A `model_type`. `seam` is how transformers lets the lab in; `why` a refusal's sentence."""

    kind: str
    engine: Literal["decoder", "transformers", "none"]
    seam: str
    why: str


@cache
def architectures() -> tuple[Architecture, ...]:
    """All of them, by name."""
    kinds = json.loads(KEPT.read_text(encoding="utf-8"))["kinds"]
    return tuple(Architecture(kind, **row) for kind, row in sorted(kinds.items()))


def judged_with() -> str:
    """The version of transformers that they were judged with."""
    return str(json.loads(KEPT.read_text(encoding="utf-8"))["transformers"])

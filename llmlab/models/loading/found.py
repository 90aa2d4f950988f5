"""A model that exists somewhere, before its weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmlab.errors import Refused
from llmlab.models.loading.catalog import Entry


@dataclass(frozen=True)
class Found:
    """A model that exists. `path`: its folder or file, where only the config is here yet for a "hub" and nothing for a
    "mirror"; `nbytes`: its download's size."""

    ref: str
    name: str
    kind: Literal["folder", "gguf", "hub", "mirror"]
    path: Path | None = None
    entry: Entry | None = None
    revision: str = "main"
    nbytes: int = 0


class Unreachable(Refused):
    """The Hub does not answer."""

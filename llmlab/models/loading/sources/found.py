"""A model that exists somewhere, before its weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmlab.errors import Refused
from llmlab.models.loading.catalog import Entry


@dataclass(frozen=True)
class Found:
    """A model that exists. `path`: its folder or file (the first part of a split GGUF), where only the config is here
    yet for a "hub" and nothing for a "mirror"; `repo`: its id on the Hub; `texts` and `weights`: the files of its
    download, in the order of fetching; `nbytes`: that download's size."""

    ref: str
    name: str
    kind: Literal["folder", "gguf", "hub", "mirror"]
    path: Path | None = None
    entry: Entry | None = None
    revision: str = "main"
    nbytes: int = 0
    repo: str = ""
    texts: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()


class Unreachable(Refused):
    """The Hub does not answer."""


class Missing(Refused):
    """The Hub answers that there is no such repository."""

"""Held-out prompts of six kinds: nothing was trained on them, and half of them chose no setting either."""

from __future__ import annotations

import json
from typing import Literal

from llmlab.assets import ASSETS

KINDS = ("chat", "summary", "question answering", "mathematics", "code", "rewriting")
Use = Literal["judging", "choosing"]
"""Defaults were chosen on some of the prompts for choosing; figures that are published are of those for judging."""


def known_prompts(use: Use = "judging") -> list[dict[str, str]]:
    """The held-out prompts for a use: id, kind, use and prompt."""
    found: list[dict[str, str]] = json.loads((ASSETS / "texts" / "held_out.json").read_text(encoding="utf-8"))
    return [p for p in found if p["use"] == use]


def held_out(kind: str, each: int) -> list[dict[str, str]]:
    """The first `each` prompts for judging of a kind, or of every kind for "all": id, kind, use and prompt."""
    known = known_prompts()
    kinds = KINDS if kind == "all" else (kind,)
    return [p for k in kinds for p in [q for q in known if q["kind"] == k][:each]]

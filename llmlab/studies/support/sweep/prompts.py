"""Held-out prompts of six kinds, on which nothing was tuned."""

from __future__ import annotations

import json

from llmlab.assets import ASSETS

KINDS = ("chat", "summary", "question answering", "mathematics", "code", "rewriting")


def known_prompts() -> list[dict[str, str]]:
    """The held-out prompts: id, kind and prompt."""
    found: list[dict[str, str]] = json.loads((ASSETS / "texts" / "held_out.json").read_text(encoding="utf-8"))
    return found


def held_out(kind: str, each: int) -> list[dict[str, str]]:
    """The first `each` held-out prompts of a kind, or of every kind for "all": id, kind and prompt."""
    known = known_prompts()
    kinds = KINDS if kind == "all" else (kind,)
    return [p for k in kinds for p in [q for q in known if q["kind"] == k][:each]]

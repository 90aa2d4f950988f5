"""What ships for the playground: recorded runs to replay and example prompts."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from llmlab.assets import ASSETS
from llmlab.errors import Refused
from llmlab.measure import trace
from llmlab.runtime.events import Event
from llmlab.ui.i18n import catalogue

RUNS = ASSETS / "runs"


@cache  # one value
def recordings() -> list[dict[str, Any]]:
    """The recorded runs: id, file and label in both languages, the first visit's run first."""
    found: list[dict[str, Any]] = json.loads((RUNS / "index.json").read_text(encoding="utf-8"))
    return found


@cache  # one value
def examples() -> list[dict[str, Any]]:
    """The example prompts: id, prompt and label in both languages."""
    found: list[dict[str, Any]] = json.loads((ASSETS / "texts" / "prompts.json").read_text(encoding="utf-8"))
    return found


def recording(name: str) -> dict[str, Any]:
    """The recorded run called `name`. Raises Refused for one that does not ship."""
    known = {r["id"]: r for r in recordings()}
    if name not in known:
        asked = f"No recorded run is called {name[:40]!r};"
        raise Refused(asked, "the name was not found", f"Choose one of {', '.join(known)}")
    return known[name]


def events_of(item: dict[str, Any]) -> list[Event]:
    return trace.load(RUNS / item["file"])


def translations() -> dict[str, dict[str, str]]:
    """Every label of the page by language and key, those of examples and recorded runs included."""
    words = {lang: dict(known) for lang, known in catalogue().items()}
    for kind, items in (("example", examples()), ("recorded", recordings())):
        for item in items:
            for lang, known in words.items():
                known[f"{kind}-{item['id']}"] = item["label"][lang]
    return words

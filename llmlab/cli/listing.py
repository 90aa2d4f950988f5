"""How techniques and studies are listed: as JSON objects, and as lines with their knobs below them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from llmlab.cli.output import show

if TYPE_CHECKING:
    from llmlab.lab.study import Study
    from llmlab.runtime.technique import Technique


def row(name: str, kind: type[Technique] | type[Study], **more: Any) -> dict[str, Any]:
    """A technique or a study as an object of its listing."""
    from llmlab.runtime.configurable import title

    knobs = [
        {"name": k.name, "kind": k.kind, "default": k.default, "low": k.low, "high": k.high, "help": k.help}
        | ({"choices": list(k.choices)} if k.choices else {})
        for k in kind.knobs()
    ]
    about = {"title": title(kind), "claim": kind.claim, "claim_zh": kind.claim_zh, "knobs": knobs, "speed": kind.speed}
    return {"id": name, **more, **about, "covers": list(kind.covers)}


def show_knobs(knobs: Iterable[dict[str, Any]]) -> None:
    for k in knobs:
        span = " | ".join(k.get("choices", ())) or (f"{k['low']}…{k['high']}" if k["low"] is not None else "")
        show(f"{'':4}{k['name']} = {k['default']}  {span}  {k['help']}")

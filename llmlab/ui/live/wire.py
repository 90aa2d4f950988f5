"""What the panel receives of a run: every event as an object whose keys are the event's own fields.

Nothing here lists the events or their fields, so one added to `runtime/events.py` reaches the panel as it is. The
table `SHAPES` names what travels otherwise: shorter, rounded, in one number, or not at all. A trace may come from a
stranger, so nothing is passed on that JSON or JavaScript cannot hold, and nothing longer than a panel can show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from itertools import islice
from typing import Any

from llmlab.runtime.events import Event

LONGEST_PROMPT = 20_000
"""Characters of the prompt's end that travel to the panel."""
LONGEST_TEXT = 2_000
LONGEST_LIST = 257
"""A tree of 256 drafts, or what a pass that accepts them all commits."""
MOST_LAYERS = 512
DEEPEST = 3
"""Levels of nested lists and objects."""
LARGEST = 2**53
"""JavaScript counts exactly up to here. A stranger's trace may hold any number."""

Shape = Callable[[Any], Any]


def number(x: Any, digits: int = 5) -> float:
    """`x` as JSON and JavaScript can hold it; 0 for what is not a number. Times need no more than 10 microseconds."""
    if not isinstance(x, int | float) or not math.isfinite(x):
        return 0
    x = max(-LARGEST, min(LARGEST, x))
    return int(x) if x == int(x) else round(x, digits)


def plain(value: Any, depth: int = DEEPEST) -> Any:
    """`value` as it travels when `SHAPES` says nothing of it; None for what JSON does not know or lies too deep."""
    match value:
        case bool():
            return value
        case str():
            return value[:LONGEST_TEXT]
        case int() | float():
            return number(value)
        case list() | tuple() if depth:
            return [plain(v, depth - 1) for v in value[:LONGEST_LIST]]
        case dict() if depth:
            return {str(k)[:40]: plain(v, depth - 1) for k, v in islice(value.items(), LONGEST_LIST)}
    return None


def text(longest: int) -> Shape:
    return lambda value: value[:longest]


def rounded(digits: int) -> Shape:
    return lambda value: number(value, digits)


def rows(values: Sequence[int]) -> list[float] | float:
    """A figure per layer; a single number where all layers have the same, which spares most of a message."""
    shown = [number(v) for v in values[:MOST_LAYERS]]
    return shown[0] if shown and len(set(shown)) == 1 else shown


def names(stack: Iterable[dict[str, Any]]) -> list[str]:
    """Of the techniques only their ids: the panel shows no settings."""
    return [str(t.get("id", ""))[:40] for t in islice(stack, 16)]


def ending(tokens: Iterable[str]) -> str:
    """The prompt's end: the panel asks for no more, and what a visitor pastes may be a book."""
    whole = "".join(tokens)
    return whole if len(whole) <= LONGEST_PROMPT else "… " + whole[-LONGEST_PROMPT:]


LEFT_OUT = None

SHAPES: dict[str, Shape | None] = {
    "Started.model": text(80),
    "Started.device": text(40),
    "Started.weights": text(40),
    "Started.stack": names,
    "Started.settings": LEFT_OUT,  # the page's controls show them; they hold the prompt once more
    "Started.prompt": ending,
    "WeightsChanged.technique": text(40),
    "Prefilled.kv_rows": rows,
    "Committed.kv_rows": rows,
    "Committed.layers_run": rounded(2),
    "Evicted.before": rows,
    "Evicted.after": rows,
    "Exited.confidence": rounded(3),
    "Finished.reason": text(80),
    "Finished.metrics": LEFT_OUT,  # the panel folds its own, up to the pass that its cursor shows
}


def encode(events: Iterable[Event]) -> list[dict[str, Any]]:
    """One JSON object per event: its kind as `event`, then its fields. `protocol.js` is the other side."""
    return [_encode(e) for e in events]


def _encode(event: Event) -> dict[str, Any]:
    kind = type(event).__name__
    out: dict[str, Any] = {"event": kind}
    for f in fields(event):
        shape = SHAPES.get(f"{kind}.{f.name}", plain)
        if shape is not LEFT_OUT:
            out[f.name] = shape(getattr(event, f.name))
    return out

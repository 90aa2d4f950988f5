"""The live panel: one `gr.HTML` that draws a run from small JSON messages, while it happens or from a recording."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from llmlab.runtime.events import (
    Committed,
    Drafted,
    Event,
    Evicted,
    Exited,
    Failed,
    Finished,
    Prefilled,
    Started,
    WeightsChanged,
)

HERE = Path(__file__).parent
TEMPLATE = '<div class="llmlab-panel" data-testid="live-panel" data-state="idle" data-seq="-1"></div>'
"""Static for ever: Gradio evaluates templates as JavaScript, so whatever a model writes must never come near one."""

LONGEST_PROMPT = 20_000
"""Characters of the prompt's end that travel to the panel."""
MOST_LAYERS = 512
MOST_DRAFTS = 256
LARGEST = 2**53
"""JavaScript counts exactly up to here. A stranger's trace may hold any number."""

Snapshot = Callable[[str], dict[str, Any] | None]


def labels() -> dict[str, dict[str, str]]:
    """Every word the panel shows, by language and key."""
    return json.loads((HERE / "labels.json").read_text(encoding="utf-8"))


class LivePanel(gr.HTML):
    """Shows a run: figures, tokens by origin, charts with the baseline as a ghost, and a cursor that replays it.

    Its value is what `message` or `recorded` return. `lang` is for browsers that prefer neither English nor Chinese.
    `snapshot` gives the whole run again (a message with reset) to a panel that has missed one, None for an unknown run.
    """

    def __init__(
        self, value: dict[str, Any] | None = None, lang: str = "en", snapshot: Snapshot | None = None, **kw: Any
    ) -> None:
        def snapshot_of(run: str) -> dict[str, Any] | None:
            return snapshot(run) if snapshot and isinstance(run, str) else None

        # Gradio makes it an attribute by its name, and sends along every attribute named like a constructor argument:
        # so it must not be called `snapshot`.
        words = json.dumps(labels(), ensure_ascii=False).replace("</", "<\\/")
        # Not as css_template: Gradio replaces that style sheet at every message, a third of what a message costs.
        style = json.dumps((HERE / "panel.css").read_text(encoding="utf-8"))
        script = (HERE / "panel.js").read_text(encoding="utf-8")
        super().__init__(
            value=value,
            html_template=TEMPLATE,
            css_template="",
            js_on_load=f"const LABELS = {words};\nconst STYLE = {style};\n{script}",
            apply_default_css=False,
            server_functions=[snapshot_of],
            fallback=lang,
            **kw,
        )

    def postprocess(self, value: dict[str, Any] | None) -> dict[str, Any] | None:
        """The message as it travels: its events are one string, because Gradio sends the difference to the last value.

        Those patches go wrong for nested lists that shrink (inner deletions are shifted once per level), and the
        browser applies them in place, to objects that the panel may still hold.
        """
        return value and {**value, "ev": json.dumps(value["ev"], ensure_ascii=False, separators=(",", ":"))}

    def api_info(self) -> dict[str, Any]:
        return {"type": "object"}


def _number(x: float, digits: int = 0) -> float:
    """`x` as JSON and JavaScript can hold it; 0 for what is not a number."""
    if not isinstance(x, int | float) or not math.isfinite(x):
        return 0
    x = max(-LARGEST, min(LARGEST, x))
    return round(x, digits) if digits else int(x)


def _numbers(values: Iterable[int], most: int = MOST_LAYERS) -> list[float]:
    return [_number(v) for v in list(values)[:most]]


def _rows(rows: Sequence[int]) -> list[float] | float:
    """Rows per layer; a single number where all layers hold the same, which spares most of a message."""
    values = _numbers(rows)
    return values[0] if values and len(set(values)) == 1 else values


def encode(events: Sequence[Event], first: int = 0) -> list[list[Any]]:
    """One array per event, its kind first, then its time in seconds. `first` is the index of events[0] in the run.

    S Started, W WeightsChanged, P Prefilled, D Drafted, C Committed, E Evicted, X Exited, F Finished, ! Failed;
    `panel.js` reads the fields in the order written here. Kinds that the panel does not draw are left out.
    """
    out: list[list[Any]] = []
    for e in events:
        t = _number(e.t, 5)
        match e:
            case Started():
                names = [str(s.get("id", ""))[:40] for s in e.stack[:16]]
                prompt = "".join(e.prompt)
                sizes = [_number(e.prompt_tokens), _number(e.layers), _number(e.weight_bytes)]
                about = [e.model[:80], e.device[:40], e.weights[:40]]
                hidden = len(prompt) > LONGEST_PROMPT
                out.append(["S", t, e.lane, about, names, sizes, e.lossless, prompt[-LONGEST_PROMPT:], hidden])
            case WeightsChanged():
                out.append(["W", t, e.technique[:40], _number(e.before_bytes), _number(e.after_bytes)])
            case Prefilled():
                out.append(["P", t, _number(e.done), _number(e.total), _number(e.kv_bytes), _rows(e.kv_rows)])
            case Drafted():
                tokens, parents = _numbers(e.tokens, MOST_DRAFTS), _numbers(e.parents, MOST_DRAFTS)
                out.append(["D", t, tokens, parents, e.text[:MOST_DRAFTS], _number(e.seconds, 5)])
            case Committed():
                path, tokens = _numbers(e.path, MOST_DRAFTS), _numbers(e.tokens, MOST_DRAFTS + 1)
                memory = [_number(e.kv_bytes), _rows(e.kv_rows)]
                passed = [_number(e.seconds, 5), _number(e.layers_run, 2)]
                out.append(["C", t, tokens, path, e.text[: MOST_DRAFTS + 1], *passed, *memory])
            case Evicted():
                out.append(["E", t, _rows(e.before), _rows(e.after)])
            case Exited():
                out.append(["X", t, _number(e.layer), _number(e.layers), _number(e.confidence, 3)])
            case Finished():
                out.append(["F", t, e.reason[:80]])
            case Failed():
                out.append(["!", t, e.message[:2000]])
    return out


def message(
    run_id: str,
    seq: int,
    events: Sequence[Event],
    state: str,
    note: str = "",
    reset: bool = False,
    quality: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What the panel is told: the events since the last message, or with `reset` all of the run's.

    `seq` counts a run's messages from 0. `state` is queued, running, done, error or recorded. `note` is "waiting:N"
    (runs before this one), "what|done|total" (progress; a total above 2**20 means bytes), "stopped" or "".
    """
    value: dict[str, Any] = {"v": 1, "run": run_id, "seq": seq, "reset": reset, "state": state, "note": note}
    value["ev"] = encode(events)
    if quality:
        value["quality"] = {k: quality.get(k) for k in ("identical", "first_difference")}
    return value


def recorded(events: Sequence[Event], name: str) -> dict[str, Any]:
    """A finished run, shown whole and ready to replay."""
    value = message("", 0, events, "recorded", name, reset=True)
    digest = hashlib.sha256(json.dumps(value["ev"]).encode()).hexdigest()[:12]
    return {**value, "run": f"recorded:{digest}"}

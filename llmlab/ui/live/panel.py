"""The live panel: one `gr.HTML` that draws a run from small JSON messages, while it happens or from a recording."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr

from llmlab.runtime.events import Event
from llmlab.ui.live.bundle import bundle
from llmlab.ui.live.wire import encode

HERE = Path(__file__).parent
TEMPLATE = '<div class="llmlab-panel" data-testid="live-panel" data-state="idle" data-seq="-1"></div>'
"""Static for ever: Gradio evaluates templates as JavaScript, so whatever a model writes must never come near one."""

VERSION = 2
"""Of the messages; a browser that still holds a panel of another version ignores them. The same in `protocol.js`."""

Snapshot = Callable[[str], dict[str, Any] | None]


def labels() -> dict[str, dict[str, str]]:
    """Every word the panel shows, by language and key."""
    found: dict[str, dict[str, str]] = json.loads((HERE / "labels.json").read_text(encoding="utf-8"))
    return found


@cache
def script() -> str:
    """What runs in the browser once per panel. It holds the lab's own words and code, and never anybody else's."""
    words = json.dumps(labels(), ensure_ascii=False).replace("</", "<\\/")
    # Not as css_template: Gradio replaces that style sheet at every message, a third of what a message costs.
    style = json.dumps((HERE / "panel.css").read_text(encoding="utf-8"))
    return f"{bundle(HERE, 'panel')}\n$modules.panel.mount({{ element, props, server, watch }}, {words}, {style});\n"


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
        super().__init__(
            value=value,
            html_template=TEMPLATE,
            css_template="",
            js_on_load=script(),
            apply_default_css=False,
            server_functions=[snapshot_of],
            fallback=lang,
            **kw,
        )

    # Gradio says a string; its value may be anything that is JSON.
    def postprocess(self, value: dict[str, Any] | None) -> dict[str, Any] | None:  # type: ignore[override]
        """The message as it travels: its events are one string, because Gradio sends the difference to the last value.

        Those patches go wrong for nested lists that shrink (inner deletions are shifted once per level), and the
        browser applies them in place, to objects that the panel may still hold.
        """
        return value and {**value, "ev": json.dumps(value["ev"], ensure_ascii=False, separators=(",", ":"))}

    def api_info(self) -> dict[str, Any]:
        return {"type": "object"}


def message(
    run_id: str,
    seq: int,
    events: Sequence[Event],
    state: str,
    note: str = "",
    reset: bool = False,
    compare: bool = False,
) -> dict[str, Any]:
    """A message to the panel: the events since the last message, or with `reset` all of the run's.

    `seq` counts a run's messages from 0. `state` is queued, running, done, error or recorded. `note` is "waiting:N"
    (runs before this one) or "waiting:N:S" (and for about how many seconds), "what|done|total" (progress; a total above
    2**20 means bytes), "stopped" or "". `compare`: whether the baseline runs first, so that the panel can say which of
    the two it is.
    """
    about = {"v": VERSION, "run": run_id, "seq": seq, "reset": reset, "state": state, "note": note}
    return {**about, "compare": compare, "ev": encode(events)}


def recorded(events: Sequence[Event], name: str) -> dict[str, Any]:
    """A finished run, shown whole and ready to replay."""
    value = message("", 0, events, "recorded", name, reset=True)
    digest = hashlib.sha256(json.dumps(value["ev"]).encode()).hexdigest()[:12]
    return {**value, "run": f"recorded:{digest}"}

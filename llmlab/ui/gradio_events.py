"""What every handler of the page needs: who asks, in which language, how its event is wired, how a refusal is shown."""

from __future__ import annotations

from collections import OrderedDict
from html import escape
from typing import Any

import gradio as gr

from llmlab.ui.chosen_language import COOKIE
from llmlab.ui.i18n import language

SMALL: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
"""How the page's own short events are wired."""
MOST_STREAMS = 200
"""Runs and studies that may be under way or wait in the engine's queue at once."""
IN_TURN = SMALL | {"concurrency_limit": 1, "concurrency_id": "controls"}
"""As SMALL, for what shows how the controls stand: the answer to the last question must come last."""
STREAM: dict[str, Any] = {
    "show_progress": "hidden",
    "concurrency_limit": MOST_STREAMS,
    "concurrency_id": "engine",
    "api_visibility": "undocumented",
}
"""How a run or a study is wired: it waits in the engine's queue, and programs may call it."""
MOST_REFUSALS = 256
"""Visitors whose last refusal is kept until the page fetches it, which takes it a moment."""


def owner_of(request: gr.Request) -> str:
    """The visitor: one open page in one browser."""
    return str(request.session_hash)


def language_of(request: gr.Request) -> str:
    """What the visitor has chosen on the page, which page.js keeps in a cookie; else what the browser prefers."""
    return language(request.cookies.get(COOKIE) or request.headers.get("accept-language"))


def refusal_html(text: str) -> str:
    return f'<p class="refusal" role="alert">{escape(text)}</p>'


class Refusals:
    """Each visitor's last refusal, for the event after the one that was refused; the newest `most` of them."""

    def __init__(self, most: int = MOST_REFUSALS) -> None:
        self.most = most
        self._texts: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._texts)

    def put(self, owner: str, text: str) -> None:
        self._texts[owner] = text
        self._texts.move_to_end(owner)
        while len(self._texts) > self.most:
            self._texts.popitem(last=False)

    def pop(self, owner: str) -> str | None:
        """The visitor's refusal, once; None where nothing was refused."""
        return self._texts.pop(owner, None)


def write_link(query: gr.Textbox, link: gr.Textbox, script: str) -> dict[str, Any]:
    """The step that hands a query to a function of `page.js`, which writes the whole link into its box."""
    return {"fn": None, "inputs": [query], "outputs": [link], "js": f"(q) => {script}(q)", "show_progress": "hidden"}

"""What every handler of the page needs: who asks, in which language, how its event is wired, how a refusal is shown."""

from __future__ import annotations

from collections import OrderedDict
from html import escape
from threading import Lock
from typing import Any

import gradio as gr

from llmlab.ui.chosen_language import COOKIE
from llmlab.ui.i18n import language

SMALL: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
"""How the page's own short events are wired: each is a request with an answer. Through Gradio's queue all answers of a
visitor come in one stream, and where one is asked for while the stream of those before is being closed, it may be lost;
its event then counts as under way for ever, and the control that it belongs to does nothing any more."""
MOST_STREAMS = 200
"""Runs and studies that may be under way or wait in the engine's queue at once."""
STREAM: dict[str, Any] = {
    "show_progress": "hidden",
    "concurrency_limit": MOST_STREAMS,
    "concurrency_id": "engine",
    "api_visibility": "undocumented",
}
"""How a run or a study is wired: it waits in the engine's queue, and programs may call it."""
MOST_VISITORS = 256
"""Visitors whose last refusal is kept until the page fetches it, and whose last question is known: both take a moment.
"""


def owner_of(request: gr.Request) -> str:
    """The visitor: one open page in one browser."""
    return str(request.session_hash)


def language_of(request: gr.Request) -> str:
    """What the visitor has chosen on the page, which page.js keeps in a cookie; else what the browser prefers."""
    return language(request.cookies.get(COOKIE) or request.headers.get("accept-language"))


def numbered(pause: int = 0) -> str:
    """JavaScript for an event whose last input is a number: the page counts its questions there, in the order in which
    the other values were read, and asks after `pause` ms."""
    count = "(window.llmlabAsked = (window.llmlabAsked ?? 0) + 1)"
    return (
        f"(...values) => {{ const all = [...values.slice(0, -1), {count}];"
        f" return new Promise((ask) => setTimeout(() => ask(all), {pause})); }}"
    )


class Newest:
    """Which of a visitor's numbered questions is the last, for each thing that is asked; of the newest visitors.

    Answers may come in another order than the questions, and the answer to an old one must not be shown.
    """

    def __init__(self, most: int = MOST_VISITORS) -> None:
        self.most = most
        self._numbers: OrderedDict[str, dict[str, int]] = OrderedDict()
        self._lock = Lock()

    def ask(self, owner: str, number: int, *what: str) -> None:
        with self._lock:
            known = self._numbers.setdefault(owner, {})
            known |= {w: max(number, known.get(w, 0)) for w in what}
            self._numbers.move_to_end(owner)
            while len(self._numbers) > self.most:
                self._numbers.popitem(last=False)

    def stands(self, owner: str, number: int, what: str) -> bool:
        """Whether nobody has asked later."""
        with self._lock:
            return self._numbers.get(owner, {}).get(what, 0) <= number


def refusal_html(text: str) -> str:
    return f'<p class="refusal" role="alert">{escape(text)}</p>'


class Refusals:
    """Each visitor's last refusal, for the event after the one that was refused; the newest `most` of them."""

    def __init__(self, most: int = MOST_VISITORS) -> None:
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

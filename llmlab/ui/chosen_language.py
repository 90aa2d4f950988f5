"""The language that a visitor has chosen on the page goes before what the browser prefers, for Gradio's labels too."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "llmlab-language"
"""Written by page.js, read here and in the browser."""
SCRIPT = b"""<script>
  for (const [, chosen] of document.cookie.matchAll(/(?:^|; )llmlab-language=([\\w-]+)/g)) {
    Object.defineProperty(navigator, "language", { get: () => chosen, configurable: true });
    Object.defineProperty(navigator, "languages", { get: () => [chosen], configurable: true });
  }
</script>"""


class ChosenLanguageFirst:
    """ASGI middleware: puts `SCRIPT` at the top of the page.

    Gradio asks `navigator.language` once, as it starts, and runs what it is given as `head` later than that.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: MutableMapping[str, Any] | None = None

        async def add(message: Message) -> None:
            """Holds the beginning back until the page's length is known."""
            nonlocal start
            if message["type"] == "http.response.start" and _is_page(message):
                start = message
                return
            if start is not None:
                body = message.get("body", b"").replace(b"<head>", b"<head>" + SCRIPT, 1)
                grown = len(body) - len(message.get("body", b""))
                start["headers"] = [(k, _longer(k, v, grown)) for k, v in start["headers"]]
                message = {**message, "body": body}
                await send(start)
                start = None
            await send(message)

        await self.app(scope, receive, add if scope["type"] == "http" else send)


def _is_page(message: Message) -> bool:
    return any(k.lower() == b"content-type" and v.startswith(b"text/html") for k, v in message["headers"])


def _longer(name: bytes, value: bytes, grown: int) -> bytes:
    return str(int(value) + grown).encode() if name.lower() == b"content-length" else value

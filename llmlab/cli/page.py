"""The page's own command line: `python app.py [--host 127.0.0.1] [--port 7860] [--no-browser]`."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Callable, Sequence

from llmlab.cli import surroundings
from llmlab.cli.options import OneSentenceParser
from llmlab.cli.output import carried_out
from llmlab.errors import Refused

Launch = Callable[[str, int, bool], None]
"""Serves the page at a host and a port, with a browser window or without."""


def main(launch: Launch, arguments: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C; status 2 and one sentence on standard error where it cannot be served."""
    surroundings.prepare()
    return carried_out(lambda: serve(launch, arguments))


def serve(launch: Launch, arguments: Sequence[str] | None) -> None:
    """Raises Refused for a host, a port or a folder that cannot be used."""
    surroundings.require_folder()
    surroundings.tidy_gradio()
    p = OneSentenceParser(prog="python app.py", description="llmlab: see how efficient LLM inference works.")
    p.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
    p.add_argument("--port", default=os.environ.get("GRADIO_SERVER_PORT", "7860"))
    p.add_argument("--no-browser", action="store_true", help="do not open a browser window")
    a = p.parse_args(arguments)
    port = port_number(a.port)
    require_port(a.host, port)
    require_cache()
    launch(a.host, port, not a.no_browser and not os.environ.get("SPACE_ID"))


def port_number(value: str) -> int:
    """Raises Refused for what is no port."""
    text = value.strip()
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 65535:
        raise Refused(f"The port {value[:40]!r}", "does not exist", "Give --port or GRADIO_SERVER_PORT 1 to 65535")
    return int(text)


def require_port(host: str, port: int) -> None:
    """Raises Refused unless a server can listen there: loading everything first takes many seconds."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            if os.name == "posix":
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except (OSError, UnicodeError) as e:
        if getattr(e, "errno", None) == errno.EADDRINUSE:
            raise Refused(f"The port {port}", "is in use already", "Give another one with --port") from e
        if getattr(e, "errno", None) == errno.EACCES:
            raise Refused(f"The port {port}", "may not be used by this user", "Give one above 1023") from e
        raise Refused(f"The host {host[:80]!r}", "is no address of this machine", "Give 127.0.0.1 or 0.0.0.0") from e


def require_cache() -> None:
    """Raises Refused for a cache folder that a variable names and that cannot be written."""
    from llmlab.models.loading.environment import cache_folder, cache_variable

    name, folder = cache_variable(), cache_folder()
    if name is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise Refused(f"The folder {folder}", f"cannot be written ({e.strerror})", f"Set {name} elsewhere") from e

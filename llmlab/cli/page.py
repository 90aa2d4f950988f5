"""The page's own command line: `python app.py [--host 127.0.0.1] [--port 7860] [--allow-host NAME] [--no-browser]`."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llmlab.cli import surroundings
from llmlab.cli.options import OneSentenceParser
from llmlab.cli.output import carried_out
from llmlab.errors import Refused

FIRST, TRIED = 7860, 100
"""The port that is taken where none is asked for, and how many are tried from it on."""


@dataclass(frozen=True)
class Address:
    """Where to serve: a host, the port that was asked for (None for the next free one), and further names that count
    in requests."""

    host: str
    port: int | None
    names: tuple[str, ...] = ()

    def free_ports(self) -> Iterator[int]:
        """The ports to try in turn. Raises Refused where a server cannot listen there, or after the last."""
        if self.port is not None:
            require_port(self.host, self.port)
            yield self.port
            raise in_use(self.port)
        for port in range(FIRST, FIRST + TRIED):
            try:
                require_port(self.host, port)
            except PortInUse:
                continue
            yield port
        last = FIRST + TRIED - 1
        raise Refused(f"Every port from {FIRST} to {last}", "is in use already", "Give another one with --port")


Launch = Callable[[Address, bool], None]
"""Serves the page at an address, with a browser window or without."""


class PortInUse(Refused):
    """Somebody else listens at the port."""


def in_use(port: int) -> PortInUse:
    return PortInUse(f"The port {port}", "is in use already", "Give another one with --port")


def main(launch: Launch, arguments: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C; status 2 and one sentence on standard error where it cannot be served."""
    surroundings.prepare()
    return carried_out(lambda: serve(launch, arguments))


def serve(launch: Launch, arguments: Sequence[str] | None) -> None:
    """Raises Refused for a host, a port or a folder that cannot be used."""
    surroundings.require_folder()
    surroundings.tidy_gradio()
    # Gradio reads both when it is imported, and looks for a port of its own where they are.
    host, port = (os.environ.pop(f"GRADIO_SERVER_{name}", None) for name in ("NAME", "PORT"))
    p = OneSentenceParser(prog="python app.py", description="llmlab: see how efficient LLM inference works.")
    p.add_argument("--host", default=host or "127.0.0.1", help="where to listen; 0.0.0.0: everywhere")
    p.add_argument("--port", default=port, help=f"(default: the first free one from {FIRST} on)")
    names = "a further name that the page answers to, as behind a proxy; * for any (or LLMLAB_ALLOW_HOST=NAME,NAME)"
    p.add_argument("--allow-host", action="append", default=[], metavar="NAME", help=names)
    p.add_argument("--no-browser", action="store_true", help="do not open a browser window")
    a = p.parse_args(arguments)
    given = [*a.allow_host, *os.environ.get("LLMLAB_ALLOW_HOST", "").split(",")]
    asked = None if a.port is None else port_number(a.port)
    address = Address(a.host.strip("[]"), asked, tuple(n.strip() for n in given if n.strip()))
    next(address.free_ports())  # loading everything first takes many seconds
    require_cache()
    launch(address, not a.no_browser and not os.environ.get("SPACE_ID"))


def port_number(value: str) -> int:
    """Raises Refused for what is no port."""
    text = value.strip()
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 65535:
        raise Refused(f"The port {value[:40]!r}", "does not exist", "Give --port or GRADIO_SERVER_PORT 1 to 65535")
    return int(text)


def require_port(host: str, port: int) -> None:
    """Raises Refused unless a server can listen there, and on loopback, where Gradio looks whether it can."""
    try:
        for name in dict.fromkeys((host, "127.0.0.1")):
            family, kind, _, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as trial:
                if os.name == "posix":
                    trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
    except (OSError, UnicodeError) as e:
        if getattr(e, "errno", None) == errno.EADDRINUSE:
            raise in_use(port) from e
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

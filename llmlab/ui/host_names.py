"""Which names the page answers to: a foreign site whose name is pointed at this machine must not read what is here.

DNS rebinding: a visitor's browser takes `evil.example`, now 127.0.0.1, for the site's own origin, and lets its script
read every answer. The `Host` of such a request still says `evil.example`.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")
WILDCARDS = ("0.0.0.0", "::", "*")


@dataclass(frozen=True)
class HostNames:
    """`names` in lower case, without ports; one that begins with `*.` stands for what ends with the rest of it, and `*`
    for any. `addresses`: whether every IP address counts, as for a page that listens on all of them."""

    names: frozenset[str]
    addresses: bool = False

    @classmethod
    def of(cls, host: str, more: Iterable[str] = (), environment: Mapping[str, str] | None = None) -> HostNames:
        """Those of a page that listens at `host`: loopback's, that one, and `more`; for a wildcard every address and
        this machine's names; and the names that a Space or a GRADIO_ROOT_PATH gives it."""
        environment = environment or {}
        names = {*LOOPBACK, *map(name_of, more)}
        wildcard = name_of(host) in WILDCARDS
        if wildcard:
            own = socket.gethostname().lower()
            names |= {own, f"{own.split('.')[0]}.local", socket.getfqdn().lower()}
        else:
            names.add(name_of(host))
        names |= {name_of(n) for n in environment.get("SPACE_HOST", "").split(",")}
        names.add((urlsplit(environment.get("GRADIO_ROOT_PATH", "")).hostname or "").lower())
        return cls(frozenset(names - {""}), wildcard)

    def count(self, host: str) -> bool:
        """Whether a `Host` header's value, with a port or without, is one of these names."""
        name = name_of(host)
        if "*" in self.names or name in self.names:
            return True
        if any(n.startswith("*.") and name.endswith(n[1:]) for n in self.names):
            return True
        return self.addresses and _is_address(name)

    def told(self) -> str:
        """The names in one sentence; empty for loopback alone, which goes without saying."""
        others = sorted(self.names - set(LOOPBACK))
        if not others and not self.addresses:
            return ""
        named = ["every IP address"] if self.addresses else []
        return f"It answers to {', '.join(['localhost', *named, *others])}; more names with --allow-host NAME."


def name_of(host: str) -> str:
    """A host in lower case without port, brackets and final dot: `[::1]:7860` → `::1`."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    if host.count(":") == 1:
        host = host.partition(":")[0]
    return host.rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


class OwnNamesOnly:
    """ASGI middleware: 400 for a `Host` that is none of the page's names, 403 for a change that another site's page
    asks for (its `Origin`), which a browser sends without asking where the request is a simple one."""

    def __init__(self, app: Any, names: HostNames) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refused = self._refused(scope)
        if refused is None:
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        status, text = refused
        body = text.encode("utf-8", "replace")
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refused(self, scope: Mapping[str, Any]) -> tuple[int, str] | None:
        hosts, origins = _header(scope, b"host"), _header(scope, b"origin")
        if len(hosts) != 1 or not self.names.count(hosts[0]):
            name = name_of(hosts[0])[:80] if hosts else "nobody"
            return 400, f"This page does not answer to the name {name!r}; start it with --allow-host if it should.\n"
        changes = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if changes and not all(self.names.count(urlsplit(o).netloc) for o in origins):
            return 403, f"This page takes nothing from {origins[0][:80]!r}; start it with --allow-host if it should.\n"
        return None


def _header(scope: Mapping[str, Any], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]

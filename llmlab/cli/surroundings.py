"""The process as it may be started: streams closed or in another encoding, no home folder, odd variables.

Everything here happens before PyTorch or Gradio is imported, because they read the environment once.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmlab.cli import interruption
from llmlab.errors import Refused

STREAMS = {"stdin": (0, "r"), "stdout": (1, "w"), "stderr": (2, "w")}
LOOPBACK = ("localhost", "127.0.0.1", "::1")
MOST_THREADS = 1024
"""More than any processor has: OpenMP would try to start them, and the process would end."""
NUMBERS = (
    "GRADIO_NUM_PORTS",
    "GRADIO_NUM_WORKERS",
    "GRADIO_DEBUG",
    "GRADIO_NODE_NUM_PORTS",
    "GRADIO_NODE_SERVER_PORT",
    "GRADIO_ANALYTICS_MAX_EVENTS",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY",
)
"""Variables that Gradio reads as whole numbers, in the middle of being imported."""


def prepare() -> None:
    """Make the process fit to run in. Raises nothing for what can be put right."""
    _open_streams()
    interruption.watch()
    _find_home()
    _drop_odd_threads()
    _reach_loopback()


def require_folder() -> None:
    """Raises Refused where the folder in which the process stands has been removed: PyTorch does not load there."""
    try:
        os.getcwd()
    except OSError as e:
        raise Refused("The folder in which this was started", "is gone", "Start it in another one") from e


def standard_output_is_closed() -> bool:
    """Whether the process was started without a standard output."""
    return getattr(sys.stdout, "name", None) == os.devnull


def _open_streams() -> None:
    """Give every closed stream the null device, so that no file opened later gets its number and what is printed goes
    into it; write letters that a stream's encoding lacks as escapes."""
    for name, (number, mode) in STREAMS.items():
        stream = getattr(sys, name)
        if stream is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            nowhere = open(os.devnull, mode, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
            setattr(sys, name, nowhere)
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _find_home() -> None:
    """Name a home folder where there is none, as for an unknown user in a container: libraries would put theirs into
    a folder called ~ where the process happens to stand, or end."""
    try:
        Path.home()
    except RuntimeError:
        from llmlab.models.loading.environment import temporary_home

        os.environ["HOME"] = str(temporary_home())
        os.environ.setdefault("USER", str(os.getuid()) if hasattr(os, "getuid") else "user")


def _drop_odd_threads() -> None:
    value = os.environ.get("OMP_NUM_THREADS")
    if value is None:
        return
    counts = value.split(",")
    if not all(re.fullmatch(r"\s*\d{1,9}\s*", c) and 1 <= int(c) <= MOST_THREADS for c in counts):
        del os.environ["OMP_NUM_THREADS"]


def _reach_loopback() -> None:
    """Let no proxy stand between this process and this machine; whatever else goes through one still does."""
    given = [os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    names = list(dict.fromkeys(n for value in given for part in value.split(",") if (n := part.strip())))
    if "*" not in names:
        value = ",".join([*names, *(n for n in LOOPBACK if n not in names)])
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = value


@contextmanager
def without_proxies() -> Iterator[None]:
    """No proxy at all: a client that is only to ask this machine fails on one that it cannot use, such as SOCKS."""
    before = {n: os.environ[n] for n in list(os.environ) if n.lower().endswith("_proxy")}
    for name in before:
        del os.environ[name]
    os.environ["no_proxy"] = "*"
    try:
        yield
    finally:
        del os.environ["no_proxy"]
        os.environ.update(before)


def tidy_gradio() -> None:
    """Drop Gradio's variables that are set to nothing. Raises Refused for one that is no number where it must be."""
    for name in [n for n in os.environ if n.startswith("GRADIO_")]:
        os.environ[name] = os.environ[name].strip()
        if not os.environ[name]:
            del os.environ[name]
    for name in NUMBERS:
        value = os.environ.get(name, "0")
        if not re.fullmatch(r"\d{1,9}", value):
            raise Refused(f"The variable {name}", f"is {value[:40]!r}, which is no whole number", "Change or unset it")
    root = os.environ.get("GRADIO_ROOT_PATH", "")
    if not re.fullmatch(r"(https?:/)?(/[\w.~%:@+-]+)*/?", root):
        why = f"is {root[:80]!r}, which is neither a path that begins with / nor a whole address"
        raise Refused("The variable GRADIO_ROOT_PATH", why, "Change or unset it")

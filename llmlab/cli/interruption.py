"""Ctrl-C and SIGTERM: the first ends a command with one line and keeps what it has computed; the second ends it at
once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
AGAIN = 0.2
"""Seconds after which an interruption that may have been lost is raised once more."""


class _State:
    """Of the process: which signal has come, how many blocks make it wait, and what was written after it came."""

    received = 0
    holds = 0
    kept: list[str] = []


def leave_early() -> None:
    """Until `watch` is called, a signal ends the process with its one line: nothing is lost yet."""
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _left)


def _left(number: int, frame: FrameType | None) -> None:
    _State.received = number
    with contextlib.suppress(OSError):
        os.write(2, f"{sentence()}\n".encode())
    os._exit(status())


def watch() -> None:
    """From here on a signal raises KeyboardInterrupt in the main thread, and is remembered, because a library that is
    being imported may turn it into an error of its own. A signal that was ignored before stays so."""
    if threading.current_thread() is not threading.main_thread():
        return
    _State.received, _State.holds, _State.kept = 0, 0, []
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL, _left):
            signal.signal(number, _arrived)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, _once_more)


def _arrived(number: int, frame: FrameType | None) -> None:
    if _State.received:
        os._exit(128 + number)
    _State.received = number
    # A destructor or a callback from C cannot raise: Python would print the interruption as an error it ignores.
    sys.unraisablehook = _lost
    _raise(frame)


def _raise(frame: FrameType | None) -> None:
    """Raise the interruption, and once more soon where it could be lost: what is imported may catch anything."""
    if _State.holds:
        return
    if _importing(frame):
        _again()
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _lost(unraisable: Any) -> None:
    if isinstance(unraisable.exc_value, KeyboardInterrupt):  # raised by us, so in the main thread
        _again()


def _again(seconds: float = AGAIN) -> None:
    """Raise it once more after so long; 0: no more."""
    if hasattr(signal, "setitimer"):  # Windows has none
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _once_more(number: int, frame: FrameType | None) -> None:
    if isinstance(sys.exc_info()[1], KeyboardInterrupt):
        _again()  # it was not lost: what has caught it keeps what there is, and may take its time
    else:
        _raise(frame)


def interrupted() -> bool:
    """Whether a signal has come. Whoever asks has not lost it: it is raised no more."""
    if _State.received:
        _again(0)
    return _State.received != 0


def status() -> int:
    """The exit status of an interrupted command: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (_State.received or signal.SIGINT)


def sentence() -> str:
    """What an interrupted command says."""
    name = SIGNALS.get(signal.Signals(_State.received or signal.SIGINT), "a signal")
    kept = f" What was computed until then is in {', '.join(_State.kept)}." if _State.kept else ""
    return f"Stopped by {name}.{kept}"


def wait() -> NoReturn:
    """Do nothing until a signal comes. Raises KeyboardInterrupt then."""
    while not interrupted():
        time.sleep(3600)
    raise KeyboardInterrupt


def leave(status: int) -> NoReturn:
    """End the process. An interrupted one ends here: Python would end by SIGINT once more where the first came while it
    carried out a text of code, as it does for every dataclass, and threads of libraries would be waited for."""
    if interrupted():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    sys.exit(status)


def keep(where: str) -> None:
    """Say that something was written; what an interrupted command has written, it names at its end."""
    if interrupted():
        _State.kept.append(where)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A signal waits until the block is through, which writes what was computed. A second one ends the process.

    Raises KeyboardInterrupt at the end of the block where a signal came, before it or within.
    """
    _State.holds += 1
    try:
        yield
    finally:
        _State.holds -= 1
    if interrupted() and not _State.holds:
        raise KeyboardInterrupt

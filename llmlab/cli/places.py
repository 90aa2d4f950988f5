"""Where results go: looked at before a run, written whole after it, and never lost."""

from __future__ import annotations

import argparse
import os
import stat
import sys
import tempfile
from pathlib import Path

from llmlab.cli import interruption
from llmlab.cli.surroundings import standard_output_is_closed
from llmlab.errors import Refused
from llmlab.models.loading.whole import whole_file

ROOM = 1 << 18
"""Bytes that must fit where a result is to go: a record takes some kilobytes, a trace a few hundred."""


def require_places(a: argparse.Namespace) -> None:
    """Raises Refused for a place among the command's `places` to which its result could not be written."""
    places = {f"--{option}": getattr(a, option) for option in getattr(a, "places", ())}
    given = {option: where for option, where in places.items() if where is not None}
    for option, where in given.items():
        if where == "-":
            if option != "--json":
                raise Refused(f"Only --json goes to standard output; {option}", "needs a file", "Name one")
            if standard_output_is_closed():
                raise Refused("Standard output", "is closed, so the result has nowhere to go", f"Give {option} a file")
        elif not where:
            raise Refused(f"The name given to {option}", "is empty", "Name a file")
        else:
            require_writable(where)
    files = [os.path.realpath(where) for where in given.values() if where != "-"]
    if len(set(files)) < len(files):
        raise Refused(" and ".join(given), "name the same file", "Give each its own")


def require_writable(where: str | Path) -> None:
    """Raises Refused unless a file can be written at `where`."""
    path = Path(where)
    try:
        if path.is_dir():
            raise Refused(f"The file {where}", "cannot be written (it is a folder)", "Name a file")
        if _special(path):
            _try_special(path)
            return
        folder = Path(os.path.realpath(path)).parent
        if not folder.is_dir():
            raise Refused(f"The file {where}", f"cannot be written (there is no folder {folder})", "Make it first")
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(0, "it is write-protected")
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(bytes(ROOM))
            trial.flush()
    except (OSError, ValueError) as e:
        if isinstance(e, Refused):
            raise
        raise unwritable(where, e) from e


def unwritable(where: str | Path, e: Exception) -> Refused:
    why = getattr(e, "strerror", None) or str(e) or type(e).__name__
    return Refused(f"The file {where}", f"cannot be written ({why})", "Give another path")


def _special(path: Path) -> bool:
    """Whether it is a device or a pipe, which is written to as it is."""
    return str(path).startswith(("/dev/", "/proc/")) or (path.exists() and not path.is_file())


def _try_special(path: Path) -> None:
    """Raises OSError for a device that takes nothing, such as /dev/full."""
    if stat.S_ISCHR(path.stat().st_mode):
        handle = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
        try:
            os.write(handle, b"")
        finally:
            os.close(handle)


def save(where: str, text: str) -> None:
    """Write a result, all of it or nothing.

    Raises Refused for a place that cannot be written; the result lies in a temporary file then, which is named, or has
    gone to standard output where there is no room for one.
    """
    data = text.encode("utf-8", "backslashreplace")  # in JSON an escape stands for what is no letter, too
    try:
        with interruption.held():
            _write(Path(where), data)
            interruption.keep(where)
    except (OSError, ValueError) as e:
        kept = _rescued(data, Path(where).suffix)
        why = getattr(e, "strerror", None) or type(e).__name__
        place = f"in {kept}" if kept else "on standard output" if _printed(text) else "lost: nothing takes it"
        raise Refused(f"The file {where}", f"cannot be written ({why})", f"The result is {place}") from e


def _write(path: Path, data: bytes) -> None:
    if _special(path):
        path.write_bytes(data)
        return
    with whole_file(Path(os.path.realpath(path))) as part:
        part.write_bytes(data)


def _printed(text: str) -> bool:
    """Whether standard output has taken a text."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except (OSError, ValueError):
        return False
    return not standard_output_is_closed()


def require_folder(where: str | Path) -> None:
    """Raises Refused unless files can be written in the folder `where`, which is made."""
    folder = Path(where)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as e:
        why = getattr(e, "strerror", None) or str(e)
        raise Refused(f"The folder {where}", f"cannot be written ({why})", "Give another path") from e


def _rescued(data: bytes, suffix: str) -> str | None:
    """A temporary file with the result; None where there is no room for that either."""
    try:
        with tempfile.NamedTemporaryFile(prefix="llmlab-", suffix=suffix, delete=False) as file:
            file.write(data)
            return file.name
    except (OSError, ValueError):
        return None

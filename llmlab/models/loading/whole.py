"""Files and folders that are written whole or not at all.

What is made goes to a new name beside its place and is renamed when it is complete and on the disk, so a full disk, a
kill or Ctrl-C midway leaves nothing that a later start takes for whole. The rename is atomic on one file system
(POSIX rename); only a folder that replaces another has a moment at which neither is there.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OLD = 2 * 24 * 3600
"""Seconds after which nobody can still be writing."""


def _on_disk(path: Path) -> None:
    """Flush a file to the disk: a rename that outlives its contents would show an empty file after a crash."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(path: Path) -> tempfile.TemporaryDirectory[str]:
    """A new folder beside `path`; those that a kill has left there days ago go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name[:40]}-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > OLD:
                shutil.rmtree(left)
    return tempfile.TemporaryDirectory(prefix=prefix, dir=path.parent, ignore_cleanup_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, in the folder of `path`, which takes the place of `path` when the block ends well.

    Whatever the block raises, also KeyboardInterrupt, leaves `path` as it was. Raises OSError where the folder cannot
    be made or the disk is full. A file that was there before hands on its mode.
    """
    with _beside(path) as made:
        part = Path(made) / path.name
        yield part
        if path.exists():
            part.chmod(stat.S_IMODE(path.stat().st_mode))
        _on_disk(part)
        os.replace(part, path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, beside `path`, which takes the place of `path` when the block ends well.

    As for `whole_file`. A folder that is there already goes only once the new one is complete.
    """
    with _beside(path) as made:
        part, gone = Path(made) / "new", Path(made) / "old"
        part.mkdir()
        yield part
        for file in sorted(part.rglob("*")):
            if file.is_file():
                _on_disk(file)
        if path.exists():
            os.replace(path, gone)
        try:
            os.replace(part, path)
        except OSError:  # another process was faster: its folder is as whole as ours
            if not path.exists():
                if gone.exists():
                    os.replace(gone, path)
                raise

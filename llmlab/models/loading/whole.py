"""Files and folders that are written whole or not at all.

What is made goes to a new name beside its place and is renamed when it is complete and on the disk, so a full disk, a
kill or Ctrl-C midway leaves nothing that a later start takes for whole. The rename is atomic on one file system
(POSIX rename); only a folder that replaces another has a moment at which neither is there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _on_disk(path: Path) -> None:
    """Flush a file to the disk: a rename that outlives its contents would show an empty file after a crash."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, in the folder of `path`, which takes the place of `path` when the block ends well.

    Whatever the block raises, also KeyboardInterrupt, leaves `path` as it was. Raises OSError where the folder cannot
    be made or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name[:40]}-", dir=path.parent, ignore_cleanup_errors=True) as made:
        part = Path(made) / path.name
        yield part
        _on_disk(part)
        os.replace(part, path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, beside `path`, which takes the place of `path` when the block ends well.

    As for `whole_file`. A folder that is there already goes only once the new one is complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name[:40]}-", dir=path.parent, ignore_cleanup_errors=True) as made:
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

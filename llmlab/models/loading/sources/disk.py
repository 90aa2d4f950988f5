"""Refusals for a disk that is too small, before a download and while one runs."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from llmlab.errors import Refused
from llmlab.models.loading.fit import size_text


def require_disk(nbytes: int, at: Path, who: str) -> None:
    """Raise Refused unless `nbytes` and a margin of 2 % and 50 MB are free where `at` lies or will lie."""
    while not at.exists():
        at = at.parent
    free = shutil.disk_usage(at).free
    if nbytes * 1.02 + 50e6 > free:
        raise Refused(
            who,
            f"needs {size_text(nbytes)} on the disk, where {size_text(free)} is free",
            "Free some space, or set LLMLAB_CACHE or HF_HOME elsewhere",
        )


def refuse_full_disk(e: OSError, what: str) -> None:
    """Raise Refused where the error says that the disk or the quota is full; return for any other."""
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        raise Refused(
            what, "stopped because the disk is full", "Free some space, or set LLMLAB_CACHE or HF_HOME elsewhere"
        ) from e

"""Files that visitors download: written to a folder of their own each time, the oldest folders let go."""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path

KEPT = 32
"""Folders that are kept; Gradio has copies of their files by the time they go."""


class Exports:
    """A temporary place that is gone with the process."""

    def __init__(self) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="llmlab-")
        self._folders: deque[Path] = deque()

    def write(self, texts: Mapping[str, str]) -> list[str]:
        """Write each text under its name into a new folder; the files' paths, in order."""
        folder = Path(tempfile.mkdtemp(dir=self._place.name))
        self._folders.append(folder)
        if len(self._folders) > KEPT:
            shutil.rmtree(self._folders.popleft(), ignore_errors=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        return [str(folder / name) for name in texts]

    def close(self) -> None:
        self._place.cleanup()

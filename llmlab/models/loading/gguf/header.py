"""The metadata of a GGUF file, arrays included, read in one pass without its tensors.

The format is llama.cpp's (docs/gguf.md of ggml-org/ggml). The gguf package reads the same, but makes an array of numpy
views per string, which takes seconds for a vocabulary; this takes a tenth of one.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
DEEPEST = 4
"""Arrays within arrays that are followed; no known file has any."""


class _Cursor:
    """A place in the file's bytes. Raises struct.error or ValueError past their end."""

    def __init__(self, held: mmap.mmap) -> None:
        self.held, self.at, self.order = held, 4, "<"

    def take(self, code: str, count: int = 1) -> tuple[Any, ...]:
        size = struct.calcsize(f"{self.order}{count}{code}")
        if self.at + size > len(self.held):
            raise ValueError("the metadata reaches beyond the end of the file")
        self.at += size
        return struct.unpack_from(f"{self.order}{count}{code}", self.held, self.at - size)

    def string(self) -> str:
        (size,) = self.take("Q")
        if self.at + size > len(self.held):
            raise ValueError("a string reaches beyond the end of the file")
        self.at += size
        # Some converters wrote tokens that are no UTF-8; such a token can still be named by its number.
        return self.held[self.at - size : self.at].decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.string()
        if kind in SCALARS:
            return self.take(SCALARS[kind])[0]
        if kind != ARRAY or depth > DEEPEST:
            raise ValueError(f"a value is of the unknown kind {kind}")
        inner, count = self.take("I")[0], self.take("Q")[0]
        if count > len(self.held):
            raise ValueError("an array reaches beyond the end of the file")
        if inner in SCALARS:
            return list(self.take(SCALARS[inner], count))
        one: Callable[[], Any] = self.string if inner == STRING else lambda: self.value(inner, depth + 1)
        return [one() for _ in range(count)]


def read_metadata(path: Path) -> dict[str, Any]:
    """Keys to numbers, truth values, texts and lists. Raises OSError, ValueError or struct.error for damaged files."""
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as held:
        if held[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        cursor = _Cursor(held)
        if struct.unpack("<I", held[4:8])[0] & 0xFFFF == 0:  # written by a machine of the other byte order
            cursor.order = ">"
        (version,) = cursor.take("I")
        if version < 2:
            raise ValueError(f"GGUF version {version} is too old")
        _, count = cursor.take("Q", 2)
        found = {}
        for _ in range(count):
            key = cursor.string()
            found[key] = cursor.value(cursor.take("I")[0])
        return found

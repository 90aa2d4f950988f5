"""GGUF files in several parts, named NAME-00001-of-00003.gguf by llama.cpp's gguf-split, and folders of GGUF files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from llmlab.errors import Refused

PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
BESIDE = ("mmproj*", "*imatrix*", "*.mmproj-*")
"""GGUF files that accompany a model."""


def parts_of(path: Path) -> tuple[Path, ...]:
    """All parts of the GGUF file at `path`, in order, whichever of them it names; itself where it is whole.

    Raises Refused where one is missing.
    """
    named = PART.fullmatch(path.name)
    if named is None:
        return (path,)
    count = int(named["count"])
    if count < 2 or not 1 <= int(named["number"]) <= count:
        return (path,)
    suffix = path.name[-len(".gguf") :]
    parts = tuple(path.with_name(f"{named['stem']}-{i:05}-of-{count:05}{suffix}") for i in range(1, count + 1))
    for part in parts:
        if not part.is_file():
            raise Refused(
                f"The part {part.name}",
                f"is missing beside {path.name}, which is one of {count} parts of a model",
                "Put all its parts into one folder",
            )
    return parts


def models_among(names: Iterable[str]) -> list[str]:
    """The models among the names of files: what to open each GGUF by; a split one counts once."""
    found: dict[str, str] = {}
    for name in sorted(n for n in names if n.lower().endswith(".gguf")):
        if any(fnmatch(name.lower(), p) for p in BESIDE):
            continue
        split = PART.fullmatch(name)
        found.setdefault(f"{split['stem']}-of-{split['count']}" if split else name, name)
    return list(found.values())


def gguf_in(folder: Path) -> Path | None:
    """The one GGUF model that a folder holds; None where there is none. Raises Refused where there are several."""
    models = models_among(f.name for f in folder.iterdir() if f.is_file())
    if len(models) > 1:
        listed = ", ".join(models[:6]) + (f" and {len(models) - 6} more" if len(models) > 6 else "")
        raise Refused(
            f"The folder {folder.name}",
            f"holds several GGUF models ({listed})",
            f"Give the path of one, such as {folder / models[0]}",
        )
    return folder / models[0] if models else None

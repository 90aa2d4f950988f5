"""What a found model's files hold: its config and its weights."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from llmlab.models.loading.checkpoint import Checkpoint, Folder
from llmlab.models.loading.gguf.file import GgufFile
from llmlab.models.loading.gguf.split import parts_of
from llmlab.models.loading.sources.files import Stamp, counting, stamp
from llmlab.models.loading.sources.folder import config_of
from llmlab.models.loading.sources.found import Found


@lru_cache(maxsize=2)  # finding and loading read the same header; the tensors stay in the file, mapped, not copied
def _parsed(paths: tuple[Path, ...], when: Stamp) -> GgufFile:
    return GgufFile(paths[0])


def read_gguf(path: Path) -> GgufFile:
    """A GGUF file's header, with those of its other parts. Raises Refused for what cannot be read or is no GGUF."""
    parts = parts_of(path)
    return _parsed(parts, stamp(parts))


def read_config(found: Found) -> Any:
    """The transformers config of a model found here or on the Hub; for a mirror, once it is fetched."""
    assert found.path is not None
    if found.kind == "gguf":
        return read_gguf(found.path).config
    return config_of(found.path, found.name)


def folder_of(found: Found) -> Folder:
    """The fetched model's folder of safetensors, opened. Raises Refused for damaged files."""
    assert found.path is not None
    where = f"folder {found.name}"
    if found.entry:
        where = f"Hugging Face Hub, {found.entry.repo}"
    elif found.repo:
        where = f"Hugging Face Hub, {found.repo}" + (f" at {found.revision}" if found.revision != "main" else "")
    return Folder(found.path, read_config(found), where)


def checkpoint(found: Found) -> Checkpoint:
    """The fetched model's weights, tensor by tensor. Raises Refused for damaged files."""
    assert found.path is not None
    return read_gguf(found.path) if found.kind == "gguf" else folder_of(found)


def held_files(source: Checkpoint) -> tuple[Path, ...]:
    """The files that an opened model's weights are read from."""
    if isinstance(source, Folder):
        return tuple(source.path / name for name in (source.weights.entry, *source.weights.files))
    return source.parts if isinstance(source, GgufFile) else ()


def stamp_of(path: Path, held: tuple[Path, ...]) -> Stamp:
    """Changes when the model at `path`, whose weights lie in the files `held`, is saved anew. Only looks at files."""
    if path.is_dir():
        return stamp(counting(path, [str(f.relative_to(path)) for f in held]))
    return stamp(held)

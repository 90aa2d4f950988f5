"""What a found model's files hold: its config and its weights."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from llmlab.errors import Refused
from llmlab.models.loading.checkpoint import Checkpoint, Folder
from llmlab.models.loading.folder import config_of
from llmlab.models.loading.found import Found
from llmlab.models.loading.gguf import GgufFile


@lru_cache(maxsize=2)  # finding and loading read the same header; the tensors stay in the file, mapped, not copied
def _parsed(path: Path, modified: int) -> GgufFile:
    return GgufFile(path)


def read_gguf(path: Path) -> GgufFile:
    """A GGUF file's header. Raises Refused for a file that cannot be read or is not one."""
    try:
        return _parsed(path, path.stat().st_mtime_ns)
    except OSError as e:
        raise Refused(f"The file {path.name}", f"cannot be read ({type(e).__name__})", "Check the path") from e


def read_config(found: Found) -> Any:
    """The transformers config of a model found here or on the Hub; for a mirror, once it is fetched."""
    assert found.path is not None
    if found.kind == "gguf":
        return read_gguf(found.path).config
    return config_of(found.path, found.name)


def checkpoint(found: Found) -> Checkpoint:
    """The fetched model's weights, tensor by tensor. Raises Refused for damaged files."""
    assert found.path is not None
    if found.kind == "gguf":
        return read_gguf(found.path)
    where = f"Hugging Face Hub, {found.entry.repo}" if found.entry else f"folder {found.name}"
    return Folder(found.path, read_config(found), where)

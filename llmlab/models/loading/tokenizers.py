"""The tokenizer of a fetched model, from its folder or out of its GGUF file."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from llmlab.errors import Refused
from llmlab.models.loading.environment import cache_folder
from llmlab.models.loading.found import Found


def read_tokenizer(found: Found) -> Any:
    """The fetched model's tokenizer. Raises Refused where it has none that transformers can read."""
    from transformers import AutoTokenizer

    assert found.path is not None
    try:
        if found.kind == "gguf":
            return _gguf_tokenizer(found.path)
        return AutoTokenizer.from_pretrained(str(found.path), local_files_only=True, trust_remote_code=False)
    except Exception as e:  # missing, damaged and unknown tokenizers fail in many ways
        raise Refused(found.name, "has no tokenizer that can be read", "Fetch the model again or choose another") from e


def _gguf_tokenizer(file: Path) -> Any:
    """A GGUF file's tokenizer. Making one from the file takes seconds, so the result is kept in the cache."""
    import transformers

    stat = file.stat()
    key = repr((str(file.resolve()), stat.st_size, stat.st_mtime_ns, transformers.__version__))
    kept = cache_folder() / "tokenizers" / hashlib.sha256(key.encode()).hexdigest()[:32]
    always = {"local_files_only": True, "trust_remote_code": False}
    if (kept / "tokenizer.json").exists():
        with contextlib.suppress(Exception):  # whatever is wrong with it, the file itself is still here
            return transformers.AutoTokenizer.from_pretrained(str(kept), **always)
    made = transformers.AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, **always)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the run
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            made.save_pretrained(scratch)
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(scratch, kept)
    return made

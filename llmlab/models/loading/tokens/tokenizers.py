"""The tokenizer of a fetched model, from its folder or out of its GGUF file."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from llmlab.errors import Refused
from llmlab.models.loading.environment import cache_folder
from llmlab.models.loading.gguf import pre_tokenizers
from llmlab.models.loading.gguf import tokenizer as gguf_tokenizer
from llmlab.models.loading.sources.found import Found
from llmlab.models.loading.whole import whole_folder

ALWAYS: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def read_tokenizer(found: Found) -> Any:
    """The fetched model's tokenizer. Raises Refused where it has none that can be read, or one of an unknown kind."""
    assert found.path is not None
    try:
        return _kept(found.path) if found.kind == "gguf" else _of_folder(found.path)
    except Refused:
        raise
    except Exception as e:  # missing, damaged and unknown tokenizers fail in many ways
        raise Refused(found.name, "has no tokenizer that can be read", "Fetch the model again or choose another") from e


def _of_folder(folder: Path) -> Any:
    """As transformers reads it, except that its tokenizer.json is taken at its word.

    transformers' classes for single families (LlamaTokenizer, Qwen2Tokenizer, …) take only the vocabulary from that
    file and cut text by rules of their own: a Llama whose file marks every leading space loses one.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    file = folder / "tokenizer.json"
    try:
        found = AutoTokenizer.from_pretrained(str(folder), **ALWAYS)
    except Exception:  # a class that needs a package or code of its own; the file itself may do
        if not file.exists():
            raise
        found = PreTrainedTokenizerFast.from_pretrained(str(folder), **ALWAYS)
    if file.exists() and "__init__" in type(found).__dict__ and hasattr(found, "_tokenizer"):
        own = Tokenizer.from_file(str(file))
        if _rules(own) != _rules(found.backend_tokenizer):
            named = {str(k): v for k, v in found.special_tokens_map.items() if isinstance(v, str)}
            template = found.chat_template
            found = PreTrainedTokenizerFast.from_pretrained(str(folder), **{**named, **ALWAYS})
            found.chat_template = found.chat_template or template
    beside = folder / "chat_template.json"
    if not found.chat_template and beside.exists():
        found.chat_template = json.loads(beside.read_text(encoding="utf-8")).get("chat_template")
    return found


def _rules(tokenizer: Any) -> list[Any]:
    """How a tokenizer cuts and joins text, its vocabulary left out."""
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder)
    flags = ("byte_fallback", "ignore_merges", "continuing_subword_prefix")
    model = [type(tokenizer.model).__name__, *(getattr(tokenizer.model, n, None) for n in flags)]
    return [*model, *(None if p is None else json.loads(p.__getstate__()) for p in parts)]


def _kept(file: Path) -> Any:
    """A GGUF file's tokenizer. Making one from the file takes time, so the result is kept in the cache."""
    from transformers import PreTrainedTokenizerFast

    kept = cache_folder() / "tokenizers" / _key(file)
    if (kept / "tokenizer.json").exists():
        with contextlib.suppress(Exception):  # whatever is wrong with it, the file itself is still here
            return PreTrainedTokenizerFast.from_pretrained(str(kept), **ALWAYS)
    made = gguf_tokenizer.gguf_tokenizer(file)
    with contextlib.suppress(Exception), whole_folder(kept) as folder:  # a full cache costs time, not the run
        made.save_pretrained(str(folder))
    return made


def _key(file: Path) -> str:
    """Of the file as it is, of the library that wrote it, and of our own rules: what other rules made is not used."""
    import transformers

    stat = file.stat()
    rules = [Path(str(m.__file__)).read_bytes() for m in (gguf_tokenizer, pre_tokenizers)]
    made_by = hashlib.sha256(b"".join(rules)).hexdigest()
    key = repr((str(file.resolve()), stat.st_size, stat.st_mtime_ns, transformers.__version__, made_by))
    return hashlib.sha256(key.encode()).hexdigest()[:32]

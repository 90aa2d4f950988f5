"""The tokens at which an answer ends, from every place that names some."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmlab.errors import Refused
from llmlab.models.loading.sources.found import Found
from llmlab.models.loading.tokens.chat import turn_end
from llmlab.models.loading.tokens.end_texts import ENDS, FILLING_ENDS, NOT_BESIDE


def stop_tokens(tokenizer: Any, config: Any, found: Found | None = None) -> frozenset[int]:
    """The ids at which an answer ends: those of the config, of generation_config.json or the GGUF file, the
    one that closes a turn of the chat template, and those whose text is known for it.

    A tokenizer's own end is none of them: transformers does not heed it either, and base models write across it.
    Raises Refused for a generation_config.json that cannot be read.
    """
    ids: set[int] = set(_ids(getattr(config, "eos_token_id", None)))
    ids |= set(_ids(turn_end(tokenizer)))
    gguf = found is not None and found.kind == "gguf"
    if gguf:
        ids |= set(_ids(tokenizer.init_kwargs.get("end_token_ids")))
    elif found is not None and found.path is not None:
        ids |= set(_generation_ends(found.path, found.name))
    vocab = tokenizer.get_vocab()
    known = {n for n in (ENDS + FILLING_ENDS if gguf else ENDS) if n in vocab}
    known -= {n for n, beside in NOT_BESIDE if any(others <= vocab.keys() for others in beside)}
    return frozenset(ids | {int(vocab[n]) for n in known})


def _generation_ends(folder: Path, who: str) -> Iterable[int]:
    file = folder / "generation_config.json"
    if not file.exists():
        return ()
    try:
        return tuple(_ids(json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")))
    except (OSError, ValueError, AttributeError, RecursionError) as e:
        raise Refused(who, "has a generation_config.json that cannot be read", "Fetch the model again") from e


def _ids(value: Any) -> Iterable[int]:
    values = value if isinstance(value, list | tuple) else [value]
    return (v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0)

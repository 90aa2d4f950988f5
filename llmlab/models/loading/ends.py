"""The tokens at which an answer ends, from every place that names some."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmlab.errors import Refused
from llmlab.models.loading.chat import turn_end
from llmlab.models.loading.found import Found
from llmlab.models.loading.gguf_tokenizer import GgufVocab

KNOWN: tuple[str, ...] = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
)
"""Texts of tokens that llama.cpp takes for an end wherever they are in a vocabulary (src/llama-vocab.cpp)."""
FILLING: tuple[str, ...] = ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]")
FILLING += ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>")
"""And those of models that fill in code, which GGUF files do not always name."""
NOT_BESIDE = (
    ("<|end|>", ({"<|return|>", "<|call|>"}, {"<|call|>", "<|flush|>"}, {"<|calls|>", "<|flush|>"})),
    ("</s>", ({"<|tool_response>"}, {"<|plamo:eos|>"})),
)
"""A text that is no end where all tokens of one of the sets are there too: it ends a part of an answer, or nothing."""


def stop_tokens(tokenizer: Any, config: Any, found: Found | None = None) -> frozenset[int]:
    """The ids at which an answer ends: those of the config, of generation_config.json or the GGUF file, of the
    tokenizer, the one that closes a turn of the chat template, and those whose text is known for it.

    Raises Refused for a generation_config.json that cannot be read.
    """
    ids: set[int] = set(_ids(getattr(config, "eos_token_id", None))) | set(_ids(tokenizer.eos_token_id))
    ids |= set(_ids(turn_end(tokenizer)))
    names = KNOWN
    if found is not None and found.path is not None:
        if found.kind == "gguf":
            vocab = GgufVocab(found.path)
            ids |= {i for n in ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep") for i in _ids(vocab.special(n))}
            names += FILLING
        else:
            ids |= set(_generation_ends(found.path, found.name))
    vocab_ids = tokenizer.get_vocab()
    known = {n for n in names if n in vocab_ids}
    everything = vocab_ids.keys()
    known -= {n for n, beside in NOT_BESIDE if any(others <= everything for others in beside)}
    return frozenset(ids | {int(vocab_ids[n]) for n in known})


def _generation_ends(folder: Path, who: str) -> Iterable[int]:
    file = folder / "generation_config.json"
    if not file.exists():
        return ()
    try:
        return tuple(_ids(json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")))
    except (OSError, ValueError, AttributeError) as e:
        raise Refused(who, "has a generation_config.json that cannot be read", "Fetch the model again") from e


def _ids(value: Any) -> Iterable[int]:
    values = value if isinstance(value, list | tuple) else [value]
    return (v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0)

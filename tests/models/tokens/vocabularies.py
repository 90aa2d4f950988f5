"""GGUF files that hold a vocabulary and nothing else, of each kind, made from `vocabularies.json`."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@cache
def stored() -> dict[str, Any]:
    """By kind ("gpt2", "llama", "t5", "bert", "raw"): tokens, their kinds, and merges or scores."""
    found: dict[str, Any] = json.loads((HERE / "vocabularies.json").read_text(encoding="utf-8"))
    return found


def write(path: Path, kind: str, **changes: Any) -> Path:
    """A vocabulary as a GGUF file; `changes` are values under `tokenizer.ggml.` (pre="qwen2") or by full name,
    and `plain` tokens that the file calls ordinary pieces."""
    import gguf

    vocab = stored()[kind]
    ids = {t: i for i, t in enumerate(vocab["tokens"])}
    writer = gguf.GGUFWriter(path, "llama")
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_block_count, writer.add_head_count):
        add(64)
    writer.add_feed_forward_length(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(vocab["tokens"])
    plain = changes.pop("plain", ())
    writer.add_token_types([NORMAL if t in plain else k for t, k in zip(vocab["tokens"], vocab["kinds"], strict=True)])
    if "scores" in vocab:
        writer.add_token_scores(vocab["scores"])
    if "merges" in vocab:
        writer.add_token_merges(vocab["merges"])
    values = {"model": {"raw": "gpt2"}.get(kind, kind)}
    values |= {f"{n}_token_id": ids[t] for n, t in vocab["special"].items()}
    for name, value in (values | changes).items():
        key = name if name.startswith(("tokenizer.", "general.")) else f"tokenizer.ggml.{name}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama without a space before": {"add_space_prefix": False},
    "llama with an end": {"add_bos_token": False, "add_eos_token": True},
    "t5": {"add_space_prefix": True, "remove_extra_whitespaces": True, "add_eos_token": True},
    "t5 with every space": {"add_space_prefix": False, "remove_extra_whitespaces": False, "add_eos_token": False},
    "bert": {},
    "bert with capitals": {"normalizer.lowercase": False},
    "gpt2 with both ends": {"pre": "smollm", "add_bos_token": True, "add_eos_token": True},
    "llama of Phi-3": {"general.name": "Phi-3 mini"},
    "gpt2 with ends as pieces": {"pre": "smollm", "plain": ("<|im_end|>", "<|endoftext|>")},
    "gpt2 with a letter as padding": {"pre": "smollm", "padding_token_id": 3},
    "gpt2 without a beginning": {"pre": "llama-bpe", "add_bos_token": False},
}
"""Files beside one per `tokenizer.ggml.pre`: the kind is the first word of the name."""

RAW = ("gemma4", "granite-embed-multi-311m", "sarvam-moe")
"""Pre-tokenizers whose tokens are text, not bytes."""


def kind_of(name: str) -> str:
    return "raw" if name in RAW else name.split()[0] if name in VARIANTS else "gpt2"

"""A small sibling of an architecture: the same rules with small sizes, so that a check of it takes a moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SIZES: dict[str, int] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "kv_n_heads": 2,
    # The same under the names that single families have for it.
    "n_embd": 64,
    "n_head": 4,
    "n_heads": 4,
    "n_positions": 256,
    "n_ctx": 256,
    "n_inner": 96,
    "d_model": 64,
    "d_ff": 96,
    "dff": 96,
    "dim_ff": 96,
    "dim_head": 16,
    "ffn_dim": 96,
    "ffn_hidden_size": 96,
    "intermediate_size_mlp": 96,
    "word_embed_proj_dim": 64,
    "embedding_size": 64,
    "embed_dim": 64,
    "input_embedding_size": 64,
    "output_embedding_size": 64,
    "attention_heads": 4,
    "num_heads": 4,
    "max_seq_len": 256,
    "max_seq_length": 256,
    "rotary_dim": 8,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "num_decoder_attention_heads": 4,
    "num_encoder_attention_heads": 4,
    "global_head_dim": 32,
    "num_global_key_value_heads": 2,
    "attention_value_scale": 16,
    "v_head_dim": 16,
    "swa_head_dim": 16,
    "swa_v_head_dim": 16,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "local_num_attention_heads": 4,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "qk_head_dim": 24,
    "d_head": 16,
    "d_inner": 96,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "o_lora_rank": 16,
    "vocab_size_per_layer_input": 97,
    "hidden_size_per_layer_input": 16,
    "laurel_rank": 8,
    "kv_channels": 16,
    # Experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "moe_intermediate_size": 32,
    "moe_ffn_hidden_size": 32,
    "expert_ffn_hidden_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "zero_expert_num": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # What a short text must cross
    "sliding_window": 7,
    "attention_chunk_size": 9,
    "window_size": 7,
    "index_topk": 16,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "type_vocab_size": 2,
}
"""What sizes become where they are larger."""
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers")
MOST_LAYERS = 8
ORIGINAL = 32
"""Tokens for which a scaled rotation was meant at first."""
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def small(config: Any) -> Any:
    """A config with the same rules whose every size is small.

    Layers are kept from the first on, as many as show every kind of layer that there is. Raises whatever transformers
    raises for a config that it does not take.
    """
    raw = {k: v for k, v in config.to_dict().items() if k not in ("dtype", "torch_dtype", "transformers_version")}
    return type(config).from_dict(_small(raw))


def _small(raw: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(raw)
    for name, value in raw.items():
        if name in SIZES and _counts(value):
            out[name] = _sized(name, value, raw)
        elif name in SIZES and isinstance(value, list) and all(map(_counts, value)):
            out[name] = [_sized(name, each, raw) for each in value]
        elif name.endswith("_config") and isinstance(value, Mapping):
            out[name] = _small(value)
        elif name in TOKENS and value is not None and not (_counts(value) and value < SIZES["vocab_size"]):
            out[name] = 1 if name == "pad_token_id" else 2
    _small_depth(raw, out)
    _small_rotation(raw, out)
    return out


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sized(name: str, value: int, raw: Mapping[str, Any]) -> int:
    most = SIZES[name]
    if "key_value" in name:
        heads = raw.get(name.replace("key_value", "attention")) or raw.get("num_attention_heads") or value
        most = 4 if value == heads else 2
    if "heads" in name:  # widths must go on dividing by them
        most = 1 << min(most, value).bit_length() - 1
    if name.endswith("head_dim") and "qk_rope_head_dim" in raw:
        rope, rest = raw["qk_rope_head_dim"], raw.get("qk_nope_head_dim") or 0
        if value == rope and name != "v_head_dim":
            most = SIZES["qk_rope_head_dim"]
        elif value == rope + rest:
            most = SIZES["qk_rope_head_dim"] + SIZES["qk_nope_head_dim"]
    return min(value, most)


def _small_depth(raw: Mapping[str, Any], out: dict[str, Any]) -> None:
    """Fewer layers, in the count and in every list that says something about each."""
    names = [n for n in LAYERS if _counts(raw.get(n))]
    if not names:
        return
    depth = raw[names[0]]
    lists = [n for n, v in out.items() if isinstance(v, list) and len(v) == depth > 1]
    single = [n for n, v in out.items() if isinstance(v, Mapping) and v and all(str(k).isdigit() for k in v)]
    keep = _enough([tuple(repr(raw[n][i]) for n in lists) for i in range(depth)])
    if _counts(raw.get("num_kv_shared_layers")) and raw["num_kv_shared_layers"] > 0:
        out["num_kv_shared_layers"] = 2  # the layers before them must show every kind
        keep = min(depth, keep + 2)
    for name in names:
        out[name] = min(raw[name], keep)
    for name in lists:
        out[name] = out[name][:keep]
    for name in single:
        out[name] = {k: _small(v) if isinstance(v, Mapping) else v for k, v in out[name].items() if int(k) < keep}


def _enough(kinds: list[tuple[str, ...]]) -> int:
    """How many of the first layers show every kind that there is, at least 4 and at most `MOST_LAYERS`."""
    last = max((kinds.index(kind) for kind in set(kinds)), default=0)
    return min(len(kinds), max(4, min(last + 1, MOST_LAYERS)))


def _small_rotation(raw: Mapping[str, Any], out: dict[str, Any]) -> None:
    """A scaled rotation with a small original length, and as many factors as a small head has pairs."""
    if _counts(raw.get("original_max_position_embeddings")):
        out["original_max_position_embeddings"] = ORIGINAL
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(raw.get(name), Mapping):
            out[name] = _small_rules(raw[name], raw, out)
    if any(_kind(raw.get(name)) == "dynamic" for name in ("rope_parameters", "rope_scaling")):
        out["max_position_embeddings"] = 2 * ORIGINAL


def _kind(rules: Any) -> Any:
    return rules.get("rope_type", rules.get("type")) if isinstance(rules, Mapping) else None


def _small_rules(rules: Mapping[str, Any], raw: Mapping[str, Any], out: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(rules)
    for name, value in rules.items():
        if isinstance(value, Mapping):
            made[name] = _small_rules(value, raw, out)
        elif name == "original_max_position_embeddings":
            made[name] = ORIGINAL
        elif name in ("short_factor", "long_factor") and isinstance(value, list):
            head, size = _head(raw), _head(out)
            pairs = max(1, len(value) * size // head)
            made[name] = [value[i * len(value) // pairs] for i in range(pairs)]
    return made


def _head(config: Mapping[str, Any]) -> int:
    size = config.get("head_dim") or config.get("hidden_size", 64) // (config.get("num_attention_heads") or 1)
    return max(1, int(size))

"""The families that our decoder runs: one row per family says what differs, and a config says the sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmlab.models.shape import Shape


@dataclass(frozen=True)
class Family:
    """What sets a family apart: biases on q, k and v; norms on every head's query and key."""

    qkv_bias: bool = False
    head_norms: bool = False


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(head_norms=True),
}


def ours(config: Any) -> bool:
    """Whether our decoder runs this architecture; everything else goes through `wrapped`."""
    text = getattr(config, "hidden_act", "silu")
    return (
        config.model_type in FAMILIES
        and text in ("silu", "swish")
        and not getattr(config, "mlp_bias", False)
        and not (config.model_type == "llama" and getattr(config, "attention_bias", False))
    )


def shape_of(config: Any) -> Shape:
    """The decoder's shape from a transformers config, with each layer's attention window."""
    heads = config.num_attention_heads
    layers = config.num_hidden_layers
    width = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        window = tuple(width if kind == "sliding_attention" else None for kind in kinds)
    else:
        window = ((width if config.model_type == "mistral" else None),) * layers
    return Shape(
        vocab=config.vocab_size,
        width=config.hidden_size,
        layers=layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        feed_forward=config.intermediate_size,
        context=config.max_position_embeddings,
        eps=config.rms_norm_eps,
        window=window,
    )

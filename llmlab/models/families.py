"""The families that our decoder runs: one row per family says what differs, and a config says the sizes."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from llmlab.models.rope import KINDS, context_of, scaling
from llmlab.models.shape import Shape


@dataclass(frozen=True)
class Family:
    """What sets a family apart. `biases`: the matrices that always have one, beside those that the config gives one;
    `head_norms`: norms on every head's query and key; `joined`: q, k and v, and gate and up, are one tensor each;
    `partial`: only a part of a head may turn; `windowed`: a window in the config counts in every layer, `by_layer`: in
    those that `layer_types` names."""

    biases: tuple[str, ...] = ()
    head_norms: bool = False
    joined: bool = False
    partial: bool = False
    windowed: bool = False
    by_layer: bool = False


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(windowed=True),
    "phi3": Family(joined=True, partial=True, windowed=True),
    "qwen2": Family(biases=("q_proj", "k_proj", "v_proj"), by_layer=True),
    "qwen3": Family(head_norms=True, by_layer=True),
}
HEED_BIAS = ("llama", "qwen3")
"""Families whose config decides about the biases of attention (`attention_bias`)."""


def ours(config: Any) -> bool:
    """Whether our decoder runs this architecture; everything else goes through `wrapped`."""
    known = config.model_type in FAMILIES and getattr(config, "hidden_act", "silu") in ("silu", "swish")
    return known and scaling(config)["rope_type"] in KINDS


def biases(config: Any) -> frozenset[str]:
    """The matrices of a layer that have a bias by the config: "q_proj", …, "down_proj"."""
    found = set(FAMILIES[config.model_type].biases)
    if config.model_type in HEED_BIAS and getattr(config, "attention_bias", False):
        found |= {"q_proj", "k_proj", "v_proj", "o_proj"}
    if config.model_type == "llama" and getattr(config, "mlp_bias", False):
        found |= {"gate_proj", "up_proj", "down_proj"}
    return frozenset(found)


def tensors_of(config: Any, names: Collection[str], literal: bool = False) -> set[str]:
    """The names of the tensors, of those that a checkpoint has, that our decoder reads.

    `literal`: whether every bias that is there counts, as in GGUF files, rather than those that the config asks for.
    """
    family = FAMILIES[config.model_type]
    attention = ["qkv_proj"] if family.joined else ["q_proj", "k_proj", "v_proj"]
    feed = ["gate_up_proj"] if family.joined else ["gate_proj", "up_proj"]
    matrices = [f"self_attn.{n}" for n in (*attention, "o_proj")] + [f"mlp.{n}" for n in (*feed, "down_proj")]
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["self_attn.q_norm", "self_attn.k_norm"] if family.head_norms else []
    biased = [m for m in matrices if literal or m.split(".")[1] in biases(config)]
    each = [f"{m}.weight" for m in (*matrices, *norms)] + [f"{m}.bias" for m in biased]
    wanted = {f"model.layers.{i}.{n}" for i in range(config.num_hidden_layers) for n in each}
    return (wanted | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "rope_freqs"}) & set(names)


IGNORED = re.compile(r"(.*\.)?rotary_emb\.inv_freq")
"""Tensors that old checkpoints hold and that follow from the config."""


def unread(config: Any, names: Collection[str], literal: bool = False) -> list[str]:
    """The tensors of a checkpoint that our decoder would not read, though it should: then it must not run it."""
    return sorted(n for n in set(names) - tensors_of(config, names, literal) if not IGNORED.fullmatch(n))


def shape_of(config: Any) -> Shape:
    """The decoder's shape from a transformers config, with each layer's attention window."""
    heads = config.num_attention_heads
    layers = config.num_hidden_layers
    width = getattr(config, "sliding_window", None)
    family = FAMILIES[config.model_type]
    kinds = getattr(config, "layer_types", None)
    if kinds and family.by_layer:
        window = tuple(width if kind == "sliding_attention" else None for kind in kinds)
    else:
        window = ((width if family.windowed else None),) * layers
    return Shape(
        vocab=config.vocab_size,
        width=config.hidden_size,
        layers=layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        feed_forward=config.intermediate_size,
        context=context_of(config),
        eps=config.rms_norm_eps,
        window=window,
    )

"""Hugging Face config and state dict to our decoder: one row per family says what differs.

A checkpoint offers `config` (a transformers PretrainedConfig), `names()` and `get(name)` (a Tensor, or 4-bit Codes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmlab.errors import Refused
from llmlab.models.block import Block, Norm
from llmlab.models.decoder import Decoder
from llmlab.models.embedding import EmbeddingAndHead
from llmlab.models.formats.linear import Linear
from llmlab.models.formats.quantized_groups import QuantizedGroups
from llmlab.models.formats.registry import make_linear
from llmlab.models.shape import Shape

if TYPE_CHECKING:
    from llmlab.models.loading.checkpoint import Checkpoint


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


def rotations(config: Any, factors: Tensor | None = None) -> tuple[Tensor, float]:
    """Angles per position (D/2,) and the factor on cosine and sine, with the config's scaling (linear, llama3, yarn).

    `factors` (D/2,): divisors that a GGUF file carries in place of a scaling rule.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = getattr(config, "rope_parameters", None) or {}
    kind = parameters.get("rope_type", "default")
    if kind in ROPE_INIT_FUNCTIONS:
        if kind in ("dynamic", "longrope"):
            raise Refused(
                "This model", f"scales its positions by the {kind} rule, which is not built", "Choose another"
            )
        angles, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    elif kind == "default":
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        theta = parameters.get("rope_theta") or getattr(config, "rope_theta", 10000.0)
        angles, factor = 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size), 1.0
    else:
        raise Refused("This model", f"scales its positions by an unknown rule, {kind}", "Choose another model")
    if factors is not None:
        angles = angles / factors
    return angles.float(), float(factor)


def interleave(rows: int, head_size: int) -> Tensor:
    """Order that turns Hugging Face's halves (x₀…, y₀…) of each head into pairs (x₀, y₀, x₁, y₁, …)."""
    half = torch.arange(head_size).view(2, head_size // 2).t().reshape(-1)
    return (torch.arange(rows // head_size)[:, None] * head_size + half).reshape(-1)


def _pick(weight: Tensor | QuantizedGroups, rows: Tensor) -> Tensor | QuantizedGroups:
    if isinstance(weight, QuantizedGroups):
        return QuantizedGroups(weight.q[rows], weight.d[rows], weight.m[rows])
    return weight[rows]


def _join(parts: list[Tensor | QuantizedGroups]) -> Tensor | QuantizedGroups:
    if all(isinstance(p, QuantizedGroups) for p in parts):
        return QuantizedGroups(
            torch.cat([p.q for p in parts]), torch.cat([p.d for p in parts]), torch.cat([p.m for p in parts])
        )
    return torch.cat([p.dense() if isinstance(p, QuantizedGroups) else p for p in parts])


def build(
    checkpoint: Checkpoint,
    weights: str,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    copies: bool = False,
) -> Decoder:
    """The decoder for a checkpoint, layer by layer, in the format called `weights`; `progress(done, total)` per layer.

    `copies`: with what `Decoder.keep_copies` keeps.

    Raises Refused for an architecture or a format that does not suit, and for tensors that are missing or misshapen.
    """
    config = checkpoint.config
    if not ours(config):
        raise Refused(
            f"The architecture {config.model_type}", "is not one that our decoder runs", "Use the wrapped path"
        )
    family, s = FAMILIES[config.model_type], shape_of(config)
    names, device_type = set(checkpoint.names()), torch.device(device).type
    order = {heads: interleave(heads * s.head_size, s.head_size) for heads in (s.heads, s.kv_heads)}

    def tensor(name: str, *shape: int) -> Tensor | QuantizedGroups:
        value = checkpoint.get(name)
        if tuple(value.shape) != shape:
            raise Refused(
                f"The tensor {name}",
                f"has the shape {tuple(value.shape)} where {shape} belongs",
                "Fetch the model again",
            )
        return value if isinstance(value, QuantizedGroups) else value.to(device)

    def linear(parts: list[Tensor | QuantizedGroups], bias: Tensor | None = None, cut: int = 1) -> Linear:
        weight = _join(parts)
        made = make_linear(weight, weights, bias).to(device)
        if copies and device_type == "cpu":
            made.keep_copy(cut, weight)
        return made

    layers = []
    for i in range(s.layers):
        at = f"model.layers.{i}."
        sizes = {"q": s.heads, "k": s.kv_heads, "v": s.kv_heads}
        qkv, bias = [], []
        for name, heads in sizes.items():
            W = tensor(f"{at}self_attn.{name}_proj.weight", heads * s.head_size, s.width)
            qkv.append(W if name == "v" else _pick(W, order[heads]))
            if family.qkv_bias:
                b = tensor(f"{at}self_attn.{name}_proj.bias", heads * s.head_size)
                bias.append(b if name == "v" else b[order[heads]])
        norms = [
            Norm(tensor(f"{at}{n}.weight", s.width), s.eps) for n in ("input_layernorm", "post_attention_layernorm")
        ]
        head_norms = None
        if family.head_norms:
            pairs = interleave(s.head_size, s.head_size)
            q, k = (tensor(f"{at}self_attn.{n}_norm.weight", s.head_size)[pairs] for n in "qk")
            head_norms = (Norm(q, s.eps), Norm(k, s.eps))
        layers.append(
            Block(
                s,
                i,
                (norms[0], norms[1]),
                linear(qkv, torch.cat(bias) if bias else None),
                linear([tensor(f"{at}self_attn.o_proj.weight", s.width, s.heads * s.head_size)]),
                linear([tensor(f"{at}mlp.{n}_proj.weight", s.feed_forward, s.width) for n in ("gate", "up")], cut=2),
                linear([tensor(f"{at}mlp.down_proj.weight", s.width, s.feed_forward)]),
                head_norms,
            )
        )
        if progress:
            progress(i + 1, s.layers)
    embed = tensor("model.embed_tokens.weight", s.vocab, s.width)
    tied = config.tie_word_embeddings or "lm_head.weight" not in names
    tables = EmbeddingAndHead(embed, None if tied else tensor("lm_head.weight", s.vocab, s.width), weights).to(device)
    if copies:
        tables.keep_candidate_head()
    factors = checkpoint.get("rope_freqs") if "rope_freqs" in names else None
    angles, factor = rotations(config, factors)
    model = Decoder(s, tables, layers, Norm(tensor("model.norm.weight", s.width), s.eps), angles.to(device), weights)
    model.rotation_scale = factor
    return model.eval()

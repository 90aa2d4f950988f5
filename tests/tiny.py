"""Tiny models with random weights, made on the spot: one per family, small enough for thousands of passes a second."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from llmlab.models.building import build
from llmlab.models.decoder import Decoder
from llmlab.runtime.tools import Tools
from llmlab.training import eagle, exits

VOCAB = 97
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
WINDOW = 7


def _config(name: str) -> Any:
    rest = {k: SIZES[k] for k in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    match name:
        case "llama":
            return LlamaConfig(**SIZES, rope_parameters=LLAMA3, tie_word_embeddings=False)
        case "llama-small":
            return LlamaConfig(**{**SIZES, "vocab_size": 5, "num_hidden_layers": 3})
        case "llama-plain":
            return LlamaConfig(**SIZES, tie_word_embeddings=True)
        case "llama-yarn":
            return LlamaConfig(**SIZES, rope_parameters=YARN)
        case "llama-linear":
            return LlamaConfig(**SIZES, rope_parameters=LINEAR)
        case "mistral":
            return MistralConfig(**SIZES, sliding_window=WINDOW)
        case "qwen2":
            return Qwen2Config(**SIZES, tie_word_embeddings=True)
        case "qwen2-window":
            return Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2)
        case "qwen3":
            return Qwen3Config(**{**SIZES, "head_dim": 32})
        case "gpt2":
            return GPT2Config(**rest, n_embd=64, n_layer=4, n_head=4, n_positions=256)
        case "gpt-neox":
            sizes = {k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "head_dim")}
            return GPTNeoXConfig(**sizes, rotary_pct=0.5)
        case "opt":
            return OPTConfig(
                **{**rest, "pad_token_id": 1},
                hidden_size=64,
                word_embed_proj_dim=64,
                ffn_dim=96,
                num_hidden_layers=4,
                num_attention_heads=4,
                max_position_embeddings=256,
            )
        case "gemma3":
            kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
            return Gemma3TextConfig(**SIZES, sliding_window=WINDOW, layer_types=kinds, query_pre_attn_scalar=16)
    raise KeyError(name)


OURS = ("llama", "llama-plain", "llama-yarn", "llama-linear", "mistral", "qwen2", "qwen2-window", "qwen3")
WRAPPED = ("gpt2", "gpt-neox", "opt", "gemma3")


@cache
def reference(name: str, seed: int = 0, gain: float = 1.5) -> Any:
    """A transformers model in float32 whose every parameter is random, norms and biases too, so that none is idle."""
    config = _config(name)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=dice)
            if p.dim() > 1:
                # Large enough that the text wanders, small enough that its best token is rarely a near tie.
                p.copy_(noise if "embed" in path or "wte" in path else noise * gain / p.shape[-1] ** 0.5)
            elif path.endswith("bias"):
                p.copy_(0.2 * noise)
            else:
                p.copy_(p + 0.2 * noise)
    return model


class StateDict:
    """A transformers model as the checkpoint that `families.build` reads."""

    literal = False

    def __init__(self, model: Any) -> None:
        self.config = model.config
        self._tensors: dict[str, Tensor] = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def names(self) -> list[str]:
        return list(self._tensors)

    def get(self, name: str) -> Tensor:
        return self._tensors[name]


@cache
def decoder(name: str = "llama", weights: str = "dense-fp32", seed: int = 0) -> Decoder:
    """Our decoder with the same weights as `reference(name, seed)`. Shared: change a `private()` copy of it."""
    return build(StateDict(reference(name, seed)), weights)


def prompts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Prompts that are half random and half a repetition of themselves, so that lookups find something."""
    dice = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        n = max(2, length - i % 5)
        head = torch.randint(2, VOCAB, (n - n // 3,), generator=dice).tolist()
        made.append(head + head[: n // 3])
    return made


def text(length: int, seed: int = 5) -> list[int]:
    """Random tokens: what the tests calibrate on."""
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def tools(name: str = "llama", calibration: Sequence[int] | None = None) -> Tools:
    """What techniques may ask for: the same model at fewer bits as partner, or, by family name, another one."""

    def partner(asked: str) -> Decoder:
        return decoder(name, asked) if asked in ("int4", "int8", "nf4") else decoder(asked, seed=9)

    return Tools(None, partner, list(calibration if calibration is not None else text(300)), parts)


def parts(kind: str, model: Decoder, who: str) -> dict[str, Tensor]:
    """A part that nobody has trained: random, and at home on `model`."""
    dice = torch.Generator().manual_seed(1)
    shortlist = torch.arange(0, model.shape.vocab, 2 if model.shape.vocab > 8 else 1)
    if kind == "eagle":
        layers = eagle.taps(model)
        return {**eagle.Layer(model, layers).tensors(), "taps": torch.tensor(layers), "shortlist": shortlist}
    if kind == "heads":
        return {"blocks": torch.randn(4, *[model.shape.width] * 2, generator=dice) * 0.3, "shortlist": shortlist}
    if kind == "exits":
        layers = exits.taps(model)[:-1]
        state = exits.Exits(model.shape.width, len(layers), 32, 8).state_dict()
        noise = {k: v + 0.1 * torch.randn(v.shape, generator=dice) for k, v in state.items()}
        return {**noise, "layers": torch.tensor(layers), "shortlist": shortlist}
    raise KeyError(kind)

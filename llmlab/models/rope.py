"""Rotary positions: the angle per position of each pair, as a model's config scales it (RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmlab.errors import Refused


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

"""The weight formats by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmlab.errors import Refused
from llmlab.models.formats.bnb_int8 import BnbInt8
from llmlab.models.formats.dense import Dense
from llmlab.models.formats.int4 import Int4
from llmlab.models.formats.int8 import Int8
from llmlab.models.formats.linear import Linear
from llmlab.models.formats.nf4 import Nf4
from llmlab.models.formats.quantized_groups import Matrix

FORMATS: dict[str, Callable[[Matrix, Tensor | None], Linear]] = {
    "dense-fp32": lambda w, b: Dense(w, torch.float32, b),
    "dense-bf16": lambda w, b: Dense(w, torch.bfloat16, b),
    "int8": Int8,
    "int4": Int4,
    "nf4": Nf4,
    "bnb-int8": BnbInt8,
}

WRAPPED_FORMATS = ("dense-fp32", "dense-bf16", "nf4", "bnb-int8")
"""Those that models can have that transformers runs."""


def make_linear(weight: Matrix, weights: str, bias: Tensor | None = None) -> Linear:
    """A matrix (M, K) in the format called `weights`. Refused for an unknown format."""
    if weights not in FORMATS:
        raise Refused(f"No weight format is called {weights[:20]!r};", "it is unknown", f"Choose {', '.join(FORMATS)}")
    return FORMATS[weights](weight, bias)

"""A transformers model from a folder of safetensors, in one of the formats that it can have there."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from llmlab.errors import Refused
from llmlab.models.config import figure, text_of
from llmlab.models.empty import empty_model
from llmlab.models.formats.bnb_int8 import BnbInt8
from llmlab.models.formats.nf4 import Nf4
from llmlab.models.formats.registry import WRAPPED_FORMATS
from llmlab.models.rope import context_of
from llmlab.models.wrapped.admission import admission, first_words
from llmlab.models.wrapped.model import Wrapped
from llmlab.models.wrapped.referee import Difference, difference, plain_logits, some_tokens
from llmlab.models.wrapped.seams import Unsuited

SHORT = 24
"""Tokens that a model with its own weights is checked on."""
LOOSE = 0.5
"""Largest difference below float32, in spreads of the logits: there a pass of another width rounds otherwise."""


def build(path: str, config: Any, weights: str, device: str) -> Wrapped:
    """A Wrapped model. Raises Refused for an architecture that does not run, a format that only our decoder has,
    weights that the model does not use or lacks, and a model that says something else in pieces than in one pass."""
    verdict = admission(config)
    verdict.require(config)
    if weights not in WRAPPED_FORMATS:
        raise Refused(f"The {weights} format", "needs our own decoder, which does not run this model", "Choose nf4")
    _require_widths(config, weights)
    model = _loaded(path, config, weights, device)
    tokens = some_tokens(int(model.get_input_embeddings().weight.shape[0]), min(SHORT, context_of(text_of(config))))
    try:
        want = plain_logits(model, tokens)
        wrapped = Wrapped(model, weights, verdict.kind, verdict.positioned)
        found = difference(wrapped, tokens, want, 1e-3 if weights == "dense-fp32" else LOOSE)
    except Unsuited as e:
        raise Refused("This model", str(e), "Choose another model") from e
    except (RuntimeError, AssertionError, ValueError, TypeError, LookupError, AttributeError) as e:
        if "memory" in str(e):
            raise
        who, now = "This model", "Choose another model"
        if weights in MULTIPLES:
            who, now = f"The {weights} format", "Choose dense-bf16"
        raise Refused(who, f"does not work here ({first_words(e)})", now) from e
    if found is not None and not (weights != "dense-fp32" and _chose_another_expert(found, config)):
        raise Refused("This model", str(found), "Choose another model")
    return wrapped


def _chose_another_expert(found: Difference, config: Any) -> bool:
    """Whether a difference is that of single tokens in a mixture of experts, which rounding may send elsewhere."""
    experts = any(figure(text_of(config), n) for n in ("num_experts", "num_local_experts", "n_routed_experts"))
    return experts and math.isfinite(found.most) and found.share < 0.25


MULTIPLES = {"nf4": Nf4.multiple, "bnb-int8": BnbInt8.multiple}
"""Inputs of which bitsandbytes' kernels take whole multiples; others they read wrongly, or past their end."""


def _require_widths(config: Any, weights: str) -> None:
    """Raises Refused for a matrix whose width the format's kernel was not made for."""
    from transformers.pytorch_utils import Conv1D

    if weights not in MULTIPLES:
        return
    for module in empty_model(config).modules():
        if isinstance(module, nn.Linear | Conv1D):
            inputs = module.in_features if isinstance(module, nn.Linear) else module.weight.shape[0]
            if inputs % MULTIPLES[weights]:
                why = f"takes multiples of {MULTIPLES[weights]}, and a matrix of this model has {inputs} inputs"
                raise Refused(f"The {weights} format", why, "Choose dense-bf16")


def _loaded(path: str, config: Any, weights: str, device: str) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    kinds: dict[str, dict[str, Any]] = {
        "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "bnb-int8": {"load_in_8bit": True},
    }
    config = copy.deepcopy(config)  # the one that was checked, not whatever the folder names beside it
    if hasattr(config, "transformers_weights"):
        del config.transformers_weights  # the files have been found already, and lie under their usual names
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path,
        config=config,
        dtype=torch.float32 if weights == "dense-fp32" else torch.bfloat16,
        attn_implementation="eager",
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        # accelerate fills the first device and offloads what is left over, so a model larger than a GPU still runs.
        device_map="auto" if device.startswith("cuda") else {"": device},
        quantization_config=BitsAndBytesConfig(**kinds[weights]) if weights in kinds else None,
    )
    model, info = loaded
    _require_complete(info)
    return model


def _require_complete(info: Any) -> None:
    """Raises Refused for tensors that were not read, are missing or have another shape than the config says."""
    for key, why in (
        ("unexpected_keys", "is in the files and would not be read, so the text would be wrong"),
        ("missing_keys", "is missing from the model's files, and would be random"),
        ("mismatched_keys", "has another shape than the config says"),
    ):
        names = sorted(str(n[0] if isinstance(n, tuple) else n) for n in info.get(key, ()))
        if names:
            rest = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise Refused(f"The tensor {names[0]}{rest}", why, "Fetch the model again or choose another")

"""A transformers model that holds nothing: to count its parameters and to look at their shapes before any is read."""

from __future__ import annotations

import copy
from typing import Any

import torch


def empty_model(config: Any) -> Any:
    """The model that a config describes, without storage. Raises whatever its class raises for figures that do not fit.

    Nothing that other threads share is changed meanwhile, because an engine may compute in one of them: `torch.device`
    holds for this thread (accelerate's `init_empty_weights` replaces a method of every module), and float32, whatever
    the config asks for, is PyTorch's default already, which transformers would set for the whole process.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32, trust_remote_code=False)

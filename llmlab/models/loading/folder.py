"""A folder in Hugging Face's layout: its config, checked before any weight is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmlab.errors import Refused


def config_of(folder: Path, who: str) -> Any:
    """The config of a causal language model that transformers knows. Raises Refused for whatever else is there."""
    from transformers import AutoConfig, AutoModelForCausalLM

    file = folder / "config.json"
    if not file.exists():
        raise Refused(f"The model {who}", "has no config.json, so it is no Hugging Face model", "Choose another")
    kind = "none"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        kind = str(raw.get("model_type"))
        if "auto_map" in raw:
            raise Refused(f"The model {who}", "needs its own code to run, which the lab does not run", "Choose another")
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Refused:
        raise
    except Exception as e:  # a damaged or unknown config fails in many ways
        raise Refused(
            f"The model {who}", f"has a config of the kind {kind[:30]!r}, which is unknown or damaged", "Choose another"
        ) from e
    if getattr(config, "quantization_config", None):
        raise Refused(
            f"The model {who}",
            "is stored quantized in a format that the lab does not read",
            "Choose the original model, and a weight format here",
        )
    if type(config) not in AutoModelForCausalLM._model_mapping or getattr(config, "is_encoder_decoder", False):
        raise Refused(
            f"The model {who}",
            f"is a {config.model_type!r}, which does not continue text",
            "Choose a causal language model",
        )
    return config

"""A folder in Hugging Face's layout: its config, checked before any weight is read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmlab.errors import Refused
from llmlab.models.config import DEEPEST, figure, text_of

SIZES = (
    *("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
LARGEST = 2**31 - 1
DEPTH = re.compile(r"(num_(hidden|decoder|encoder)_|n_|num_|decoder_|encoder_)layers?")


def config_of(folder: Path, who: str) -> Any:
    """The config of a causal language model that transformers knows. Raises Refused for whatever else is there.

    Code that a model brings along is never run: where transformers has the architecture itself, it is not needed.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    raw = _raw(folder / "config.json", who)
    kind, code = raw.get("model_type"), isinstance(raw.get("auto_map"), dict)
    known = isinstance(kind, str) and kind in CONFIG_MAPPING
    if code and not known:
        raise _own_code(who)
    _require_depth(raw, who)
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as e:  # a damaged or unknown config fails in many ways
        raise Refused(
            f"The model {who}",
            f"has a config of the kind {str(kind)[:30]!r}, which is unknown or damaged",
            "Choose another",
        ) from e
    _require_numbers(raw, config, who)
    # A config may name an implementation, even one to download; the lab chooses for itself.
    config._attn_implementation = "eager"
    config._experts_implementation_internal = None
    if getattr(config, "quantization_config", None):
        raise Refused(
            f"The model {who}",
            "is stored quantized in a format that the lab does not read",
            "Choose the original model, and a weight format here",
        )
    if type(config) not in AutoModelForCausalLM._model_mapping or getattr(config, "is_encoder_decoder", False):
        if code and "AutoModelForCausalLM" in raw["auto_map"]:
            raise _own_code(who)
        raise Refused(
            f"The model {who}",
            f"is a {config.model_type!r}, which does not continue text",
            "Choose a causal language model",
        )
    return config


def _require_depth(raw: dict[str, Any], who: str, nested: int = 0) -> None:
    """Raise Refused for a number of layers that nothing has: transformers makes lists of that length from it."""
    for name, value in raw.items():
        if isinstance(value, dict) and nested < 3:
            _require_depth(value, who, nested + 1)
        elif DEPTH.fullmatch(name) and isinstance(value, int | float) and not 0 < value <= DEEPEST:
            raise Refused(f"The config.json of {who}", f"gives {name} as {str(value)[:20]}", "Choose another model")


def _own_code(who: str) -> Refused:
    return Refused(f"The model {who}", "needs its own code to run, which the lab does not run", "Choose another")


def _raw(file: Path, who: str) -> dict[str, Any]:
    """A config.json as it is. Raises Refused for one that is missing, or no JSON object in UTF-8."""
    if not file.exists():
        raise Refused(f"The model {who}", "has no config.json, so it is no Hugging Face model", "Choose another")
    again = "Fetch the model again"
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as e:
        raise Refused(f"The config.json of {who}", "is damaged: it is no text in UTF-8", again) from e
    except OSError as e:
        raise Refused(f"The config.json of {who}", f"cannot be read ({type(e).__name__})", again) from e
    if text.startswith("\ufeff"):
        why = "begins with a byte order mark, which transformers does not read"
        raise Refused(f"The config.json of {who}", why, "Save it as UTF-8 without one")
    if not text.strip():
        raise Refused(f"The config.json of {who}", "is empty", again)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise Refused(f"The config.json of {who}", "is of an unknown or damaged form: it is no JSON", again) from e
    if not isinstance(value, dict):
        why = f"is of an unknown or damaged form: it holds a {type(value).__name__}, not settings by name"
        raise Refused(f"The config.json of {who}", why, again)
    return value


def _require_numbers(raw: dict[str, Any], config: Any, who: str) -> None:
    """Raise Refused for numbers that are none, and for sizes that nothing can have."""

    def refused(name: str, value: object) -> Refused:
        return Refused(f"The config.json of {who}", f"gives {name} as {str(value)[:20]}", "Choose another model")

    for name, number in _numbers(raw):
        if not abs(number) < 1e300 or (name == "rope_theta" and number <= 0):
            raise refused(name, number)
    text = text_of(config)
    for name in SIZES:
        value = figure(text, name)
        numbers = value if isinstance(value, list) else [value]  # some families give one per layer
        if value is not None and not all(isinstance(v, int) and 0 < v <= LARGEST for v in numbers if v is not None):
            raise refused(name, value)


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a config, with the name that it has there."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, float) or (isinstance(value, int) and name == "rope_theta"):
        yield name, value

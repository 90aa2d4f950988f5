"""Reading a transformers config."""

from __future__ import annotations

from typing import Any

DEEPEST = 1024
"""Layers of any model; transformers makes lists of as many as a config says."""


def figure(config: Any, name: str) -> Any:
    """A config's figure, or None; of one that differs from layer to layer, the one that most layers have."""
    try:
        return getattr(config, name, None)
    except Exception:  # transformers refuses to name one where layers differ
        return config.to_dict().get(name)


def text_of(config: Any) -> Any:
    """The part of a config that tells of the text model, where it tells of others too (pictures, sound)."""
    try:
        return config.get_text_config(decoder=True)
    except ValueError:  # several, of which transformers names none
        return config


def inner_width(text: Any) -> int:
    """The inner width of the widest feed-forward block; some configs have one for each layer."""
    found = figure(text, "intermediate_size") or figure(text, "ffn_dim") or 4 * text.hidden_size
    return int(max(found) if isinstance(found, list | tuple) else found)

"""Which of the two engines runs a model: our decoder, or transformers behind a seam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmlab.models.capabilities import Capability
from llmlab.models.families import ours, unread
from llmlab.models.formats.registry import FORMATS, WRAPPED_FORMATS
from llmlab.models.loading.contents import checkpoint, read_config
from llmlab.models.loading.sources.found import Found
from llmlab.models.mixers.attention import Attention
from llmlab.models.rope import LENGTH_RULES, scaling


@dataclass(frozen=True)
class Route:
    """`decodes`: whether our decoder runs it. `abilities`: what techniques may do with it."""

    decodes: bool
    abilities: frozenset[Capability]
    formats: tuple[str, ...]


def route(found: Found) -> Route:
    """How a found model is run; raises Refused for one that neither engine runs, before a weight is read.

    A model of our decoder's families that has tensors which it would not read is left to transformers.
    """
    if found.path is None:  # a mirror's, which is known beforehand
        return decoders(None)
    config = read_config(found)
    if found.kind == "gguf" or (ours(config) and not _unread(found, config)):
        return decoders(config)
    from llmlab.models.wrapped.admission import admission

    verdict = admission(config)
    verdict.require(config)
    return Route(False, verdict.abilities, WRAPPED_FORMATS)


def _unread(found: Found, config: Any) -> bool:
    return found.kind == "folder" and bool(unread(config, set(checkpoint(found).names())))


def decoders(config: Any) -> Route:
    """The route of a model that our decoder runs."""
    able = Attention.capabilities
    if config is not None and scaling(config)["rope_type"] in LENGTH_RULES:
        able -= {Capability.ROTARY}
    return Route(True, able, tuple(FORMATS))

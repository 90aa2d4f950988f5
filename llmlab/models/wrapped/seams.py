"""Where a transformers model lets us in: its call for attention, or its cache. Both put keys and values into our rows.

`AttentionSeam`: the model hands queries, keys and values to a function of ours, which attends over our rows as any of
our layers does; what a query may see it tells by a function of positions. `CacheSeam`: the model attends by its own
code (position biases in the scores, arithmetic of its own), and we only keep its keys and values for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache
from transformers.masking_utils import causal_mask_function

from llmlab.kv.attention import ScoreRule
from llmlab.kv.rows import Rows
from llmlab.models.batch import Batch, Pattern, Span
from llmlab.models.capabilities import THROUGH_ATTENTION, THROUGH_CACHE, Capability
from llmlab.models.kernels.reference import attention

NAME = "llmlab"
STATE = "keeps a recurrent state, which cannot be taken back when a drafted token is rejected"
INDEX = "chooses by an index of its own which rows a query sees"


class Unsuited(Exception):
    """A model asks for what a seam cannot give; the text completes "the model …". `final`: no other seam can either."""

    def __init__(self, why: str, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


@dataclass
class Pass:
    """A pass under way: its batch, of one sequence; the place in its memory of each layer that keeps keys and values;
    and which of these have given theirs."""

    batch: Batch
    slots: Mapping[int, int]
    seen: set[int] = field(default_factory=set)

    @property
    def span(self) -> Span:
        (span,) = self.batch.spans
        return span

    def rows(self, layer: int) -> Rows:
        if layer not in self.slots:
            raise Unsuited("keeps keys and values in other layers from pass to pass")
        return self.span.memory.layers[self.slots[layer]]

    def append(self, layer: int, key: Tensor, value: Tensor) -> int:
        """Put new keys and values (1, heads, T, D) into a layer's rows; those of the narrower are filled up with zeros.
        Returns the width of a row."""
        if layer in self.seen:
            raise Unsuited("attends twice in one layer")
        if key.shape[0] != 1 or key.shape[:3] != value.shape[:3] or key.shape[2] != len(self.batch.positions):
            raise Unsuited("has keys of another length than its text")
        self.seen.add(layer)
        D = max(key.shape[-1], value.shape[-1])
        kv = torch.stack([widened(key[0], D), widened(value[0], D)])
        self.rows(layer).append(kv, self.span.order(self.batch))
        return D


_now: ContextVar[Pass | None] = ContextVar("pass", default=None)


@contextmanager
def under_way(current: Pass) -> Iterator[Pass]:
    """While this lasts, the seams serve this pass."""
    token = _now.set(current)
    try:
        yield current
    finally:
        _now.reset(token)


def widened(x: Tensor, width: int) -> Tensor:
    """x (…, D) with zeros behind, (…, width)."""
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))


class ModelMask:
    """A pattern: which positions a layer's queries see, by the function of positions from which transformers makes its
    masks: causal, a sliding window, chunks."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function

    def visible(self, q: Tensor, k: Tensor, layer: int, head: Tensor) -> Tensor:
        seen: Tensor = self.function(torch.zeros_like(head), head, q, k)
        return seen

    def select(self, q: int, rows: Tensor, layer: int) -> Tensor | None:
        return None


def _mask(*, mask_function: Callable[..., Tensor], **rest: Any) -> ModelMask:
    """transformers asks this for a mask; what it gets, it hands on to `_attention`."""
    return ModelMask(mask_function)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers calls this per layer with (1, heads, T, D) of the new tokens only; the rest is in our memory."""
    now = _now.get()
    if now is None:
        raise RuntimeError("a wrapped model was called outside of a pass")
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise Unsuited("does not number its layers")
    if isinstance(attention_mask, Tensor):
        raise Unsuited("adds numbers of its own to the attention scores")
    if query.shape[2] != key.shape[2]:
        raise Unsuited("has keys of another length than its text")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    D = now.append(layer, key, value)
    span, batch = now.span, now.batch
    patterns: tuple[Pattern, ...] = span.patterns
    if attention_mask is None:
        patterns = span.all_patterns(sliding_window)
    elif attention_mask.function is not causal_mask_function:
        patterns = (*patterns, attention_mask)
    q = widened(query[0].transpose(0, 1), D)
    rule = ScoreRule(scale, softcap, s_aux)
    y = attention(q, now.rows(layer), batch.positions, span, now.slots[layer], patterns, rule)
    return y.view(1, query.shape[2], query.shape[1], D)[..., : value.shape[-1]], None


class _Told(Cache):
    """A cache that knows how long the text is and keeps nothing."""

    def __init__(self, current: Pass) -> None:
        super().__init__(layers=[])
        self.now, self.past = current, int(current.batch.positions[0])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *rest: Any, **more: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer: int = 0) -> int:
        return self.past

    def get_query_offset(self, layer: int = 0) -> int:
        return self.past

    def get_mask_sizes(self, length: int, layer: int = 0) -> tuple[int, int]:
        return self.past + length, 0

    def has_previous_state(self, *where: Any, **more: Any) -> bool:
        self._state()

    def get_conv_state(self, *where: Any, **more: Any) -> Tensor:
        self._state()

    def get_recurrent_state(self, *where: Any, **more: Any) -> Tensor:
        self._state()

    def update_conv_state(self, *what: Any, **more: Any) -> Tensor:
        self._state()

    def update_recurrent_state(self, *what: Any, **more: Any) -> Tensor:
        self._state()

    def update_indexer(self, *what: Any, **more: Any) -> Tensor:
        raise Unsuited(INDEX, final=True)

    def _state(self) -> NoReturn:
        raise Unsuited(STATE, final=True)


class _Kept(_Told):
    """A cache whose keys and values are our rows."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *rest: Any, **more: Any
    ) -> tuple[Tensor, Tensor]:
        key, value = key_states, value_states
        self.now.append(layer_idx, key, value)
        rows = self.now.rows(layer_idx)
        return rows.k[None, ..., : key.shape[-1]].to(key.dtype), rows.v[None, ..., : value.shape[-1]].to(value.dtype)


class Seam:
    """One of the two ways in."""

    name: ClassVar[str]
    abilities: ClassVar[frozenset[Capability]]
    cache: ClassVar[type[_Told]]
    implementation: ClassVar[str]

    @classmethod
    def enter(cls, model: Any) -> None:
        """Let a model's attention take this way from now on."""
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, _mask)
        attend_by(model, cls.implementation)


class AttentionSeam(Seam):
    name = "attention"
    abilities = THROUGH_ATTENTION
    cache = _Told
    implementation = NAME


class CacheSeam(Seam):
    name = "cache"
    abilities = THROUGH_CACHE
    cache = _Kept
    implementation = "eager"


SEAMS: tuple[type[Seam], ...] = (AttentionSeam, CacheSeam)


def attend_by(model: Any, implementation: str) -> None:
    """Make every part of a model attend by what is registered under this name."""
    for config in {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values():
        config._attn_implementation_internal = implementation

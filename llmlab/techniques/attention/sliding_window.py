from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from llmlab.runtime.configurable import knob
from llmlab.runtime.roles import UNBOUNDED, AttentionPattern


@dataclass(frozen=True)
class SlidingWindow(AttentionPattern):
    """Sliding window.

    Idea: What a word needs is mostly near it. Each token looks at the latest `width` tokens only, and a stack of layers
    still carries news further: l layers reach back l · `width` tokens.
    Method: Query q sees key k where q − k < `width`, or where k is one of the first `sinks` tokens; while decoding only
    those rows are read.
    What to look for: Time per pass on a long prompt against the text. With `sinks` at 0 the text falls apart as soon as
    the first tokens are out of sight; the KV cache does not shrink, because nothing is dropped.
    Differences from the paper: Longformer and Mistral train with their window; here a model that never had one gets it.
    Prompts are still read with a mask over all rows, which saves nothing there.
    """

    covers = ("https://arxiv.org/abs/2004.05150", "table1-sparse-attention")
    claim = "Each token looks at the latest tokens only; the cache keeps them all."
    claim_zh = "每个词元只看最近的词元；缓存仍保留全部。"
    noop_settings = {"width": UNBOUNDED}
    biting_settings = {"width": 9, "sinks": 1}
    main_knob = "width"

    width: int = knob(256, 1, UNBOUNDED, "positions that a token sees, its own included")
    sinks: int = knob(4, 0, 64, "first tokens that every token sees")

    def visible(self, q: Tensor, k: Tensor, layer: int, head: Tensor) -> Tensor:
        return (q - k < self.width) | (k < self.sinks)

    def select(self, q: int, rows: Tensor, layer: int) -> Tensor | None:
        return ((q - rows < self.width) | (rows < self.sinks)).any(0).nonzero().flatten()

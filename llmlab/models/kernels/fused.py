"""Which blocks the kernels for processors can compute: softmax attention with a gated feed-forward block."""

from __future__ import annotations

from llmlab.models.block import Block
from llmlab.models.feed_forward.gated import GatedFeedForward
from llmlab.models.mixers.attention import Attention


def fused_parts(block: Block) -> tuple[Attention, GatedFeedForward] | None:
    """The two parts of such a block; None for a block of another kind, which runs as it stands."""
    mixer, feed = block.mixer, block.feed_forward
    return (mixer, feed) if isinstance(mixer, Attention) and isinstance(feed, GatedFeedForward) else None

"""One token of one sequence in shapes that stay the same from pass to pass: what a CUDA graph can replay.

On a GPU a small model's pass is bound by starting its hundreds of kernels, and a graph starts them all at once
(gpt-fast does the same by way of a compiler). The memory's buffers are attended to whole, with a mask for the room
behind the last row; when they grow, a new graph is captured. Without a GPU the same step runs uncaptured, which is how
it is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llmlab.kv.memory import Memory
from llmlab.models.batch import Batch
from llmlab.models.block import Block
from llmlab.models.embedding import EmbeddingAndHead
from llmlab.models.kernels.fused import fused_parts

WARM = 2
"""Passes before a capture, so that libraries set up what they set up once."""


def suits(blocks: Sequence[Block], batch: Batch) -> bool:
    """Whether a pass is one token of one sequence that sees everything before it, with equal rows in all layers."""
    if len(batch.spans) != 1 or len(batch.tokens) != 1 or batch.taps or batch.embeddings is not None:
        return False
    (span,) = batch.spans
    plain = span.first is not None and span.visible is None and span.watch is None and not span.patterns
    if not plain or len(set(span.memory.rows())) != 1:
        return False
    parts = [fused_parts(block) for block in blocks]
    return all(p is not None and p[0].window is None for p in parts)


class CudaGraphStep:
    """A pass bound to a memory's buffers as they are now; `stale` says when they have been replaced."""

    def __init__(
        self,
        blocks: Sequence[Block],
        embedding: EmbeddingAndHead,
        head: Callable[[Tensor], Tensor],
        rotations: Tensor,
        memory: Memory,
        signature: tuple[int, ...],
    ) -> None:
        """`rotations` (positions, D/2); `head` from hidden states to logits; `signature` as `stale` compares it."""
        self.blocks, self.embedding, self.head, self.rotations, self.memory = blocks, embedding, head, rotations, memory
        self.device = rotations.device
        with torch.inference_mode(False):
            self.token, self.position, self.held = (
                torch.zeros(1, dtype=torch.long, device=self.device) for _ in range(3)
            )
        self.signature = (*signature, *self._addresses())
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits = torch.empty(0)

    def _addresses(self) -> tuple[int, ...]:
        return (self.rotations.data_ptr(), *(rows.storage.address() for rows in self.memory.layers))

    def stale(self, memory: Memory, rotations: Tensor, signature: tuple[int, ...]) -> bool:
        if memory is not self.memory or rotations.data_ptr() != self.rotations.data_ptr():
            return True
        return self.signature != (*signature, *self._addresses())

    def __call__(self, token: Tensor, position: int, held: int) -> Tensor:
        """Logits (1, V) after `token` (1,), whose row the memory has made room for already."""
        self.token.copy_(token)
        self.position.fill_(position)
        self.held.fill_(held)
        if self.device.type != "cuda":
            return self.compute()
        if self.graph is None:
            self._capture()
        assert self.graph is not None
        self.graph.replay()
        return self.logits.clone()

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM):  # each pass writes the same row, so doing it again changes nothing
                self.compute()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = self.compute()

    def compute(self) -> Tensor:
        """The layers as `Block` has them, over whole buffers."""
        h = self.embedding.lookup(self.token)
        turn = self.rotations[self.position][:, None, :]
        room = self.memory.layers[0].storage.capacity
        mask = (torch.arange(room, device=h.device) <= self.held)[None, None, None, :]
        for block, rows in zip(self.blocks, self.memory.layers, strict=True):
            parts = fused_parts(block)
            assert parts is not None
            mixer, feed = parts
            q, k, v = mixer.project(block.norm_mixer(h), turn)
            rows.storage.append_at(self.held, k.transpose(0, 1), v.transpose(0, 1))
            y = rows.storage.attend_whole(q.transpose(0, 1)[None], mask)  # (1, H, 1, D)
            h = h + mixer.out(y.reshape(1, -1).float())
            h = h + feed.feed(block.norm_feed(h))
        return self.head(h)

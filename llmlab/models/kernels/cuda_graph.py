"""One token of one sequence in shapes that stay the same from pass to pass: what a CUDA graph can replay.

On a GPU a small model's pass is bound by starting its hundreds of kernels, and a graph starts them all at once
(gpt-fast does the same by way of a compiler). The memory's buffers are attended to whole, with a mask for the room
behind the last row; when they grow, a new graph is captured. Without a GPU the same step runs uncaptured, which is how
it is tested.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.models.kernels.reference import rotate

if TYPE_CHECKING:
    from llmlab.kv.memory import Memory
    from llmlab.models.batch import Batch
    from llmlab.models.decoder import Decoder, Depth

WARM = 2
"""Passes before a capture, so that libraries set up what they set up once."""


def suits(model: Decoder, batch: Batch, depth: Depth | None, last: int | None) -> bool:
    """Whether a pass is one token of one sequence that sees everything before it, with equal rows in all layers."""
    if depth is not None or last == 0 or len(batch.spans) != 1 or len(batch.tokens) != 1:
        return False
    (span,) = batch.spans
    plain = span.first is not None and span.visible is None and span.watch is None and not span.patterns
    return plain and not any(model.shape.window) and len(set(span.memory.rows())) == 1


class Step:
    """A pass bound to a memory's buffers as they are now; `stale` says when they have been replaced."""

    def __init__(self, model: Decoder, memory: Memory, best: int) -> None:
        self.model, self.memory, self.best = model, memory, best
        with torch.inference_mode(False):
            self.token, self.position, self.held = (
                torch.zeros(1, dtype=torch.long, device=model.device) for _ in range(3)
            )
        self.signature = self._signature()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits = torch.empty(0)

    def _signature(self) -> tuple[int, ...]:
        tables = (self.model.rotations.data_ptr(), len(self.model.layers))
        return (*tables, *(rows.keys.data_ptr() for rows in self.memory.layers))

    def stale(self, memory: Memory, best: int) -> bool:
        return memory is not self.memory or best != self.best or self.signature != self._signature()

    def __call__(self, token: Tensor, position: int, held: int) -> Tensor:
        """Logits (1, V) after `token` (1,), whose row the memory has made room for already."""
        self.token.copy_(token)
        self.position.fill_(position)
        self.held.fill_(held)
        if self.model.device.type != "cuda":
            return self.compute()
        if self.graph is None:
            self._capture()
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
        """The layers as `decoder.Block` has them, over whole buffers."""
        model, s = self.model, self.model.shape
        H, KV, D = s.heads, s.kv_heads, s.head_size
        h = model.embedding.lookup(self.token)
        turn = model.rotations[self.position][:, None, :]
        room = self.memory.layers[0].capacity
        mask = (torch.arange(room, device=h.device) <= self.held)[None, None, None, :]
        for block, rows in zip(model.layers, self.memory.layers, strict=True):
            qkv = block.qkv(block.norm_attention(h)).view(1, H + 2 * KV, D)
            q, k, v = qkv.split([H, KV, KV], 1)
            if block.norm_q is not None:
                q, k = block.norm_q(q), block.norm_k(k)
            q, k = (rotate(x, turn) for x in (q, k))
            for buffer, new in ((rows.keys, k), (rows.values, v)):
                buffer.index_copy_(1, self.held, new.transpose(0, 1).to(buffer.dtype))
            q = q.transpose(0, 1)[None].to(rows.keys.dtype)  # (1, H, 1, D)
            y = F.scaled_dot_product_attention(q, rows.keys[None], rows.values[None], mask, enable_gqa=H > KV)
            h = h + block.out(y.reshape(1, H * D).float())
            gate, up = block.gate_up(block.norm_feed(h)).chunk(2, -1)
            h = h + block.down(F.silu(gate) * up)
        return model.head(h, self.best)

"""The least time that a pass can take: its bytes and its arithmetic against what this machine was measured to do."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from llmlab.models.formats.linear import nbytes
from llmlab.runtime.clock import Clock


@dataclass(frozen=True)
class Machine:
    """Peak rates of this machine as measured: bytes read from memory per second, float32 operations per second."""

    bytes_per_second: float
    flops_per_second: float

    def seconds(self, nbytes: float, flops: float) -> float:
        """The roofline: a pass takes at least as long as its bytes and at least as long as its arithmetic.

        Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009.
        """
        return max(nbytes / self.bytes_per_second, flops / self.flops_per_second)


@cache  # one entry per device
def machine(device: str = "cpu") -> Machine:
    """Measure this machine once per process (about a tenth of a second)."""
    big = torch.ones(12 << 20, dtype=torch.int64, device=device)
    square = torch.randn(1024, 1024, device=device)
    clock = Clock(device)

    def best(work: Any, times: int) -> float:
        fastest = 1e9
        for _ in range(times):
            start = clock()
            work()
            fastest = min(fastest, clock() - start)
        return fastest

    read = best(big.sum, 4)
    product = best(lambda: square @ square, 3)
    return Machine(big.nbytes / read, 2 * 1024**3 / product)


def flops_per_token(shape: Any, layers: int, rows: int) -> float:
    """Multiplications and additions of one token's pass with `rows` rows in memory."""
    attention = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_size * shape.width
    feed = 3 * shape.width * shape.feed_forward
    per_layer = 2 * (attention + feed) + 4 * rows * shape.heads * shape.head_size
    return float(layers * per_layer + 2 * shape.vocab * shape.width)


def least_seconds(model: Any, rows: int) -> float:
    """What this machine's roofline allows a pass of one token with `rows` rows in memory, whatever the engine does."""
    rates, shape = machine(str(model.device)), getattr(model, "shape", None)
    if shape is None:  # a wrapped model does not tell its shape; its weights are most of what is read
        return rates.seconds(model.nbytes, 0)
    layers = len(model.layers)
    looked_up = 0 if model.embedding.head is model.embedding.embed else nbytes(model.embedding.embed)
    kv = layers * rows * 2 * shape.kv_heads * shape.head_size * 4
    return rates.seconds(model.nbytes - looked_up + kv, flops_per_token(shape, layers, rows))

"""The key-value store of one sequence."""

from __future__ import annotations

from collections.abc import Sequence

from llmlab.kv.pool import Pool
from llmlab.kv.rows import Rows


class Memory:
    """The key-value store of one sequence: one `Rows` per layer, and the position that the next token takes."""

    def __init__(self, layers: list[Rows]) -> None:
        self.layers = layers
        self.next_position = 0

    def rows(self) -> list[int]:
        """Rows held, per layer."""
        return [layer.count for layer in self.layers]

    @property
    def longest(self) -> int:
        return max((layer.count for layer in self.layers), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that exist, whole buffers included."""
        return sum(layer.nbytes for layer in self.layers)

    @staticmethod
    def pooled(memories: Sequence[Memory]) -> None:
        """Let these sequences, which must be alike, share their tensors; each stays what it is."""
        for rows in zip(*(memory.layers for memory in memories), strict=True):
            Pool(list(rows))

    def restore(self, rows: Sequence[int]) -> None:
        """Take back everything appended since `rows()` said this."""
        for layer, n in zip(self.layers, rows, strict=True):
            layer.keep(range(n))

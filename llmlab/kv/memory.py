"""What a model remembers of one sequence: per layer its rows of keys and values, or its state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from llmlab.kv.pool import Pool
from llmlab.kv.rows import Rows


class LayerMemory(Protocol):
    """What every layer's memory can do, whether it keeps rows (`Rows`) or a sum (`LinearState`)."""

    @property
    def count(self) -> int:
        """Rows held."""

    @property
    def nbytes(self) -> int: ...

    def read_bytes(self, count: int) -> int:
        """Bytes that attending to so many rows reads at least."""

    def mark(self) -> int:
        """A snapshot, to come back to by `restore`; taking one costs nothing."""

    def restore(self, mark: int) -> None: ...

    def commit(self, mark: int, passed: int, kept: list[int], first: int) -> None: ...

    @property
    def settled(self) -> int:
        """The mark of what has been settled."""

    def settle(self) -> None:
        """What has been committed will not be taken back."""

    def clear(self) -> None: ...


class Memory:
    """The memory of one sequence: one `LayerMemory` per layer, and the position that the next token takes."""

    def __init__(self, layers: list[Rows]) -> None:
        """`layers`: Rows; a layer that keeps a state has a `LinearState` there, which has no rows to look at."""
        self.layers = layers
        self.next_position = 0
        self.whole = 0
        """Tokens that the text had when it was last read from its start: rotations may go by it."""

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

    def begun(self, positions: Tensor) -> int:
        """`whole`, before a pass at these positions; a pass over an empty memory begins a text."""
        if not self.whole and len(positions):
            self.whole = int(positions.max()) + 1
        return self.whole

    @staticmethod
    def pooled(memories: Sequence[Memory]) -> None:
        """Let these sequences, which must be alike, share their tensors; each stays what it is."""
        for rows in zip(*(memory.layers for memory in memories), strict=True):
            if isinstance(rows[0], Rows):
                Pool(list(rows))

    def mark(self) -> list[int]:
        """A snapshot of every layer."""
        return [layer.mark() for layer in self.layers]

    def restore(self, marks: Sequence[int]) -> None:
        """Take back everything appended since `mark()` said this."""
        for layer, mark in zip(self.layers, marks, strict=True):
            layer.restore(mark)

    def commit(self, marks: Sequence[int], passed: int, kept: list[int]) -> None:
        """Of the last pass, of `passed` rows, keep the rows `kept`; the next token follows them."""
        if len(kept) < passed:  # where nothing is dropped, every layer has what it should
            for layer, mark in zip(self.layers, marks, strict=True):
                layer.commit(mark, passed, kept, self.next_position)
        self.settle(len(kept))

    def settle(self, tokens: int) -> None:
        """The last `tokens` tokens are committed for good."""
        self.next_position += tokens
        for layer in self.layers:
            layer.settle()

    def rewind(self, held: int) -> int:
        """Go back to the first `held` tokens; how many remain. Where a layer keeps a state, which forgets nothing that
        has been settled, that is all that have been, or none."""
        if any(not isinstance(layer, Rows) for layer in self.layers):
            if held < self.next_position:
                self.clear()
                return 0
            self.restore([layer.settled for layer in self.layers])
            return held
        held = min(held, self.longest)
        self.restore([held] * len(self.layers))
        self.next_position = held
        return held

    def copy_from(self, other: Memory) -> None:
        """Take what another memory holds of a sequence into this one, which is empty."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.copy_from(theirs)

    def clear(self) -> None:
        """Forget the sequence; the buffers stay."""
        for layer in self.layers:
            layer.clear()
        self.next_position = self.whole = 0

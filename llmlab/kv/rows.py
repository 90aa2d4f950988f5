"""The rows of one layer: their keys and values in a storage, and where each stands.

One verb, `keep`: rollback, choosing a path of a tree and eviction are all that verb.

Shapes: H key-value heads, Q new rows, S rows, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llmlab.kv.row_index import RowIndex
from llmlab.kv.storage import BLOCK, PlainStorage


@dataclass(frozen=True)
class Tail:
    """What a pass over a tree leaves: the first `held` rows, then the rows `picks` (n,), which stand at the positions
    `first`, `first + 1`, …"""

    held: int
    picks: Tensor
    first: int


class Resizable(Protocol):
    """What rows ask for room where they share their tensors with others."""

    def resize(self, capacity: int) -> None: ...


class Rows:
    """The keys and values of one layer, with each row's position and whatever statistics a policy keeps about it."""

    def __init__(self, storage: PlainStorage, device: torch.device) -> None:
        self.count = self.settled = 0
        self.pool: Resizable | None = None
        self.storage, self.heads = storage, storage.heads
        self.index = RowIndex(storage.heads, device)

    @property
    def k(self) -> Tensor:
        """(H, S, D) keys, rotated to their positions; to read."""
        return self.storage.keys(self.count)

    @property
    def v(self) -> Tensor:
        """(H, S, D) values; to read."""
        return self.storage.values(self.count)

    @property
    def positions(self) -> Tensor:
        """(H, S) the position of each row; heads differ once a policy kept different rows per head."""
        return self.index.positions(self.count)

    @property
    def nbytes(self) -> int:
        return self.storage.nbytes + self.index.nbytes

    def read_bytes(self, count: int) -> int:
        """Bytes that attending to so many of the rows reads at least, in the form that is attended to."""
        return self.storage.read_bytes(count)

    def stat(self, name: str) -> Tensor:
        """(H, S) float32 that follows its rows through `keep`; zero for rows that nobody has written to."""
        return self.index.stat(name)[:, : self.count]

    # Growing ------------------------------------------------------------------------------------------------------

    def append(self, kv: Tensor, positions: Tensor | range) -> None:
        """kv (2, H, Q, D) and the positions of Q new rows: (Q,), or a range where they follow one another."""
        start = self._grow(kv.shape[2], positions)
        self.storage.append(start, kv)

    def append_one(self, kv: Tensor, position: int) -> None:
        """As `append` for one row, (2, H, D)."""
        start, index = self.count, self.index
        if start == index.ordered == position and start < self.storage.capacity and not index.stats:
            self.count = index.ordered = start + 1
        else:
            self._grow(1, range(position, position + 1))
        self.storage.append_one(start, kv)

    def reclaim(self, positions: Tensor | range) -> None:
        """Count rows again that were taken back and lie in the storage as they were, or that a graph is to write."""
        self._grow(len(positions), positions)

    def write(self, start: int, kv: Tensor) -> None:
        """Put kv (2, H, Q, D) into the rows from `start` on, which exist already."""
        self.storage.append(start, kv)

    def _grow(self, n: int, positions: Tensor | range) -> int:
        start, self.count = self.count, self.count + n
        if self.count > self.storage.capacity:
            self._resize(self.count + max(0, self.count // 8 - BLOCK), start)
        self.index.append(start, self.count, positions)
        return start

    # Shrinking ----------------------------------------------------------------------------------------------------

    def keep(self, rows: range | Tensor | Tail) -> None:
        """Keep these rows in this order: `range(n)` for the first n, (n,) for all heads, (H, n) per head, or a Tail."""
        if isinstance(rows, range):
            self._keep_first(rows)
        elif isinstance(rows, Tail):
            picks = rows.picks.to(self.k.device)
            self.storage.keep_tail(rows.held, picks)
            self.index.keep_tail(rows.held, picks, rows.first)
            self.count = rows.held + len(picks)
        else:
            rows = rows.to(self.k.device)
            self.storage.keep(rows, self.count)
            self.index.keep(rows, self.count)
            self.count = n = rows.shape[-1]
            if self.storage.capacity > 2 * n + BLOCK and self.pool is None:
                self._resize(n, n)

    def _keep_first(self, rows: range) -> None:
        n = len(rows)
        if rows.start or rows.step != 1 or n > self.count:
            raise IndexError(f"keep wants a prefix of the {self.count} rows, not {rows}")
        self.count = n
        self.storage.truncated(n)
        self.index.truncate(n)

    def mark(self) -> int:
        """What `restore` takes to come back to now."""
        return self.count

    def restore(self, mark: int) -> None:
        """Take back every row that was appended since `mark` said this."""
        self.keep(range(mark))

    def commit(self, mark: int, passed: int, kept: list[int], first: int) -> None:
        """Of the last pass, of `passed` rows, keep the rows `kept`, which then stand from position `first` on.

        `mark` is from before the pass; a layer that the pass left out has nothing to drop.
        """
        if self.count == mark:
            return
        held = self.count - passed  # rows that earlier passes had left out may have been made up for
        if kept == list(range(len(kept))):
            self.keep(range(held + len(kept)))
        else:
            self.keep(Tail(held, held + torch.tensor(kept), first))

    def settle(self) -> None:
        """Remember how many rows are there for good."""
        self.settled = self.count

    def copy_from(self, other: Rows) -> None:
        """Append another layer's rows, in their order, at the positions that they have there."""
        self.append(torch.stack([other.k, other.v]), other.positions[0])

    def clear(self) -> None:
        """Forget every row."""
        self.restore(0)

    def reposition(self, positions: Tensor, rotation: Tensor) -> None:
        """Give every row a new position: positions (S,) and the rotation (H, S, D/2) complex from old to new."""
        self.storage.rotate(self.count, rotation)
        self.index.move(positions)

    # Room ---------------------------------------------------------------------------------------------------------

    def _resize(self, wanted: int, held: int) -> None:
        capacity = -(-wanted // BLOCK) * BLOCK
        if self.pool is None:
            self.storage.resize(capacity, held)
            self.index.resize(capacity, held)
        else:
            self.pool.resize(capacity)

    def share(self, kv: Tensor) -> None:
        """Go on in `kv` (2, H, capacity, D), a part of a pool's tensor, which holds the rows already."""
        self.storage.rebind(kv)
        self.index.resize(kv.shape[2], self.count)

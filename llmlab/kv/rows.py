"""Keys and values. One verb, `keep`: rollback, choosing a path of a tree and eviction are all that verb.

Shapes: H key-value heads, S rows, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

BLOCK = 64
"""Rows by which buffers grow at least. Small enough that reported bytes follow the rows; a long memory grows by an
eighth, or copying it would take its own part of every token's time."""


DEEP = 1024
"""Rows from which on a look back is in bfloat16, beside weights below float32: there attention is bound by reading keys
and values. Below, a product in bfloat16 costs more to begin than it saves (36 µs a layer against 12 at 64 rows)."""
SLOTS = 16
"""Rows to come of which views are made at once."""


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

    def __init__(self, heads: int, head_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.count = 0
        self.pool: Resizable | None = None
        self._kv = torch.empty(2, heads, 0, head_size, dtype=dtype, device=device)
        self._positions = torch.empty(heads, 0, dtype=torch.long, device=device)
        self._stats: dict[str, Tensor] = {}
        self._brief: tuple[Tensor, Tensor] | None = None
        self._briefed = 0  # how many rows the brief form has, which are as they were when it got them
        # Most rows stand at the position of their number. Those are written down only when somebody asks: of the first
        # `_ordered` rows, which all do, `_written` have been.
        self._ordered = self._written = 0
        self._measure()

    def _measure(self) -> None:
        self._k, self._v = self._kv
        self._capacity = self._kv.shape[2]
        self._slots: tuple[Tensor, ...] = ()
        self._slots_from = -1
        # With the room behind the last row, for those who slice themselves: keys (H, capacity, D), the same across
        # (H, D, capacity), and values (H, capacity, D).
        self.keys, self.across, self.values = self._k, self._k.transpose(1, 2), self._v
        self._bytes = sum(t.nbytes for t in (self._kv, self._positions, *self._stats.values(), *(self._brief or ())))

    @property
    def k(self) -> Tensor:
        """(H, S, D) keys, rotated to their positions."""
        return self._k[:, : self.count]

    @property
    def v(self) -> Tensor:
        """(H, S, D) values."""
        return self._v[:, : self.count]

    @property
    def positions(self) -> Tensor:
        """(H, S) the position of each row; heads differ once a policy kept different rows per head."""
        if self._written < self._ordered:
            with torch.inference_mode():  # where the buffer was made, or it could not be written to
                place = torch.arange(self._written, self._ordered, device=self._positions.device)
                self._positions[:, self._written : self._ordered] = place
            self._written = self._ordered
        return self._positions[:, : self.count]

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def nbytes(self) -> int:
        return self._bytes

    def stat(self, name: str) -> Tensor:
        """(H, S) float32 that follows its rows through `keep`; zero for rows that nobody has written to."""
        if name not in self._stats:
            self._stats[name] = torch.zeros(self._k.shape[:2], dtype=torch.float32, device=self._k.device)
            self._measure()
        return self._stats[name][:, : self.count]

    def brief(self, n: int) -> tuple[Tensor, Tensor]:
        """The first n rows in bfloat16: keys (H, D, m), which lie along the sequence, and values (H, m, D).

        m is n rounded up to whole blocks, as each new shape of a product costs more to set up than to compute; the rows
        from n on are of no account. The copy is kept, and counted; each call converts the rows that are new to it.
        """
        m = -(-n // BLOCK) * BLOCK
        if self._brief is None or self._brief[0].shape[2] < m:
            H, _, D = self._k.shape
            with torch.inference_mode(False):  # it may be written to outside of inference mode as well
                keys = torch.zeros(H, D, self._capacity, dtype=torch.bfloat16, device=self._k.device)
                values = torch.zeros(H, self._capacity, D, dtype=torch.bfloat16, device=self._k.device)
            self._brief = keys, values
            self._briefed = 0
            self._measure()
        keys, values = self._brief
        if self._briefed < n:
            first, new = self._briefed, n - self._briefed
            keys.narrow(2, first, new).copy_(self.across.narrow(2, first, new))
            values.narrow(1, first, new).copy_(self._v.narrow(1, first, new))
            self._briefed = n
        return keys.narrow(2, 0, m), values.narrow(1, 0, m)

    def append(self, k: Tensor, v: Tensor, positions: Tensor | range) -> None:
        """k, v (H, Q, D) and the positions of Q new rows: (Q,), or a range where they follow one another."""
        start = self._grow(k.shape[1], positions)
        self._k[:, start : self.count] = k
        self._v[:, start : self.count] = v

    def append_both(self, kv: Tensor, positions: Tensor | range) -> None:
        """As `append`, with keys and values in one tensor (2, H, Q, D)."""
        n = kv.shape[2]
        start = self._grow(n, positions)
        self._kv.narrow(2, start, n).copy_(kv)

    def extend(self, positions: range) -> None:
        """Make room for rows whose keys and values somebody writes into `keys` and `values` himself."""
        self._grow(len(positions), positions)

    def append_one(self, kv: Tensor, position: int) -> None:
        """As `append` for one row, (2, H, D): decoding does little else, and views of the rows to come cost time."""
        start = self.count
        if start == self._ordered == position and start < self._capacity and not self._stats:
            self.count = self._ordered = start + 1
        else:
            self._grow(1, range(position, position + 1))
        first = start - start % SLOTS
        if first != self._slots_from:
            self._slots, self._slots_from = self._kv[:, :, first : first + SLOTS].unbind(2), first
        self._slots[start - first].copy_(kv)

    def write(self, start: int, kv: Tensor) -> None:
        """Put kv (2, H, Q, D) into the rows from `start` on, which exist already."""
        self._briefed = min(self._briefed, start)
        self._kv[:, :, start : start + kv.shape[2]] = kv

    def _grow(self, n: int, positions: Tensor | range) -> int:
        start, self.count = self.count, self.count + n
        if self.count > self._capacity:
            self._resize(self.count + max(0, self.count // 8 - BLOCK))
        if isinstance(positions, range) and positions.start == start == self._ordered:
            self._ordered = self.count
        else:
            if isinstance(positions, range):
                positions = torch.arange(positions.start, positions.stop, device=self._positions.device)
            self._positions[:, start : self.count] = positions
        for s in self._stats.values():
            s[:, start : self.count] = 0
        return start

    def keep(self, rows: range | Tensor | Tail) -> None:
        """Keep these rows in this order: `range(n)` for the first n, (n,) for all heads, (H, n) per head, or a Tail."""
        if isinstance(rows, range):
            n = len(rows)
            if rows.start or rows.step != 1 or n > self.count:
                raise IndexError(f"keep wants a prefix of the {self.count} rows, not {rows}")
            self.count = n
            if n < self._briefed:
                self._briefed = n
            if n < self._ordered:
                self._ordered, self._written = n, min(self._written, n)
            return
        if isinstance(rows, Tail):
            self._keep_tail(rows)
            return
        rows = rows.to(self._k.device)
        n = rows.shape[-1]
        if self._brief:
            self._brief, self._briefed = None, 0
            self._measure()
        everything = (self._k, self._v, *self._with_positions())
        if rows.dim() == 1:
            for t in everything:
                t[:, :n] = t[:, : self.count].index_select(1, rows)
        else:
            head = torch.arange(self._k.shape[0], device=rows.device)[:, None]
            for t in everything:
                t[:, :n] = t[head, rows]
        self.count, self._ordered, self._written = n, 0, 0
        if self.capacity > 2 * n + BLOCK and self.pool is None:
            self._resize(n)

    def _with_positions(self) -> tuple[Tensor, ...]:
        _ = self.positions  # writes them down
        return (self._positions, *self._stats.values())

    def _keep_tail(self, tail: Tail) -> None:
        n, picks = tail.held + len(tail.picks), tail.picks.to(self._k.device)
        self._briefed = min(self._briefed, tail.held)
        self._kv[:, :, tail.held : n] = self._kv[:, :, picks]
        rest = self._stats.values() if tail.held == self._ordered == tail.first else self._with_positions()
        for t in rest:
            t[:, tail.held : n] = t[:, picks]
        self.count = n
        if tail.held == self._ordered == tail.first:
            self._ordered = n

    def reposition(self, positions: Tensor, rotate: Tensor) -> None:
        """Give every row a new position: positions (S,) and the rotation (H, S, D/2) complex from old to new."""
        pairs = torch.view_as_complex(self.k.float().reshape(*self.k.shape[:2], -1, 2))
        self._k[:, : self.count] = torch.view_as_real(pairs * rotate).flatten(2).to(self._k.dtype)
        self._positions[:, : self.count] = positions
        self._ordered = self._written = self._briefed = 0

    def _resize(self, wanted: int) -> None:
        capacity = -(-wanted // BLOCK) * BLOCK
        if self.pool is None:
            self._take(self._moved(self._kv, capacity, 2), capacity)
        else:
            self.pool.resize(capacity)

    def _moved(self, t: Tensor, capacity: int, axis: int) -> Tensor:
        new = t.new_zeros(*t.shape[:axis], capacity, *t.shape[axis + 1 :])
        held = min(self.count, t.shape[axis], capacity)
        new.narrow(axis, 0, held).copy_(t.narrow(axis, 0, held))
        return new

    def _take(self, kv: Tensor, capacity: int) -> None:
        """Go on with `kv` (2, H, capacity, D), to which the rows have been copied."""
        self._kv, self._positions = kv, self._moved(self._positions, capacity, 1)
        self._stats = {name: self._moved(s, capacity, 1) for name, s in self._stats.items()}
        self._measure()

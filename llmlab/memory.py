"""Keys and values. One verb, `keep`: rollback, choosing a path of a tree and eviction are all that verb.

Shapes: H key-value heads, S rows, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 64
"""Rows by which buffers grow. Small enough that reported bytes follow the rows, large enough that growth is rare."""


class Rows:
    """The keys and values of one layer, with each row's position and whatever statistics a policy keeps about it."""

    def __init__(self, heads: int, head_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.count = 0
        self._k = torch.empty(heads, 0, head_size, dtype=dtype, device=device)
        self._v = torch.empty(heads, 0, head_size, dtype=dtype, device=device)
        self._positions = torch.empty(heads, 0, dtype=torch.long, device=device)
        self._stats: dict[str, Tensor] = {}

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
        return self._positions[:, : self.count]

    @property
    def capacity(self) -> int:
        return self._k.shape[1]

    @property
    def nbytes(self) -> int:
        tensors = [self._k, self._v, self._positions, *self._stats.values()]
        return sum(t.numel() * t.element_size() for t in tensors)

    def stat(self, name: str) -> Tensor:
        """(H, S) float32 that follows its rows through `keep`; zero for rows that nobody has written to."""
        if name not in self._stats:
            self._stats[name] = torch.zeros(self._k.shape[:2], dtype=torch.float32, device=self._k.device)
        return self._stats[name][:, : self.count]

    def append(self, k: Tensor, v: Tensor, positions: Tensor) -> None:
        """k, v (H, Q, D) and positions (Q,) of Q new rows."""
        start, self.count = self.count, self.count + k.shape[1]
        if self.count > self.capacity:
            self._resize(-(-self.count // BLOCK) * BLOCK)
        self._k[:, start : self.count] = k
        self._v[:, start : self.count] = v
        self._positions[:, start : self.count] = positions
        for s in self._stats.values():
            s[:, start : self.count] = 0

    def keep(self, rows: range | Tensor) -> None:
        """Keep these rows in this order: `range(n)` for the first n, (n,) for every head, (H, n) per head."""
        if isinstance(rows, range):
            if rows != range(len(rows)) or len(rows) > self.count:
                raise IndexError(f"keep wants a prefix of the {self.count} rows, not {rows}")
            self.count = len(rows)
            return
        rows = rows.to(self._k.device)
        n = rows.shape[-1]
        if rows.dim() == 1:
            for t in (self._k, self._v, self._positions, *self._stats.values()):
                t[:, :n] = t[:, : self.count].index_select(1, rows)
        else:
            head = torch.arange(self._k.shape[0], device=rows.device)[:, None]
            for t in (self._k, self._v, self._positions, *self._stats.values()):
                t[:, :n] = t[head, rows]
        self.count = n
        if self.capacity > 2 * n + BLOCK:
            self._resize(-(-n // BLOCK) * BLOCK)

    def move(self, positions: Tensor, rotate: Tensor) -> None:
        """Give every row a new position: positions (S,) and the rotation (H, S, D/2) complex from old to new."""
        pairs = torch.view_as_complex(self.k.float().reshape(*self.k.shape[:2], -1, 2))
        self._k[:, : self.count] = torch.view_as_real(pairs * rotate).flatten(2).to(self._k.dtype)
        self._positions[:, : self.count] = positions

    def _resize(self, capacity: int) -> None:
        def moved(t: Tensor) -> Tensor:
            new = t.new_zeros(t.shape[0], capacity, *t.shape[2:])
            held = min(self.count, t.shape[1], capacity)
            new[:, :held] = t[:, :held]
            return new

        self._k, self._v, self._positions = moved(self._k), moved(self._v), moved(self._positions)
        self._stats = {name: moved(s) for name, s in self._stats.items()}


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

    def restore(self, rows: Sequence[int]) -> None:
        """Take back everything appended since `rows()` said this."""
        for layer, n in zip(self.layers, rows, strict=True):
            layer.keep(range(n))

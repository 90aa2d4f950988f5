"""Where each row of a layer's memory stands in the text, and what a policy has noted about it."""

from __future__ import annotations

import torch
from torch import Tensor


class RowIndex:
    """Positions (H, S) and named statistics (H, S) of the rows of one layer, for H key-value heads.

    Most rows stand at the position of their number. Those are written down only when somebody asks: of the first
    `ordered` rows, which all do, `_written` have been.
    """

    def __init__(self, heads: int, device: torch.device) -> None:
        self._positions = torch.empty(heads, 0, dtype=torch.long, device=device)
        self.stats: dict[str, Tensor] = {}
        self.ordered = self._written = 0
        self.nbytes = 0

    def _measure(self) -> None:
        self.nbytes = self._positions.nbytes + sum(s.nbytes for s in self.stats.values())

    def positions(self, count: int) -> Tensor:
        """(H, count) the position of each row; heads differ once a policy kept different rows per head."""
        if self._written < self.ordered:
            with torch.inference_mode():  # where the buffer was made, or it could not be written to
                place = torch.arange(self._written, self.ordered, device=self._positions.device)
                self._positions[:, self._written : self.ordered] = place
            self._written = self.ordered
        return self._positions[:, :count]

    def stat(self, name: str) -> Tensor:
        """(H, capacity) float32, zero for rows that nobody has written to; made when first asked for."""
        if name not in self.stats:
            self.stats[name] = torch.zeros_like(self._positions, dtype=torch.float32)
            self._measure()
        return self.stats[name]

    def append(self, start: int, stop: int, positions: Tensor | range) -> None:
        """Rows start..stop are new, at these positions (Q,)."""
        if isinstance(positions, range) and positions.start == start == self.ordered:
            self.ordered = stop
        else:
            if isinstance(positions, range):
                positions = torch.arange(positions.start, positions.stop, device=self._positions.device)
            self._positions[:, start:stop] = positions
        for s in self.stats.values():
            s[:, start:stop] = 0

    def truncate(self, count: int) -> None:
        if count < self.ordered:
            self.ordered, self._written = count, min(self._written, count)

    def keep(self, rows: Tensor, count: int) -> None:
        """Of the first `count` rows keep these, (n,) for all heads or (H, n) per head, in this order."""
        n = rows.shape[-1]
        for t in (self.positions(count), *self.stats.values()):
            t[:, :n] = t[:, :count].index_select(1, rows) if rows.dim() == 1 else t.gather(1, rows)
        self.ordered = self._written = 0

    def keep_tail(self, held: int, picks: Tensor, first: int) -> None:
        """Keep `held` rows and behind them `picks` (n,), which stand at the positions `first`, `first` + 1, …"""
        n = held + len(picks)
        in_order = held == self.ordered == first
        if not in_order:
            self.positions(n)
        for t in self.stats.values() if in_order else (self._positions, *self.stats.values()):
            t[:, held:n] = t[:, picks]
        if in_order:
            self.ordered = n

    def move(self, positions: Tensor) -> None:
        """The first rows stand at `positions` (S,) from now on."""
        self._positions[:, : len(positions)] = positions
        self.ordered = self._written = 0

    def resize(self, capacity: int, count: int) -> None:
        self._positions = resized(self._positions, capacity, count, 1)
        self.stats = {name: resized(s, capacity, count, 1) for name, s in self.stats.items()}
        self._measure()


def resized(t: Tensor, capacity: int, count: int, axis: int) -> Tensor:
    """A tensor with `capacity` places along `axis`, of which the first `count` are those of t as far as there are."""
    new = t.new_zeros(*t.shape[:axis], capacity, *t.shape[axis + 1 :])
    held = min(count, t.shape[axis], capacity)
    new.narrow(axis, 0, held).copy_(t.narrow(axis, 0, held))
    return new

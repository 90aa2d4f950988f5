"""The rows of several sequences in one tensor, so that a pass over all of them copies nothing together."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from llmlab.kv.rows import Rows


class Pool:
    """One layer's rows of several sequences, N of them, as (2, N, H, capacity, D).

    Its members grow together, to what the longest needs, and never shrink.
    """

    def __init__(self, members: list[Rows]) -> None:
        self.members = members
        for rows in members:
            rows.pool = self
        self.resize(max(rows.storage.capacity for rows in members))

    def resize(self, capacity: int) -> None:
        with torch.inference_mode():
            old = [rows.storage.kv for rows in self.members]
            _, heads, _, head_size = old[0].shape
            self._kv = old[0].new_zeros(2, len(self.members), heads, capacity, head_size)
            for i, (rows, kv) in enumerate(zip(self.members, old, strict=True)):
                held = min(rows.count, kv.shape[2])
                self._kv[:, i, :, :held] = kv[:, :, :held]
                rows.share(self._kv[:, i])

    def holds(self, layers: Sequence[Rows]) -> bool:
        """Whether these are the pool's members, all and in order."""
        return len(layers) == len(self.members) and all(map(operator.is_, layers, self.members))

    def append_one_each(self, kv: Tensor, positions: Sequence[int]) -> Tensor | None:
        """A row for every member, kv (2, N, H, D), at its position.

        Returns what their queries must not see of the longest member's rows, as -inf in (N·H, 1, S) with 0 elsewhere;
        None where all have equally many.
        """
        counts = [rows.count for rows in self.members]
        longest = max(counts) + 1
        for rows, position in zip(self.members, positions, strict=True):
            rows.reclaim(range(position, position + 1))
        if min(counts) + 1 == longest:
            self._kv[:, :, :, longest - 1] = kv
            return None
        self._kv[:, torch.arange(len(counts)), :, torch.tensor(counts)] = kv.transpose(0, 1)
        seen = torch.arange(longest) <= torch.tensor(counts)[:, None]
        return torch.where(seen, 0.0, -torch.inf).repeat_interleave(self._kv.shape[2], 0)[:, None]

    def attend(self, q: Tensor, mask: Tensor | None) -> Tensor:
        """A query for every member, q (N, H, G, D) times 1/√D, over its rows; `mask` as from `append_one_each`."""
        N, KV, G, D = q.shape
        keys, values = self._kv[:, :, :, : max(rows.count for rows in self.members)].flatten(1, 2)
        scores = torch.bmm(q.reshape(N * KV, G, D), keys.transpose(1, 2))
        if mask is not None:
            scores.add_(mask)
        return torch.bmm(torch.softmax(scores, -1), values).view(N, KV, G, D)

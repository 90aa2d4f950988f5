"""The rows of several sequences in one tensor, so that a pass over all of them copies nothing together."""

from __future__ import annotations

import torch

from llmlab.kv.rows import Rows


class Pool:
    """One layer's rows of several sequences in one tensor, so that a pass over all of them copies nothing together.

    Its members grow together, to what the longest needs, and never shrink. `kv` is (2, sequences, H, capacity, D).
    """

    def __init__(self, members: list[Rows]) -> None:
        self.members = members
        for rows in members:
            rows.pool = self
        self.resize(max(rows.capacity for rows in members))

    def resize(self, capacity: int) -> None:
        with torch.inference_mode():
            _, heads, _, head_size = self.members[0]._kv.shape
            self.kv = self.members[0]._kv.new_zeros(2, len(self.members), heads, capacity, head_size)
            for i, rows in enumerate(self.members):
                held = min(rows.count, rows.capacity)
                self.kv[:, i, :, :held] = rows._kv[:, :, :held]
                rows._take(self.kv[:, i], capacity)

"""The memory of a layer that keeps a sum instead of rows: linear attention's state.

Shapes: H heads, T rows of a pass, D head size, M size of a value.
"""

from __future__ import annotations

import torch
from torch import Tensor

FEW = 16
"""Rows of a pass up to which each is added up along its own path, one after the other, as decoding does."""


class LinearState:
    """S = Σ φ(k) vᵀ (H, D, M) and z = Σ φ(k) (H, D) over all settled tokens, and the rows that wait.

    Rows of a pass wait until they are settled, because a draft may be rejected: what has been added to a sum cannot be
    taken out to the bit. A state holds no rows, so that nothing can be evicted, and takes the same memory however long
    the text is (Katharopoulos et al., arXiv 2006.16236, section 3.4).
    """

    count = 0
    """Rows that a policy could drop: none."""
    pool = None
    settled = 0
    """Rows that wait when everything committed has been settled: none."""

    def __init__(self, heads: int, head_size: int, value_size: int, device: torch.device) -> None:
        self.S = torch.zeros(heads, head_size, value_size, device=device)
        self.z = torch.zeros(heads, head_size, device=device)
        self._k = torch.empty(heads, 0, head_size, device=device)
        self._v = torch.empty(heads, 0, value_size, device=device)
        self._waiting = 0  # rows behind these have been taken back, and can be reclaimed

    @property
    def nbytes(self) -> int:
        return sum(t.untyped_storage().nbytes() for t in (self.S, self.z, self._k, self._v))

    def read_bytes(self, count: int) -> int:
        """Bytes that attending reads: the sums, however long the text is."""
        return self.S.nbytes + self.z.nbytes

    def append(self, k: Tensor, v: Tensor) -> None:
        """φ(k) (H, T, D) and v (H, T, M) of a pass's rows."""
        n = self._waiting
        self._k, self._v = torch.cat([self._k[:, :n], k], 1), torch.cat([self._v[:, :n], v], 1)
        self._waiting += k.shape[1]

    def attend(self, q: Tensor, visible: Tensor) -> Tensor:
        """φ(q) (H, T, D) of the T last rows over everything before them; visible (T, T) bool is what they see of each
        other. Returns (H, T, M): equations 8 and 9 of the paper, causal."""
        T, n = q.shape[1], self._waiting
        seen = torch.ones(T, n, dtype=torch.bool, device=q.device)
        seen[:, n - T :] = visible
        if T <= FEW:
            return torch.cat([self._along(q[:, i : i + 1], seen[i].nonzero().flatten().tolist()) for i in range(T)], 1)
        weights = (q @ self._k[:, :n].transpose(1, 2)).masked_fill(~seen, 0.0)
        total = q @ self.S + weights @ self._v[:, :n]
        norm = (q @ self.z[..., None])[..., 0] + weights.sum(-1)
        return total / norm.clamp_min(1e-6)[..., None]

    def _along(self, q: Tensor, path: list[int]) -> Tensor:
        """One query (H, 1, D) after the waiting rows of its path: to the bit what it would be had they been settled."""
        S, z = self._added(path)
        return (q @ S) / (q @ z[..., None]).clamp_min(1e-6)

    def _added(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        S, z = self.S, self.z
        for i in rows:
            S = S + self._k[:, i, :, None] * self._v[:, i, None, :]
            z = z + self._k[:, i]
        return S, z

    # What every layer's memory can do -------------------------------------------------------------------------------

    def mark(self) -> int:
        """What `restore` takes to come back to now: how many rows wait."""
        return self._waiting

    def restore(self, mark: int) -> None:
        """Take back every row that was appended since `mark` said this."""
        self._waiting = mark

    def reclaim(self, positions: Tensor | range) -> None:
        """Let rows wait again that were taken back and are still there as they were."""
        self._waiting += len(positions)

    def commit(self, mark: int, passed: int, kept: list[int], first: int) -> None:
        """Of the last pass, of `passed` rows, keep the rows `kept`."""
        n = self._waiting
        if n != mark:
            rows = [*range(n - passed), *(n - passed + i for i in kept)]
            self._k, self._v, self._waiting = self._k[:, rows], self._v[:, rows], len(rows)

    def settle(self) -> None:
        """Everything that waits is committed: add it to the sums."""
        n = self._waiting
        if n <= FEW:
            self.S, self.z = self._added(list(range(n)))
        else:
            k, v = self._k[:, :n], self._v[:, :n]
            self.S, self.z = self.S + k.transpose(1, 2) @ v, self.z + k.sum(1)
        self._waiting = 0
        self._k, self._v = self._k[:, :0].clone(), self._v[:, :0].clone()

    def copy_from(self, other: LinearState) -> None:
        """Take another state's sums into this one, which is empty."""
        self.S, self.z = other.S.clone(), other.z.clone()

    def clear(self) -> None:
        """Forget everything."""
        self.S, self.z, self._waiting = torch.zeros_like(self.S), torch.zeros_like(self.z), 0

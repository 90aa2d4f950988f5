"""The memory of a layer that keeps a sum instead of rows: linear attention's state.

Shapes: H heads, T rows of a pass, D head size, M size of a value.
"""

from __future__ import annotations

import torch
from torch import Tensor


class LinearState:
    """S = Σ φ(k) vᵀ (H, D, M) and z = Σ φ(k) (H, D) over all committed tokens, and the rows not committed yet.

    Rows of a pass wait, because a draft may be rejected: what has been added to a sum cannot be taken out to the bit.
    A state holds no rows, so that nothing can be evicted, and takes the same memory however long the text is
    (Katharopoulos et al., arXiv 2006.16236, section 3.4).
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

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.S, self.z, self._k, self._v))

    def append(self, k: Tensor, v: Tensor) -> None:
        """φ(k) (H, T, D) and v (H, T, M) of a pass's rows."""
        self._k, self._v = torch.cat([self._k, k], 1), torch.cat([self._v, v], 1)

    def attend(self, q: Tensor, visible: Tensor) -> Tensor:
        """φ(q) (H, T, D) of the T last rows over everything before them; visible (T, T) bool is what they see of each
        other. Returns (H, T, M): equations 8 and 9 of the paper, causal."""
        T, waiting = q.shape[1], self._k.shape[1]
        seen = torch.ones(T, waiting, dtype=torch.bool, device=q.device)
        seen[:, waiting - T :] = visible
        weights = (q @ self._k.transpose(1, 2)).masked_fill(~seen, 0.0)
        total = q @ self.S + weights @ self._v
        norm = (q @ self.z[..., None])[..., 0] + weights.sum(-1)
        return total / norm.clamp_min(1e-6)[..., None]

    def mark(self) -> int:
        """What `restore` takes to come back to now: how many rows wait."""
        return self._k.shape[1]

    def restore(self, mark: int) -> None:
        """Take back every row that was appended since `mark` said this. 0 with nothing waiting forgets nothing."""
        self._k, self._v = self._k[:, :mark], self._v[:, :mark]

    def commit(self, mark: int, passed: int, kept: list[int], first: int) -> None:
        """Of the last pass, of `passed` rows, keep the rows `kept`."""
        waiting = self._k.shape[1]
        if waiting == mark:
            return
        rows = [*range(waiting - passed), *(waiting - passed + i for i in kept)]
        self._k, self._v = self._k[:, rows], self._v[:, rows]

    def settle(self) -> None:
        """Everything that waits is committed: add it to the sums, one row after the other, as decoding does."""
        for k, v in zip(self._k.unbind(1), self._v.unbind(1), strict=True):
            self.S = self.S + k[..., None] * v[:, None, :]
            self.z = self.z + k
        self._k, self._v = self._k[:, :0].contiguous(), self._v[:, :0].contiguous()

    def copy_from(self, other: LinearState) -> None:
        self.S, self.z = other.S.clone(), other.z.clone()
        self._k, self._v = other._k.clone(), other._v.clone()

    def clear(self) -> None:
        """Forget everything."""
        self.S, self.z = torch.zeros_like(self.S), torch.zeros_like(self.z)
        self.restore(0)

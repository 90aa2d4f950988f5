"""What every weight format has in common: float32 activations in, float32 out, the matrix stored in its own way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.models.formats.onednn import OneDnnWeight, onednn
from llmlab.models.formats.quantized_groups import Matrix, as_dense
from llmlab.models.version import Version

MANY = 12
"""Rows from which a product with the dense copy of a packed matrix beats the packed product, measured with int4."""


class Linear(nn.Module):
    """The interface. `bias` (M,) is added in float32; `takes` is the type in which the product wants its inputs.

    `version` counts changes, for what is bound to the tensors; the matrices of a model share one. `copy` is a second,
    dense form of a packed matrix for products of many rows, kept only where somebody asked for it.

    A kernel that takes only widths of a multiple of `multiple` gets the matrix with `short` more columns and the inputs
    with as many zeros: PyTorch's int8 kernel reads past the ends of a row of any other width.
    """

    takes: torch.dtype = torch.bfloat16
    multiple = 1
    inputs = 0
    """K."""
    outputs = 0
    """M."""
    short = 0
    bias: Tensor | None

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    buffers_held: tuple[str, ...] = ()
    """The names of the buffers that `_set` fills."""

    def __init__(self, weight: Matrix, bias: Tensor | None = None) -> None:
        super().__init__()
        self.version = Version()
        self.register_buffer("bias", None if bias is None else bias.float())
        self.copy: tuple[OneDnnWeight, ...] = ()
        for name in self.buffers_held:
            self.register_buffer(name, None)
        self._take(weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.many(x.to(self.takes)).float()
        return y if self.bias is None else y + self.bias

    def rowwise(self, x: Tensor) -> Tensor:
        """As `forward`, each row to the bit what it would be alone."""
        y = self.few()(x.to(self.takes)).float()
        return y if self.bias is None else y + self.bias

    def many(self, x: Tensor) -> Tensor:
        """The product (N, K) in `takes` to (N, M) by the quickest way for N rows, without the bias."""
        if self.copy and len(x) >= MANY:
            return self.copy[0](x) if len(self.copy) == 1 else torch.cat([part(x) for part in self.copy], -1)
        return self.few()(x)

    def few(self) -> Callable[[Tensor], Tensor]:
        """The product (N, K) in `takes` to (N, M), bound to the tensors of now, in which each row is as if alone."""
        product = self._product()
        return partial(_padded, short=self.short, product=product) if self.short else product

    def _product(self) -> Callable[[Tensor], Tensor]:
        """As `few`, of inputs as wide as the matrix that `_set` was given."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """The matrix (M, K) in float32 that the products stand for."""
        found = self._dense()
        return found[:, : self.inputs] if self.short else found

    def _dense(self) -> Tensor:
        """As `dense`, as wide as the matrix that `_set` was given."""
        raise NotImplementedError

    def store(self, dense: Tensor) -> None:
        """Replace the matrix by `dense` (M, K)."""
        self.version.bump()
        parts = len(self.copy)
        self.copy = ()
        self._take(dense)
        if parts:
            self.keep_copy(parts)

    def _take(self, weight: Matrix) -> None:
        """Hand the matrix on to `_set` in a width that its kernel takes; it is the last column that is repeated, which
        changes no row's or group's range."""
        self.inputs = weight.shape[1]
        self.short = -self.inputs % self.multiple
        if self.short:
            dense = as_dense(weight)
            weight = torch.cat([dense, dense[:, -1:].expand(-1, self.short)], 1)
        self._set(weight)

    def _set(self, weight: Matrix) -> None:
        raise NotImplementedError

    def keep_copy(self, parts: int = 1, source: Matrix | None = None) -> None:
        """Keep the matrix in bfloat16 too, cut into `parts` of equal rows, if that is possible and of use here.

        `source`: what this was made from, where it is still at hand: unpacking takes longer.
        """
        if not onednn(torch.bfloat16):
            return
        dense = self._bfloat16() if source is None else as_dense(source).bfloat16()
        self.copy = tuple(OneDnnWeight(part.contiguous()) for part in dense.chunk(parts))

    def _bfloat16(self) -> Tensor:
        """The matrix (M, K) in bfloat16."""
        return self.dense().bfloat16()

    @property
    def extra_bytes(self) -> int:
        """Bytes kept outside the module's buffers."""
        return self.copied_bytes

    @property
    def copied_bytes(self) -> int:
        """Bytes of the copy for products of many rows."""
        return sum(part.nbytes for part in self.copy)

    @property
    def read_bytes(self) -> int:
        """Bytes that a product of few rows reads of the matrix: all but the copy and the bias."""
        held: list[Tensor | None] = [getattr(self, name) for name in self.buffers_held]
        return sum(t.nbytes for t in held if t is not None) + self.extra_bytes - self.copied_bytes

    @property
    def read_bytes_of_many(self) -> int:
        """Bytes that a product of `MANY` rows and more reads of it."""
        return self.copied_bytes or self.read_bytes


def _padded(x: Tensor, short: int, product: Callable[[Tensor], Tensor]) -> Tensor:
    return product(F.pad(x, (0, short)))


def nbytes(module: nn.Module) -> int:
    """Bytes of the tensors that a module holds, shared ones counted once."""
    seen: dict[int, int] = {}
    for t in [*module.buffers(), *module.parameters()]:
        seen[t.data_ptr() or id(t)] = t.numel() * t.element_size()
    return sum(seen.values()) + sum(getattr(m, "extra_bytes", 0) for m in module.modules())

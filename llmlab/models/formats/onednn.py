"""oneDNN's products with a matrix in its own layout, and keeping the bits of a row apart from its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

TOGETHER = 8
"""Rows from two up to which oneDNN's bfloat16 products add up in one order, so that each row gets the same bits."""


# oneDNN -------------------------------------------------------------------------------------------------------------


@cache
def onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN's products with a matrix in its own layout can be used here."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def bfloat16_instructions() -> bool:
    """Whether this processor multiplies bfloat16 by itself; without, everything below float32 runs slower."""
    known = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)
    return any(has() for has in known)


class OneDnnWeight:
    """A matrix (M, K) in the layout that oneDNN likes best: twice as fast as `F.linear` for one row in bfloat16.

    `F.linear` puts the matrix in that order at every call. The layout is opaque to the rest of PyTorch, so this holds
    the tensor, copies share it, and its bytes are those of the numbers in it.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, 256)
        self.nbytes = weight.nbytes

    def __deepcopy__(self, memo: dict[int, Any]) -> OneDnnWeight:
        return self

    def __call__(self, x: Tensor) -> Tensor:
        return onednn_linear(x, self.weight)

    def silu(self, x: Tensor) -> Tensor:
        """silu(x Wᵀ), the activation within the product."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "swish", [], "")
        return y

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """(x Wᵀ) · other, the second product within the first."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, None, "mul")
        return y

    def dense(self) -> Tensor:
        return self.weight.to_dense()


def onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return y


def in_blocks(x: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """`product` of two to `TOGETHER` rows at a time: of a row alone it would add up long inputs in another order."""
    if len(x) == 1:
        return product(x.repeat(2, 1))[:1]
    return product(x) if len(x) <= TOGETHER else torch.cat([in_blocks(part, product) for part in x.split(TOGETHER)])


def in_turn(x: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """Row by row: bitsandbytes has one kernel for a single row and another for several."""
    return product(x) if len(x) == 1 else torch.cat([product(row) for row in x.split(1)])

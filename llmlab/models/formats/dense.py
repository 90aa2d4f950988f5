"""The matrix as it is, in float32 or bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.models.formats.linear import Linear
from llmlab.models.formats.onednn import OneDnnWeight, in_blocks, onednn, onednn_linear
from llmlab.models.formats.quantized_groups import Matrix, as_dense


class Dense(Linear):
    """The matrix as it is, in float32 or bfloat16; in oneDNN's layout where there is one."""

    buffers_held = ("weight",)
    weight: Tensor | None
    """None where oneDNN's layout is kept instead."""
    reordered: OneDnnWeight | None = None

    def __init__(self, weight: Matrix, dtype: torch.dtype, bias: Tensor | None = None) -> None:
        self.takes = dtype
        super().__init__(weight, bias)

    def _set(self, weight: Matrix) -> None:
        weight = as_dense(weight).to(self.takes).contiguous()
        self.outputs = len(weight)
        self.reordered = OneDnnWeight(weight) if weight.device.type == "cpu" and onednn(self.takes) else None
        self.weight = None if self.reordered else weight

    def _product(self) -> Callable[[Tensor], Tensor]:
        product = partial(F.linear if self.reordered is None else onednn_linear, weight=self.matrix)
        return product if self.takes == torch.float32 else partial(in_blocks, product=product)

    @property
    def matrix(self) -> Tensor:
        """The tensor that is multiplied with, in whichever layout."""
        if self.reordered is not None:
            return self.reordered.weight
        assert self.weight is not None
        return self.weight

    def many(self, x: Tensor) -> Tensor:
        return (F.linear if self.reordered is None else onednn_linear)(x, self.matrix)

    def _dense(self) -> Tensor:
        return (self.matrix if self.reordered is None else self.reordered.dense()).float()

    def keep_copy(self, parts: int = 1, source: Matrix | None = None) -> None:
        """Nothing: a dense matrix needs no dense copy."""

    @property
    def extra_bytes(self) -> int:
        return self.reordered.nbytes if self.reordered else 0

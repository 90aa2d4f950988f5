"""Matrices that gradients flow through: one that is trained, and one that is looked at while it is differentiated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.models.formats.linear import Linear
from llmlab.models.formats.quantized_groups import Matrix, as_dense


class Trainable(Linear):
    """The matrix as a parameter in float32."""

    takes = torch.float32

    def _set(self, weight: Matrix) -> None:
        dense = as_dense(weight).detach().float().cpu().clone()
        self.outputs = len(dense)
        self.weight = nn.Parameter(dense)

    def _product(self) -> Callable[[Tensor], Tensor]:
        return partial(F.linear, weight=self.weight)

    def _dense(self) -> Tensor:
        return self.weight


class Unpacked(Linear):
    """Another matrix, unpacked to float32 for each product: slow, exact to what is stored, and differentiable in its
    inputs, which the kernels of packed formats are not."""

    takes = torch.float32

    def __init__(self, inner: Linear) -> None:
        nn.Module.__init__(self)
        self.version, self.copy = inner.version, ()
        self.inner, self.bias = inner, inner.bias
        self.inputs, self.outputs = inner.inputs, inner.outputs

    def _product(self) -> Callable[[Tensor], Tensor]:
        return lambda x: F.linear(x, self.inner.dense())

    def _dense(self) -> Tensor:
        return self.inner.dense()

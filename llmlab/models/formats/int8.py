"""8-bit rows with one scale each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.models.formats.linear import Linear
from llmlab.models.formats.quantized_groups import Matrix, as_dense


class Int8(Linear):
    """8-bit rows with one scale each: w = scale·q, q in -127..127."""

    buffers_held = ("q", "scale")
    multiple = 16
    """PyTorch's kernel for processors takes 16 inputs at a time and never looks whether so many are left:
    https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/cpu/int8mm_kernel.cpp."""

    def _set(self, weight: Matrix) -> None:
        dense = as_dense(weight).float()
        self.outputs = len(dense)
        scale = (dense.abs().amax(1) / 127).clamp_min(1e-12).bfloat16()
        self.q = (dense / scale.float()[:, None]).round_().clamp_(-127, 127).nan_to_num_(0).to(torch.int8)
        self.scale = scale

    def _product(self) -> Callable[[Tensor], Tensor]:
        return partial(_int8_cpu if self.q.is_cpu else _int8_plain, q=self.q, scale=self.scale)

    def _dense(self) -> Tensor:
        return self.q.float() * self.scale.float()[:, None]


def _int8_cpu(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    return torch._weight_int8pack_mm(x, q, scale)


def _int8_plain(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    return F.linear(x, q.to(x.dtype)) * scale

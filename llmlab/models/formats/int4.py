"""4-bit codes in groups of 32, for PyTorch's kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.models.formats.linear import Linear
from llmlab.models.formats.onednn import in_blocks
from llmlab.models.formats.quantized_groups import GROUP, Matrix, QuantizedGroups, as_dense


class Int4(Linear):
    """4-bit codes in groups of 32 with a scale and a minimum each (5 bits a weight), for PyTorch's kernels.

    The codes of a Q4_1 file are kept as they are; the kernels take their scales in bfloat16 only (other types fall to a
    scalar loop, 400 times slower). They work in blocks of 4 rows, so that 5 rows cost as much as 8. Where a size or a
    device does not suit them, the same codes are unpacked for each product: the plain path.
    """

    buffers_held = ("packed", "scales")
    multiple = GROUP
    packed: Tensor
    scales: Tensor

    def _set(self, weight: Matrix) -> None:
        if isinstance(weight, QuantizedGroups) and (weight.bits, weight.group) == (4, GROUP):
            codes = weight
        else:
            codes = QuantizedGroups.of(as_dense(weight).float())
        self.shape = codes.q.shape
        self.outputs = self.shape[0]
        # w = d·q + m, while the kernels compute scale·(q - 8) + zero.
        self.scales = torch.stack([codes.d, codes.m + 8 * codes.d], -1).transpose(0, 1).contiguous().bfloat16()
        self.kernel = int4_kernel(codes.q.device.type, *self.shape)
        if self.kernel == "cpu":
            self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.q.to(torch.int32), 1)
        elif self.kernel == "cuda":
            pairs = (codes.q[:, ::2] << 4) | codes.q[:, 1::2]
            self.packed = torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), TILES)
        else:
            self.packed = codes.q[:, ::2] | (codes.q[:, 1::2] << 4)

    def _product(self) -> Callable[[Tensor], Tensor]:
        if self.kernel == "cpu":
            kernel = torch._weight_int4pack_mm_for_cpu
            return partial(kernel, mat2=self.packed, qGroupSize=GROUP, qScaleAndZeros=self.scales)
        if self.kernel == "cuda":
            return partial(_int4_cuda, packed=self.packed, scales=self.scales)
        return partial(_int4_plain, packed=self.packed, scales=self.scales)

    def _dense(self) -> Tensor:
        return self._by_the_kernel().float() if self.kernel else _unpacked(self.packed, self.scales)

    def _bfloat16(self) -> Tensor:
        return self._by_the_kernel()[:, : self.inputs] if self.kernel else super()._bfloat16()

    def _by_the_kernel(self) -> Tensor:
        """The matrix, padding included, in bfloat16: the kernel's product with 1."""
        eye = torch.eye(self.shape[1], dtype=torch.bfloat16, device=self.packed.device)
        return self._product()(eye).t().contiguous()


TILES = 8
"""How many of a CUDA tile's 16 inner columns are packed together; `_convert_weight_to_int4pack` takes 2, 4 or 8."""


def int4_kernel(device: str, M: int, K: int) -> str:
    """Which of PyTorch's int4 kernels takes a matrix (M, K) on a device; "" for none."""
    if device == "cpu" and M % 64 == 0:
        return "cpu"
    if device == "cuda" and M % 8 == 0 and K % (TILES * 16) == 0 and torch.cuda.get_device_capability() >= (8, 0):
        return "cuda"
    return ""


def _int4_cuda(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    return torch._weight_int4pack_mm(x, packed, GROUP, scales)


def _int4_plain(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    return in_blocks(x, partial(F.linear, weight=_unpacked(packed, scales).bfloat16()))


def _unpacked(packed: Tensor, scales: Tensor) -> Tensor:
    """Two codes a byte (M, K/2) and their scales (K/32, M, 2) to (M, K) float32."""
    q = torch.stack([packed & 15, packed >> 4], -1).flatten(1).float() - 8
    scale, zero = scales.float().transpose(0, 1).repeat_interleave(GROUP, 1).unbind(-1)
    return scale * q + zero

"""bitsandbytes' LLM.int8 (arXiv 2208.07339)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from llmlab.models.formats.linear import Linear
from llmlab.models.formats.nf4 import bitsandbytes_functions
from llmlab.models.formats.quantized_groups import Matrix, as_dense


class BnbInt8(Linear):
    """bitsandbytes' LLM.int8 (arXiv 2208.07339): both factors in 8 bits, rows and columns scaled by their maximum.

    Differs: no column of the inputs is kept out of it (threshold 0), as bitsandbytes does by default on a CPU.
    """

    buffers_held = ("q", "scale")
    multiple = 4
    q: Tensor
    scale: Tensor

    def _set(self, weight: Matrix) -> None:
        dense = as_dense(weight)
        self.outputs = len(dense)
        lib = bitsandbytes_functions("bnb-int8")
        self.q, self.scale, _ = lib.int8_vectorwise_quant(_taken(dense).contiguous())

    def _product(self) -> Callable[[Tensor], Tensor]:
        return partial(_llm_int8, q=self.q, scale=self.scale, lib=bitsandbytes_functions("bnb-int8"))

    def _dense(self) -> Tensor:
        return self.q.float() * self.scale.float()[:, None] / 127


def _taken(x: Tensor) -> Tensor:
    """In the type that is quantized: float16, which the kernel for GPUs asks for, cannot hold every number."""
    return x.float() if x.is_cpu else x.half()


def _llm_int8(x: Tensor, q: Tensor, scale: Tensor, lib: Any) -> Tensor:
    rows, row_scale, _ = lib.int8_vectorwise_quant(_taken(x))
    product = lib.int8_linear_matmul(rows, q)
    if x.is_cpu:
        dense: Tensor = product.float() * (row_scale[:, None] * scale / 127**2)
        return dense.to(x.dtype)
    y: Tensor = lib.int8_mm_dequant(product, row_scale, scale)
    return y.to(x.dtype)

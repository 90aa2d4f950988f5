"""bitsandbytes' 4-bit NormalFloat (QLoRA, arXiv 2305.14314)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.errors import Refused
from llmlab.models.formats.linear import MANY, Linear
from llmlab.models.formats.onednn import in_turn
from llmlab.models.formats.quantized_groups import Matrix, as_dense


def bitsandbytes_functions(weights: str) -> Any:
    """The library's functions. Refused where it does not load."""
    try:
        import bitsandbytes.functional as functional
    except Exception as e:  # bitsandbytes raises many kinds of errors where its library does not fit the machine
        raise Refused(
            f"The {weights} format", "needs bitsandbytes, which is not installed or does not load here", "Choose int4"
        ) from e
    return functional


class Nf4(Linear):
    """bitsandbytes' 4-bit NormalFloat in blocks of 64 (QLoRA, arXiv 2305.14314).

    On a processor that multiplies bfloat16 the codes lie in the order that the library's kernel for it reads
    (`blocked`) and the blocks' maxima are bfloat16: a sixth of the time for one row of 576, a twentieth for eight.
    """

    buffers_held = ("packed",)
    multiple = 64
    """A block of codes must not go on in the next row: the library's kernel for processors unpacks row by row, and
    would scale the rest of such a block by another block's maximum."""
    packed: Tensor
    state: Any
    blocked = False

    def _set(self, weight: Matrix) -> None:
        dense = as_dense(weight)
        self.outputs = len(dense)
        lib = bitsandbytes_functions("nf4")
        self.packed, self.state = lib.quantize_4bit(dense.bfloat16().contiguous(), blocksize=64, quant_type="nf4")
        self.blocked = dense.is_cpu and _nf4_kernel(*dense.shape)
        if self.blocked:
            self.packed, self.state = lib._convert_weight_packed_for_cpu(self.packed, self.state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Nf4:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.blocked and not self.packed.is_cpu:
            self.packed, self.state, self.blocked = *self._plain(), False
        self.state.to(self.packed.device)
        return self

    def _plain(self) -> tuple[Tensor, Any]:
        """Codes and state in the order in which bitsandbytes makes them."""
        packed, state = self.packed, copy.copy(self.state)
        if self.blocked:
            packed, state = bitsandbytes_functions("nf4")._convert_weight_packed_for_cpu_inverse(packed, state)
            state.absmax = self.state.absmax.t().flatten().float()
        return packed, state

    def _product(self) -> Callable[[Tensor], Tensor]:
        import bitsandbytes as bnb

        if self.blocked:
            return partial(_nf4_blocked, packed=self.packed, state=self.state)
        return partial(in_turn, product=partial(bnb.matmul_4bit, B=self.packed.t(), quant_state=self.state))

    def many(self, x: Tensor) -> Tensor:
        if self.blocked or (self.copy and len(x) >= MANY):
            return super().many(x)
        return F.linear(x, self.dense().to(x.dtype))

    def _dense(self) -> Tensor:
        found: Tensor = bitsandbytes_functions("nf4").dequantize_4bit(*self._plain())
        return found.float()

    @property
    def extra_bytes(self) -> int:
        own: int = self.state.absmax.nbytes + self.state.code.nbytes
        return super().extra_bytes + own


def _nf4_kernel(M: int, K: int) -> bool:
    """Whether bitsandbytes' kernel for processors with bfloat16 instructions is here and takes a matrix (M, K)."""
    lib = bitsandbytes_functions("nf4")
    here = hasattr(lib, "_convert_weight_packed_for_cpu_inverse") and lib.has_avx512bf16()
    return bool(here) and M % 32 == 0 and K % 64 == 0


def _nf4_blocked(x: Tensor, packed: Tensor, state: Any) -> Tensor:
    y: Tensor = torch.ops.bitsandbytes.gemv_4bit(x, packed, state.shape, state.absmax, state.code, state.blocksize)
    return y

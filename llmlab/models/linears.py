"""Weight formats behind one interface: float32 activations in, float32 out, the matrix stored in its own way.

Every format is a module with `forward (N, K) -> (N, M)`, `dense() -> (M, K)` float32, `store(dense)` and its buffers as
its only bytes. Together with `fast`, the fast lines of the engine live here; what was measured stands beside them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.abilities import Refused
from llmlab.models.codes import Codes

GROUP = 32
TOGETHER = 8
"""Rows from two up to which oneDNN's bfloat16 products add up in one order, so that each row gets the same bits."""
MANY = 12
"""Rows from which a product with the dense copy of a packed matrix beats the packed product, measured with int4."""


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


class Reordered:
    """A matrix (M, K) in the layout that oneDNN likes best: twice as fast as `F.linear` for one row in bfloat16.

    `F.linear` puts the matrix in that order at every call. The layout is opaque to the rest of PyTorch, so this holds
    the tensor, copies share it, and its bytes are those of the numbers in it.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 256)
        self.nbytes = weight.nbytes

    def __deepcopy__(self, memo: dict[int, Any]) -> Reordered:
        return self

    def __call__(self, x: Tensor) -> Tensor:
        return _reordered(x, self.weight)

    def silu(self, x: Tensor) -> Tensor:
        """silu(x Wᵀ), the activation within the product."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "swish", [], "")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """(x Wᵀ) · other, the second product within the first."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, None, "mul")

    def dense(self) -> Tensor:
        return self.weight.to_dense()


def _reordered(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def in_blocks(x: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """`product` of two to `TOGETHER` rows at a time: of a row alone it would add up long inputs in another order."""
    if len(x) == 1:
        return product(x.repeat(2, 1))[:1]
    return product(x) if len(x) <= TOGETHER else torch.cat([in_blocks(part, product) for part in x.split(TOGETHER)])


# The formats --------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """The interface. `bias` (M,) is added in float32; `takes` is the type in which the product wants its inputs.

    `copy` is a second, dense form of a packed matrix for products of many rows, kept only where somebody asked for it.
    """

    takes: torch.dtype = torch.bfloat16
    outputs = 0
    """M."""
    buffers_held: tuple[str, ...] = ()
    """The names of the buffers that `_set` fills."""
    changes = 0
    """How many matrices have been stored anew in this process: what is bound to their tensors looks here."""

    def __init__(self, weight: Tensor | Codes, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("bias", None if bias is None else bias.float())
        self.copy: tuple[Reordered, ...] = ()
        for name in self.buffers_held:
            self.register_buffer(name, None)
        self._set(weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.many(x.to(self.takes)).float()
        return y if self.bias is None else y + self.bias

    def many(self, x: Tensor) -> Tensor:
        """The product (N, K) in `takes` to (N, M) by the quickest way for N rows, without the bias."""
        if self.copy and len(x) >= MANY:
            return self.copy[0](x) if len(self.copy) == 1 else torch.cat([part(x) for part in self.copy], -1)
        return self.few()(x)

    def few(self) -> Callable[[Tensor], Tensor]:
        """The product (N, K) in `takes` to (N, M), bound to the tensors of now, in which each row is as if alone."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        raise NotImplementedError

    def store(self, dense: Tensor) -> None:
        """Replace the matrix by `dense` (M, K)."""
        Linear.changes += 1
        parts = len(self.copy)
        self.copy = ()
        self._set(dense)
        if parts:
            self.keep_copy(parts)

    def _set(self, weight: Tensor | Codes) -> None:
        raise NotImplementedError

    def keep_copy(self, parts: int = 1, source: Tensor | Codes | None = None) -> None:
        """Keep the matrix in bfloat16 too, cut into `parts` of equal rows, if that is possible and of use here.

        `source`: what this was made from, where it is still at hand: unpacking takes longer.
        """
        if not onednn(torch.bfloat16):
            return
        if isinstance(source, Codes):
            source = source.dense()
        dense = self._bfloat16() if source is None else source.bfloat16()
        self.copy = tuple(Reordered(part.contiguous()) for part in dense.chunk(parts))

    def _bfloat16(self) -> Tensor:
        """The matrix (M, K) in bfloat16."""
        return self.dense().bfloat16()

    @property
    def extra_bytes(self) -> int:
        """Bytes kept outside the module's buffers."""
        return sum(part.nbytes for part in self.copy)


class Dense(Linear):
    """The matrix as it is, in float32 or bfloat16; in oneDNN's layout where there is one."""

    buffers_held = ("weight",)
    reordered: Reordered | None = None

    def __init__(self, weight: Tensor | Codes, dtype: torch.dtype, bias: Tensor | None = None) -> None:
        self.takes = dtype
        super().__init__(weight, bias)

    def _set(self, weight: Tensor | Codes) -> None:
        weight = (weight.dense() if isinstance(weight, Codes) else weight).to(self.takes).contiguous()
        self.outputs = len(weight)
        self.reordered = Reordered(weight) if weight.device.type == "cpu" and onednn(self.takes) else None
        self.weight = None if self.reordered else weight

    def few(self) -> Callable[[Tensor], Tensor]:
        product = partial(F.linear if self.reordered is None else _reordered, weight=self.matrix)
        return product if self.takes == torch.float32 else partial(in_blocks, product=product)

    @property
    def matrix(self) -> Tensor:
        """The tensor that is multiplied with, in whichever layout."""
        return self.weight if self.reordered is None else self.reordered.weight

    def many(self, x: Tensor) -> Tensor:
        return (F.linear if self.reordered is None else _reordered)(x, self.matrix)

    def dense(self) -> Tensor:
        return (self.weight if self.reordered is None else self.reordered.dense()).float()

    def keep_copy(self, parts: int = 1, source: Tensor | Codes | None = None) -> None:
        """Nothing: a dense matrix needs no dense copy."""

    @property
    def extra_bytes(self) -> int:
        return self.reordered.nbytes if self.reordered else 0


class Int4(Linear):
    """4-bit codes in groups of 32 with a scale and a minimum each (5 bits a weight), for PyTorch's kernels.

    The codes of a Q4_1 file are kept as they are; the kernels take their scales in bfloat16 only (other types fall to a
    scalar loop, 400 times slower). They work in blocks of 4 rows, so that 5 rows cost as much as 8. Where a size or a
    device does not suit them, the same codes are unpacked for each product: the plain path.
    """

    buffers_held = ("packed", "scales")

    def _set(self, weight: Tensor | Codes) -> None:
        codes = weight if isinstance(weight, Codes) else Codes.of(weight.float())
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

    def few(self) -> Callable[[Tensor], Tensor]:
        if self.kernel == "cpu":
            kernel = torch._weight_int4pack_mm_for_cpu
            return partial(kernel, mat2=self.packed, qGroupSize=GROUP, qScaleAndZeros=self.scales)
        if self.kernel == "cuda":
            return partial(_int4_cuda, packed=self.packed, scales=self.scales)
        return partial(_int4_plain, packed=self.packed, scales=self.scales)

    def dense(self) -> Tensor:
        return self._bfloat16().float() if self.kernel else _unpacked(self.packed, self.scales)

    def _bfloat16(self) -> Tensor:
        if not self.kernel:
            return super()._bfloat16()
        eye = torch.eye(self.shape[1], dtype=torch.bfloat16, device=self.packed.device)
        return self.few()(eye).t().contiguous()


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
    return F.linear(x, _unpacked(packed, scales).bfloat16())


def _unpacked(packed: Tensor, scales: Tensor) -> Tensor:
    """Two codes a byte (M, K/2) and their scales (K/32, M, 2) to (M, K) float32."""
    q = torch.stack([packed & 15, packed >> 4], -1).flatten(1).float() - 8
    scale, zero = scales.float().transpose(0, 1).repeat_interleave(GROUP, 1).unbind(-1)
    return scale * q + zero


class Int8(Linear):
    """8-bit rows with one scale each: w = scale·q, q in -127..127."""

    buffers_held = ("q", "scale")

    def _set(self, weight: Tensor | Codes) -> None:
        dense = weight.dense() if isinstance(weight, Codes) else weight.float()
        self.outputs = len(dense)
        scale = (dense.abs().amax(1) / 127).clamp_min(1e-12).bfloat16()
        self.q = (dense / scale.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        self.scale = scale

    def few(self) -> Callable[[Tensor], Tensor]:
        return partial(_int8_cpu if self.q.is_cpu else _int8_plain, q=self.q, scale=self.scale)

    def dense(self) -> Tensor:
        return self.q.float() * self.scale.float()[:, None]


def _int8_cpu(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    return torch._weight_int8pack_mm(x, q, scale)


def _int8_plain(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    return F.linear(x, q.to(x.dtype)) * scale


def _bitsandbytes(weights: str) -> Any:
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
    blocked = False

    def _set(self, weight: Tensor | Codes) -> None:
        dense = weight.dense() if isinstance(weight, Codes) else weight
        self.outputs = len(dense)
        lib = _bitsandbytes("nf4")
        self.packed, self.state = lib.quantize_4bit(dense.bfloat16().contiguous(), blocksize=64, quant_type="nf4")
        self.blocked = dense.is_cpu and _nf4_kernel(*dense.shape)
        if self.blocked:
            self.packed, self.state = lib._convert_weight_packed_for_cpu(self.packed, self.state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Nf4:
        super()._apply(fn, recurse)
        if self.blocked and not self.packed.is_cpu:
            self.packed, self.state, self.blocked = *self._plain(), False
        self.state.to(self.packed.device)
        return self

    def _plain(self) -> tuple[Tensor, Any]:
        """Codes and state in the order in which bitsandbytes makes them."""
        packed, state = self.packed, copy.copy(self.state)
        if self.blocked:
            packed, state = _bitsandbytes("nf4")._convert_weight_packed_for_cpu_inverse(packed, state)
            state.absmax = self.state.absmax.t().flatten().float()
        return packed, state

    def few(self) -> Callable[[Tensor], Tensor]:
        import bitsandbytes as bnb

        if self.blocked:
            return partial(_nf4_blocked, packed=self.packed, state=self.state)
        return partial(in_turn, product=partial(bnb.matmul_4bit, B=self.packed.t(), quant_state=self.state))

    def many(self, x: Tensor) -> Tensor:
        if self.blocked or (self.copy and len(x) >= MANY):
            return super().many(x)
        return F.linear(x, self.dense().to(x.dtype))

    def dense(self) -> Tensor:
        return _bitsandbytes("nf4").dequantize_4bit(*self._plain()).float()

    @property
    def extra_bytes(self) -> int:
        return super().extra_bytes + self.state.absmax.nbytes + self.state.code.nbytes


def _nf4_kernel(M: int, K: int) -> bool:
    """Whether bitsandbytes' kernel for processors with bfloat16 instructions is here and takes a matrix (M, K)."""
    lib = _bitsandbytes("nf4")
    here = hasattr(lib, "_convert_weight_packed_for_cpu_inverse") and lib.has_avx512bf16()
    return bool(here) and M % 32 == 0 and K % 64 == 0


def _nf4_blocked(x: Tensor, packed: Tensor, state: Any) -> Tensor:
    return torch.ops.bitsandbytes.gemv_4bit(x, packed, state.shape, state.absmax, state.code, state.blocksize)


def in_turn(x: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """Row by row: bitsandbytes has one kernel for a single row and another for several."""
    return product(x) if len(x) == 1 else torch.cat([product(row) for row in x.split(1)])


class BnbInt8(Linear):
    """bitsandbytes' LLM.int8 (arXiv 2208.07339): both factors in 8 bits, rows and columns scaled by their maximum.

    Differs: no column of the inputs is kept out of it (threshold 0), as bitsandbytes does by default on a CPU.
    """

    buffers_held = ("q", "scale")

    def _set(self, weight: Tensor | Codes) -> None:
        dense = weight.dense() if isinstance(weight, Codes) else weight
        self.outputs = len(dense)
        lib = _bitsandbytes("bnb-int8")
        self.q, self.scale, _ = lib.int8_vectorwise_quant(dense.half().contiguous())

    def few(self) -> Callable[[Tensor], Tensor]:
        return partial(_llm_int8, q=self.q, scale=self.scale, lib=_bitsandbytes("bnb-int8"))

    def dense(self) -> Tensor:
        return self.q.float() * self.scale.float()[:, None] / 127


def _llm_int8(x: Tensor, q: Tensor, scale: Tensor, lib: Any) -> Tensor:
    rows, row_scale, _ = lib.int8_vectorwise_quant(x.half())
    return lib.int8_mm_dequant(lib.int8_linear_matmul(rows, q), row_scale, scale).to(x.dtype)


FORMATS: dict[str, Callable[[Tensor | Codes, Tensor | None], Linear]] = {
    "dense-fp32": lambda w, b: Dense(w, torch.float32, b),
    "dense-bf16": lambda w, b: Dense(w, torch.bfloat16, b),
    "int8": Int8,
    "int4": Int4,
    "nf4": Nf4,
    "bnb-int8": BnbInt8,
}


def make_linear(weight: Tensor | Codes, weights: str, bias: Tensor | None = None) -> Linear:
    """A matrix (M, K) in the format called `weights`. Refused for an unknown format or an unsuitable size."""
    if weights not in FORMATS:
        raise Refused(f"No weight format is called {weights[:20]!r};", "it is unknown", f"Choose {', '.join(FORMATS)}")
    if weights in ("int4", "nf4") and weight.shape[1] % GROUP:
        raise Refused(
            f"The {weights} format",
            f"packs groups of {GROUP} inputs and {weight.shape[1]} is no multiple",
            "Choose int8",
        )
    return FORMATS[weights](weight, bias)


def nbytes(module: nn.Module) -> int:
    """Bytes of the tensors that a module holds, shared ones counted once."""
    seen: dict[int, int] = {}
    for t in [*module.buffers(), *module.parameters()]:
        seen[t.data_ptr() or id(t)] = t.numel() * t.element_size()
    return sum(seen.values()) + sum(getattr(m, "extra_bytes", 0) for m in module.modules())

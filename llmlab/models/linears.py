"""Weight formats behind one interface: float32 activations in, float32 out, the matrix stored in its own way.

Every format is a module with `forward (N, K) -> (N, M)`, `dense() -> (M, K)` float32, `store(dense)` and its buffers as
its only bytes. The fast lines of the engine live here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.abilities import Refused
from llmlab.models.codes import Codes

GROUP = 32
FEW = 16
"""Rows up to which a product is bound by reading the matrix, so that the orientation of the call matters."""


def _across(x: Tensor, W: Tensor) -> Tensor:
    return torch.mm(W, x.t()).t().contiguous()


def _padded(x: Tensor, W: Tensor) -> Tensor:
    # One row sends MKL down its matrix-vector path, which on some processors is slower than two rows of matrix-matrix.
    return torch.mm(W, x.repeat(2, 1).t()).t()[:1].contiguous()


@cache
def fastest(dtype: torch.dtype, rows: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The quickest way on this machine to multiply a few rows by a large matrix, found by trying, once per process."""
    W = torch.randn(16384, 1024).to(dtype)  # larger than a cache: a pass reads every matrix from memory
    x = torch.randn(rows, 1024).to(dtype)
    ways = [F.linear, _across] + ([_padded] if rows == 1 else [])
    best: dict[Callable[[Tensor, Tensor], Tensor], float] = {}
    for _ in range(3):
        for way in ways:
            start = time.perf_counter()
            way(x, W)
            best[way] = min(best.get(way, 1e9), time.perf_counter() - start)
    return min(best, key=best.__getitem__)


class Linear(nn.Module):
    """The interface. `bias` (M,) is added in float32."""

    label = ""

    def __init__(self, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("bias", None if bias is None else bias.float())

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return y if self.bias is None else y + self.bias

    def product(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def dense(self) -> Tensor:
        raise NotImplementedError

    def store(self, dense: Tensor) -> None:
        raise NotImplementedError


class Dense(Linear):
    """The matrix as it is, in float32 or bfloat16."""

    def __init__(self, weight: Tensor | Codes, dtype: torch.dtype, bias: Tensor | None = None) -> None:
        super().__init__(bias)
        self.dtype = dtype
        dense = weight.dense() if isinstance(weight, Codes) else weight
        self.register_buffer("weight", dense.to(dtype).contiguous())

    def product(self, x: Tensor) -> Tensor:
        W = self.weight
        x = x if x.dtype == W.dtype else x.to(W.dtype)
        if W.is_cpu and x.shape[0] <= FEW and not W.is_meta:
            return fastest(W.dtype, 1 if x.shape[0] == 1 else 4)(x, W).float()
        return F.linear(x, W).float()

    def dense(self) -> Tensor:
        return self.weight.float()

    def store(self, dense: Tensor) -> None:
        self.weight = dense.to(self.dtype).contiguous()


class Int4(Linear):
    """4-bit codes in groups of 32 with a scale and a minimum each (5 bits a weight), for PyTorch's CPU kernel.

    The codes of a Q4_1 file are kept as they are; the kernel takes its scales in bfloat16. Off the CPU, and where a
    size does not suit the kernel, the same codes are unpacked for each product: the plain path.
    """

    def __init__(self, weight: Tensor | Codes, bias: Tensor | None = None) -> None:
        super().__init__(bias)
        for name in ("packed", "scales"):
            self.register_buffer(name, None)
        self._set(weight if isinstance(weight, Codes) else Codes.of(weight.float()))

    def _set(self, codes: Codes) -> None:
        self.shape = codes.q.shape
        # w = d·q + m, while the kernel computes scale·(q - 8) + zero.
        self.scales = torch.stack([codes.d, codes.m + 8 * codes.d], -1).transpose(0, 1).contiguous().bfloat16()
        self.kernel = codes.q.is_cpu and self.shape[0] % 64 == 0
        if self.kernel:
            self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.q.to(torch.int32), 1)
        else:
            self.packed = codes.q[:, ::2] | (codes.q[:, 1::2] << 4)

    def product(self, x: Tensor) -> Tensor:
        if self.kernel:
            return torch._weight_int4pack_mm_for_cpu(x.bfloat16(), self.packed, GROUP, self.scales).float()
        return F.linear(x.bfloat16(), self.dense().bfloat16()).float()

    def dense(self) -> Tensor:
        if self.kernel:
            eye = torch.eye(self.shape[1], dtype=torch.bfloat16)
            return torch._weight_int4pack_mm_for_cpu(eye, self.packed, GROUP, self.scales).float().t().contiguous()
        q = torch.stack([self.packed & 15, self.packed >> 4], -1).flatten(1).float() - 8
        scale, zero = self.scales.float().transpose(0, 1).repeat_interleave(GROUP, 1).unbind(-1)
        return scale * q + zero

    def store(self, dense: Tensor) -> None:
        self._set(Codes.of(dense))


class Int8(Linear):
    """8-bit rows with one scale each: w = scale·q, q in -127..127."""

    def __init__(self, weight: Tensor | Codes, bias: Tensor | None = None) -> None:
        super().__init__(bias)
        for name in ("q", "scale"):
            self.register_buffer(name, None)
        self.store(weight.dense() if isinstance(weight, Codes) else weight.float())

    def product(self, x: Tensor) -> Tensor:
        if self.q.is_cpu:
            return torch._weight_int8pack_mm(x.bfloat16(), self.q, self.scale).float()
        return F.linear(x.bfloat16(), self.q.bfloat16()).float() * self.scale.float()

    def dense(self) -> Tensor:
        return self.q.float() * self.scale.float()[:, None]

    def rows(self, index: Tensor) -> Tensor:
        """The rows of `index` (…,) as float32 (…, K)."""
        return self.q[index].float() * self.scale[index].float()[..., None]

    def store(self, dense: Tensor) -> None:
        scale = (dense.abs().amax(1) / 127).clamp_min(1e-12).bfloat16()
        self.q = (dense / scale.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        self.scale = scale


class Nf4(Linear):
    """bitsandbytes' 4-bit NormalFloat in blocks of 64 (QLoRA, arXiv 2305.14314)."""

    def __init__(self, weight: Tensor | Codes, bias: Tensor | None = None) -> None:
        super().__init__(bias)
        self.register_buffer("packed", None)
        self.store(weight.dense() if isinstance(weight, Codes) else weight.float())

    def product(self, x: Tensor) -> Tensor:
        import bitsandbytes as bnb

        self.state.to(self.packed.device)
        y = bnb.matmul_4bit(x.bfloat16(), self.packed.t(), quant_state=self.state)
        return y.float()

    def dense(self) -> Tensor:
        import bitsandbytes.functional as bnb

        return bnb.dequantize_4bit(self.packed, self.state).float()

    def store(self, dense: Tensor) -> None:
        try:
            import bitsandbytes.functional as bnb
        except Exception as e:  # bitsandbytes raises many kinds of errors where its library does not fit the machine
            raise Refused("The nf4 format", "needs bitsandbytes, which does not load here", "Choose int4") from e
        self.packed, self.state = bnb.quantize_4bit(dense.bfloat16().contiguous(), blocksize=64, quant_type="nf4")

    @property
    def extra_bytes(self) -> int:
        """Bytes that bitsandbytes keeps outside the module's buffers."""
        return self.state.absmax.nbytes + self.state.code.nbytes


class Tables(nn.Module):
    """Embedding and head over one matrix (V, E), or two where the model does not tie them.

    In the low-bit formats both are 8-bit rows, and the head's best candidates are scored again in float32: the kernel's
    bfloat16 logits tie too often to choose by.
    """

    CANDIDATES = 64

    def __init__(self, embed: Tensor | Codes, head: Tensor | Codes | None, weights: str) -> None:
        super().__init__()
        self.embed = _table(embed, weights)
        self.head = self.embed if head is None else _table(head, weights)

    def look_up(self, tokens: Tensor) -> Tensor:
        """(N,) token ids to (N, E) float32."""
        if isinstance(self.embed, Int8):
            return self.embed.rows(tokens)
        return F.embedding(tokens, self.embed.weight).float()

    def logits(self, h: Tensor) -> Tensor:
        """(N, E) to (N, V) float32."""
        y = self.head(h)
        if isinstance(self.head, Int8):
            best = y.topk(min(self.CANDIDATES, y.shape[1]), -1).indices  # (N, C)
            exact = torch.bmm(self.head.rows(best), h[:, :, None])[..., 0]
            y.scatter_(1, best, exact)
        return y


def _table(weight: Tensor | Codes, weights: str) -> Linear:
    return make_linear(weight, weights if weights.startswith("dense") else "int8")


FORMATS: dict[str, Callable[[Tensor | Codes, Tensor | None], Linear]] = {
    "dense-fp32": lambda w, b: Dense(w, torch.float32, b),
    "dense-bf16": lambda w, b: Dense(w, torch.bfloat16, b),
    "int8": Int8,
    "int4": Int4,
    "nf4": Nf4,
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

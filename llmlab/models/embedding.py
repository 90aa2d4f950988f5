"""Embedding and head, the two matrices over the vocabulary, and finding what is highest in a row of logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.models.formats.int4 import Int4, int4_kernel
from llmlab.models.formats.linear import MANY, nbytes
from llmlab.models.formats.onednn import TOGETHER, OneDnnWeight, in_blocks, in_turn, onednn
from llmlab.models.formats.quantized_groups import GROUP, Matrix, as_dense
from llmlab.models.kernels.topk import top_indices
from llmlab.models.loading.progress import check

LEAST, MOST = 2.0**-14, 65504.0
"""What float16 can hold in full."""
TINY = torch.finfo(torch.float32).tiny


class Int8Table(nn.Module):
    """A table (V, E) of 8-bit numbers in groups of 32 with a float16 scale each: a GGUF file's Q8_0, kept exactly.

    A table whose numbers float16 scales cannot stand for, for their size, has scales in float32.
    """

    q: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.width = weight.shape[1]
        scale = torch.cat([_groups(piece).abs().amax(-1) for piece in weight.split(PIECE)]) / 127
        if LEAST < scale.nan_to_num(0).max() < MOST or not scale.any():
            scale = scale.clamp_min(1e-7).half()
        codes = []
        for piece, s in zip(weight.split(PIECE), scale.split(PIECE), strict=True):
            q = (_groups(piece) / s.float().clamp_min(TINY)[..., None]).round_().clamp_(-127, 127).nan_to_num_(0)
            codes.append(q.to(torch.int8).flatten(1))
        self.register_buffer("q", torch.cat(codes))
        self.register_buffer("scale", scale)

    def rows(self, index: Tensor) -> Tensor:
        """The rows of `index` (…,) as float32 (…, E)."""
        q = F.embedding(index, self.q).float()
        scale = F.embedding(index, self.scale).float()[..., None]
        q.view(*scale.shape[:-1], GROUP).mul_(scale)
        return q if q.shape[-1] == self.width else q[..., : self.width]

    def dense(self) -> Tensor:
        return self.rows(torch.arange(len(self.q), device=self.q.device))

    def logits(self, h: Tensor) -> Tensor:
        """(N, E) to (N, V) float32, unpacked piece by piece."""
        parts = torch.arange(len(self.q), device=h.device).split(PIECE)
        return torch.cat([F.linear(h, self.rows(part)) for part in parts], 1)


def _groups(rows: Tensor) -> Tensor:
    """Rows (n, E) of a table that is being made as float32 (n, groups, 32)."""
    check()
    return F.pad(rows.float(), (0, -rows.shape[1] % GROUP)).view(len(rows), -1, GROUP)


PIECE = 4096
"""Rows of a table unpacked at once, so that the float32 form of all of it never exists."""


class DenseTable(nn.Module):
    """A table (V, E) as it is, whose rows can be looked up."""

    weight: Tensor

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weight.to(dtype).contiguous())

    def rows(self, index: Tensor) -> Tensor:
        """The rows of `index` (…,) as float32 (…, E)."""
        return F.embedding(index, self.weight).float()

    def dense(self) -> Tensor:
        return self.weight.float()

    def logits(self, h: Tensor) -> Tensor:
        """(N, E) to (N, V) float32."""
        W = self.weight
        if W.dtype != torch.float32:  # in float32 piece by piece: a bfloat16 logit of 19 is off by up to a sixteenth
            return torch.cat([F.linear(h, part.float()) for part in W.split(PIECE)], 1)
        if not W.is_cpu or len(h) > TOGETHER:
            return F.linear(h, W)
        # A product with one column falls to MKL's matrix-vector path, a third as fast as two columns.
        return torch.mm(W, (h.repeat(2, 1) if len(h) == 1 else h).t()).t()[: len(h)].contiguous()


class EmbeddingAndHead(nn.Module):
    """Embedding and head over one matrix (V, E), or two where the model does not tie them.

    In the low-bit formats both are 8-bit rows. `candidate_head` (4 bits, for few rows) and `reordered` (bfloat16), kept
    where wanted and counted, are the head once more in forms that multiply faster. Their logits are approximate: the
    best candidates are scored again in float32, because bfloat16 logits tie too often to choose by.
    """

    CANDIDATES = 32
    """Scored again for a greedy choice; the token chosen by the exact head was never below rank 9 (see README)."""
    REACHABLE = 512
    """Scored again where tokens are drawn; what lies below keeps its approximate probability."""

    def __init__(self, embed: Matrix, head: Matrix | None, weights: str) -> None:
        super().__init__()
        embed, head = as_dense(embed), None if head is None else as_dense(head)
        self.candidate_head: Int4 | None = None
        self.reordered: OneDnnWeight | None = None
        self._approximate: Callable[[Tensor], Tensor] | None = None
        dtype = {"dense-fp32": torch.float32, "dense-bf16": torch.bfloat16}.get(weights)
        make = Int8Table if dtype is None else partial(DenseTable, dtype=dtype)
        self.embed: Int8Table | DenseTable = make(embed)
        self.head: Int8Table | DenseTable = self.embed if head is None else make(head)
        self.vocabulary, self.width = (embed if head is None else head).shape

    def keep_candidate_head(self) -> None:
        """Keep the head once more in a faster form, where there is one."""
        if isinstance(self.head, DenseTable):
            if self.head.weight.is_cpu and self.head.weight.dtype == torch.bfloat16 and onednn(torch.bfloat16):
                self.reordered = OneDnnWeight(self.head.weight)
        elif int4_kernel(self.head.q.device.type, len(self.head.q), self.head.q.shape[1]):
            dense = self.head.dense()
            self.candidate_head = Int4(dense)
            if self.head.q.is_cpu and onednn(torch.bfloat16):
                self.reordered = OneDnnWeight(dense.bfloat16())
        self._approximate = None

    def _approximate_product(self) -> Callable[[Tensor], Tensor] | None:
        """The quickest product with the head in bfloat16, (N, E) to (N, V); None where there is but the exact one."""
        if self.candidate_head is not None:
            return self.candidate_head.few()
        if self.reordered is not None:
            return partial(in_blocks, product=self.reordered)
        if isinstance(self.head, DenseTable) and self.head.weight.dtype == torch.bfloat16:
            return partial(in_blocks, product=partial(F.linear, weight=self.head.weight))
        return None

    @property
    def extra_bytes(self) -> int:
        return self.reordered.nbytes if self.reordered else 0

    @property
    def candidate_head_bytes(self) -> int:
        """Bytes of the head's second form."""
        return self.extra_bytes + (nbytes(self.candidate_head) if self.candidate_head else 0)

    def _wide(self, rows: int) -> bool:
        """Whether so many rows pay in bfloat16, as other matrices do, rather than by the candidate head."""
        return self.candidate_head is not None and self.reordered is not None and rows >= MANY

    def read_bytes(self, rows: int, best: int) -> int:
        """Bytes that the logits of so many rows read of the head at least; `best` as in `logits`."""
        if not 0 < best < self.vocabulary or self._approximate_product() is None:
            return nbytes(self.head)
        rescored = best * nbytes(self.head) // self.vocabulary  # of one row: others may score the same words
        if self.candidate_head is not None and not self._wide(rows):
            return self.candidate_head.read_bytes + rescored
        return (self.reordered.nbytes if self.reordered else nbytes(self.head)) + rescored

    def held_bytes(self, rows: int, best: int) -> int:
        """Bytes that the logits of so many rows make at once; `best` as in `logits`."""
        V, E = self.vocabulary, self.width
        if 0 < best < V and self._approximate_product() is not None:
            doubled = rows == 1 and self.candidate_head is None  # one row alone is multiplied as two
            return max((8 if doubled else 6 * rows) * V, 2 * rows * V + 5 * rows * best * E)
        if isinstance(self.head, DenseTable) and self.head.weight.dtype == torch.float32:
            return (12 if rows == 1 else 8 * rows) * V
        unpacked = min(PIECE, V) * E * 4  # besides what is unpacked, in 8 bits
        own = unpacked * 21 // 16 if isinstance(self.head, Int8Table) else unpacked
        return max(own + 4 * rows * V, 8 * rows * V)

    def lookup(self, tokens: Tensor) -> Tensor:
        """(N,) token ids to (N, E) float32."""
        return self.embed.rows(tokens)

    def logits(self, h: Tensor, best: int = 0) -> Tensor:
        """(N, E) to (N, V) float32. With `best`, only so many of the highest need be exact; the others are near.

        In the formats below float32 each row is computed as if alone, whatever the number of rows.
        """
        if self._approximate is None:
            self._approximate = self._approximate_product()
        if self._approximate is None or not 0 < best < self.vocabulary:
            whole = isinstance(self.head, DenseTable) and self.head.weight.dtype == torch.float32
            return self.head.logits(h) if whole else in_turn(h, self.head.logits)
        if self._wide(len(h)):
            assert self.reordered is not None
            y = self.reordered(h.bfloat16())
        else:
            y = self._approximate(h.bfloat16())
        index = top_indices(y, best)  # (N, C)
        exact = torch.stack([torch.mv(r, x) for r, x in zip(self.head.rows(index), h, strict=True)])
        return y.float().scatter_(1, index, exact)

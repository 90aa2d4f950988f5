"""How the keys and values of one layer lie in memory, and attention over them as they lie.

A storage owns its buffers: nobody else touches one. `PlainStorage` keeps floats; `MirroredStorage` has a second copy in
bfloat16 for long memories; `FunctionalStorage` lets gradients through, for training. Shapes: H key-value heads, G query
heads per key-value head, Q new rows, S rows, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from llmlab.kv.attention import PLAIN, ScoreRule, causal_attention, grouped_query_attention
from llmlab.kv.row_index import resized

BLOCK = 64
"""Rows by which buffers grow at least. Small enough that reported bytes follow the rows; a long memory grows by an
eighth, or copying it would take its own part of every token's time."""
SLOTS = 16
"""Rows to come of which views are made at once."""
MIRROR_FROM = 1024
"""Rows from which on a single query attends in bfloat16, where there is a mirror: there attention is bound by reading
keys and values. Below, a product in bfloat16 takes longer to begin than it saves (36 µs a layer, 12 at 64 rows)."""

Weights = Callable[[Tensor], None]
"""Receives attention weights (H, Q, S) in float32."""


class CacheStorage(Protocol):
    """What a layer's memory asks of the storage of its rows. `count` is how many rows there are, `at` a row's place."""

    heads: int
    capacity: int
    nbytes: int
    """Of every tensor that it holds."""

    def append(self, at: int, kv: Tensor) -> None:
        """Write kv (2, H, Q, D) from row `at` on."""

    def append_one(self, at: int, kv: Tensor) -> None:
        """As `append` for one row (2, H, D)."""

    def attend(
        self,
        q: Tensor,
        count: int,
        mask: Tensor | None,
        watch: Weights | None,
        rule: ScoreRule,
        bias: Tensor | None,
    ) -> Tensor:
        """q (Q, H·G, D) over the first `count` rows; `mask` and the rest as in `grouped_query_attention`."""

    def keep(self, rows: Tensor, count: int) -> None:
        """Of the first `count` rows keep these, (n,) for all heads or (H, n) per head, in this order."""

    def keep_tail(self, held: int, picks: Tensor) -> None:
        """Move the rows `picks` (n,) to the places `held`, `held` + 1, …"""

    def truncated(self, count: int) -> None:
        """Rows from `count` on may be written anew."""

    def resize(self, capacity: int, count: int) -> None:
        """Make room for `capacity` rows; the first `count` stay."""


class PlainStorage:
    """Keys and values as floats, in one tensor (2, H, capacity, D)."""

    def __init__(self, heads: int, head_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.heads, self.head_size = heads, head_size
        self.rebind(torch.empty(2, heads, 0, head_size, dtype=dtype, device=device))

    _k: Tensor
    _v: Tensor

    def rebind(self, kv: Tensor) -> None:
        """Go on with `kv` (2, H, capacity, D), which holds the rows already."""
        self._kv = kv
        self.capacity = kv.shape[2]
        self._k, self._v = kv
        self._across = self._k.transpose(1, 2)  # (H, D, capacity)
        self._slots: tuple[Tensor, ...] = ()
        self._slots_from = -1
        self.nbytes = kv.nbytes

    @property
    def kv(self) -> Tensor:
        """(2, H, capacity, D), to read."""
        return self._kv

    def keys(self, count: int) -> Tensor:
        """(H, count, D), to read."""
        return self._k[:, :count]

    def values(self, count: int) -> Tensor:
        """(H, count, D), to read."""
        return self._v[:, :count]

    # Writing ------------------------------------------------------------------------------------------------------

    def append(self, at: int, kv: Tensor) -> None:
        self._kv.narrow(2, at, kv.shape[2]).copy_(kv)

    def append_one(self, at: int, kv: Tensor) -> None:
        """As `append` for one row: decoding does little else, and views of the rows to come cost time."""
        first = at - at % SLOTS
        if first != self._slots_from:
            self._slots, self._slots_from = self._kv[:, :, first : first + SLOTS].unbind(2), first
        self._slots[at - first].copy_(kv)

    def append_at(self, at: Tensor, k: Tensor, v: Tensor) -> None:
        """As `append` for one row, k and v (H, 1, D), at a place (1,) that a GPU's graph reads when it is replayed."""
        for buffer, new in ((self._k, k), (self._v, v)):
            buffer.index_copy_(1, at, new.to(buffer.dtype))

    def keep(self, rows: Tensor, count: int) -> None:
        n = rows.shape[-1]
        if rows.dim() == 1:
            self._kv[:, :, :n] = self._kv[:, :, :count].index_select(2, rows)
        else:
            head = torch.arange(self.heads, device=rows.device)[:, None]
            self._kv[:, :, :n] = self._kv[:, head, rows]

    def keep_tail(self, held: int, picks: Tensor) -> None:
        self._kv[:, :, held : held + len(picks)] = self._kv[:, :, picks]

    def truncated(self, count: int) -> None:
        """Nothing to do: what lies behind the last row is of no account."""

    def rotate(self, count: int, rotation: Tensor) -> None:
        """Turn the keys of the first `count` rows by rotation (H, count, D/2) complex."""
        pairs = torch.view_as_complex(self.keys(count).float().reshape(self.heads, count, -1, 2))
        self._k[:, :count] = torch.view_as_real(pairs * rotation).flatten(2).to(self._k.dtype)

    def resize(self, capacity: int, count: int) -> None:
        self.rebind(resized(self._kv, capacity, count, 2))

    # Attention ----------------------------------------------------------------------------------------------------

    def attend(
        self,
        q: Tensor,
        count: int,
        mask: Tensor | None = None,
        watch: Weights | None = None,
        rule: ScoreRule = PLAIN,
        bias: Tensor | None = None,
    ) -> Tensor:
        return grouped_query_attention(q, self.keys(count), self.values(count), mask, watch, rule, bias)

    def attend_selected(self, q: Tensor, rows: Tensor, mask: Tensor | None = None, rule: ScoreRule = PLAIN) -> Tensor:
        """One query q (1, H·G, D) over just these rows (n,); `mask` (…, 1, n). Returns (1, H·G·D)."""
        k, v = self._k.index_select(1, rows), self._v.index_select(1, rows)
        return grouped_query_attention(q, k, v, mask, None, rule)

    def attend_one(self, q: Tensor, count: int, out: Tensor) -> None:
        """One query's heads, q (H, G, D) times 1/√D, over the first `count` rows, into `out` (H, G, D)."""
        weights = torch.softmax(torch.bmm(q, self._across.narrow(2, 0, count)), -1)
        torch.bmm(weights, self._v.narrow(1, 0, count), out=out)

    def attend_hidden(self, q: Tensor, count: int, out: Tensor, hidden: Tensor | None) -> Tensor:
        """As `attend_one`, without the rows where hidden (H, 1, count) is set; returns the weights (H, G, count)."""
        scores = torch.bmm(q, self._across.narrow(2, 0, count))
        if hidden is not None:
            scores.masked_fill_(hidden, -torch.inf)
        weights = torch.softmax(scores, -1)
        torch.bmm(weights, self._v.narrow(1, 0, count), out=out)
        return weights

    def attend_few(self, q: Tensor, rows: Tensor, out: Tensor, hidden: Tensor | None) -> None:
        """As `attend_hidden`, over just these rows (n,)."""
        scores = torch.bmm(q, self._across.index_select(2, rows))
        if hidden is not None:
            scores.masked_fill_(hidden, -torch.inf)
        torch.bmm(torch.softmax(scores, -1), self._v.index_select(1, rows), out=out)

    def attend_together(self, q: Tensor, count: int, own: Tensor) -> Tensor:
        """Queries of the n last rows in one product, q (n, H·G, D) times 1/√D; own (n, n) bool is what they see of each
        other. Returns (n, H, G, D). Quicker than one by one, and not to the bit what a row gets alone."""
        n, KV, D = len(q), self.heads, self.head_size
        G = q.shape[1] // KV
        q = q.view(n, KV, G, D).permute(1, 2, 0, 3).reshape(KV, G * n, D)
        scores = torch.bmm(q, self._across.narrow(2, 0, count)).view(KV, G, n, count)
        scores[..., count - n :].masked_fill_(~own, -torch.inf)
        weights = torch.softmax(scores, -1).view(KV, G * n, count)
        return torch.bmm(weights, self.values(count)).view(KV, G, n, D).permute(2, 0, 1, 3)

    def attend_prompt(self, q: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """The queries q (T, H·G, D) of the T last rows, each over the rows up to its own; (T, H·G·D) in `dtype`."""
        return causal_attention(q, self.keys(count), self.values(count), dtype)

    def attend_whole(self, q: Tensor, mask: Tensor) -> Tensor:
        """One query q (1, H·G, 1, D) over the whole buffer, in shapes that a graph can replay: mask (1, 1, 1, capacity)
        hides the room behind the last row. Returns (1, H·G, 1, D)."""
        k, v = self._k[None], self._v[None]
        q = q.to(k.dtype)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=q.shape[1] > self.heads)

    def read_bytes(self, count: int) -> int:
        """Bytes that attending to so many rows reads."""
        return 2 * self.heads * count * self.head_size * self._kv.element_size()

    def address(self) -> int:
        """Where the buffer lies: another number after it has been replaced."""
        return self._kv.data_ptr()


class MirroredStorage(PlainStorage):
    """`PlainStorage` with the same once more in bfloat16, which single queries read in a long memory.

    The mirror is counted, kept from when it is first asked for, and filled up with the rows that are new to it.
    """

    _mirror: tuple[Tensor, Tensor] | None = None
    _mirrored = 0  # how many rows the mirror has, which are as they were when it got them

    def rebind(self, kv: Tensor) -> None:
        super().rebind(kv)
        self.nbytes += sum(t.nbytes for t in self._mirror or ())

    def bf16_mirror(self, n: int) -> tuple[Tensor, Tensor]:
        """The first n rows in bfloat16: keys (H, D, m), which lie along the sequence, and values (H, m, D).

        m is n rounded up to whole blocks, as each new shape of a product costs more to set up than to compute; the rows
        from n on are of no account.
        """
        m = -(-n // BLOCK) * BLOCK
        if self._mirror is None or self._mirror[0].shape[2] < m:
            H, D, device = self.heads, self.head_size, self._k.device
            with torch.inference_mode(False):  # it may be written to outside of inference mode as well
                keys = torch.zeros(H, D, self.capacity, dtype=torch.bfloat16, device=device)
                values = torch.zeros(H, self.capacity, D, dtype=torch.bfloat16, device=device)
            self._mirror, self._mirrored = (keys, values), 0
            self.nbytes = self._kv.nbytes + keys.nbytes + values.nbytes
        keys, values = self._mirror
        if self._mirrored < n:
            first, new = self._mirrored, n - self._mirrored
            keys.narrow(2, first, new).copy_(self._across.narrow(2, first, new))
            values.narrow(1, first, new).copy_(self._v.narrow(1, first, new))
            self._mirrored = n
        return keys.narrow(2, 0, m), values.narrow(1, 0, m)

    def attend_one(self, q: Tensor, count: int, out: Tensor) -> None:
        if count <= MIRROR_FROM:
            super().attend_one(q, count, out)
            return
        keys, values = self.bf16_mirror(count)
        scores = torch.bmm(q.bfloat16(), keys)
        scores.narrow(2, count, scores.shape[2] - count).fill_(-torch.inf)
        weights = torch.softmax(scores, -1, dtype=torch.float32)
        out.copy_(torch.bmm(weights.bfloat16(), values))

    def read_bytes(self, count: int) -> int:
        whole = super().read_bytes(count)
        return whole // 2 if count > MIRROR_FROM else whole  # of the mirror, as far as single queries are concerned

    # Every way in which rows change lowers the mark up to which the mirror is right. -------------------------------

    def append(self, at: int, kv: Tensor) -> None:
        self.truncated(at)
        super().append(at, kv)

    def keep(self, rows: Tensor, count: int) -> None:
        self._mirror, self._mirrored, self.nbytes = None, 0, self._kv.nbytes
        super().keep(rows, count)

    def keep_tail(self, held: int, picks: Tensor) -> None:
        self.truncated(held)
        super().keep_tail(held, picks)

    def truncated(self, count: int) -> None:
        if count < self._mirrored:
            self._mirrored = count

    def rotate(self, count: int, rotation: Tensor) -> None:
        self._mirrored = 0
        super().rotate(count, rotation)


class FunctionalStorage(PlainStorage):
    """Rows that gradients flow through: appending joins tensors and changes none. For training and saliency."""

    def append(self, at: int, kv: Tensor) -> None:
        self.rebind(torch.cat([self._kv[:, :, :at], kv.to(self._kv.dtype)], 2))

    def append_one(self, at: int, kv: Tensor) -> None:
        self.append(at, kv[:, :, None])

    def resize(self, capacity: int, count: int) -> None:
        """Nothing to do: `append` makes the room that it needs."""

"""What a pass makes and drops again, in bytes, from its shapes: hidden states, products, scores, logits.

PyTorch cannot tell on a processor how much was allocated at once, so this is worked out from what the kernels make;
a test holds it to the peak that is seen when every allocation is watched. Shapes: N rows of a pass, S rows in memory,
H heads, KV key-value heads, D head size, E width, F inner width, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

from llmlab.kv.attention import CHUNK, FEW_QUERIES

F32 = 4


class Sizes(Protocol):
    """What it depends on, of an architecture."""

    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_size(self) -> int: ...
    @property
    def feed_forward(self) -> int: ...


def few_rows_bytes(s: Sizes, N: int, S: int, takes: int) -> int:
    """Beside the buffers of a decoding pass of N rows: the largest product, or the scores of one query's heads.

    `takes`: bytes of a number in the type that the matrices take.
    """
    widest = max(2 * s.feed_forward, (s.heads + 2 * s.kv_heads) * s.head_size, s.width)
    rows = max(N, 2) if takes < F32 else N  # one row alone is multiplied as two
    return max(rows * widest * takes, 2 * s.heads * S * F32)


def prompt_bytes(s: Sizes, N: int, S: int, takes: int, copies: bool) -> int:
    """In a layer over N rows of a prompt, by the kernel for processors. `copies`: whether its matrices have any."""
    heads, states = s.heads * s.head_size, N * s.width * F32
    cast = takes if takes < F32 else 0  # what is made once more in another type
    chunk = min(N, CHUNK)
    scores = s.heads * chunk * S * (F32 + takes) + CHUNK * CHUNK * F32
    qkv = N * (s.heads + 2 * s.kv_heads) * s.head_size * F32
    normed = N * s.width * takes
    keys = 2 * S * s.kv_heads * s.head_size * cast
    attending = states + normed + qkv + keys + N * heads * (F32 + takes) + 2 * chunk * heads * takes + scores
    made = N * 2 * s.feed_forward * (takes if copies else F32 + cast)
    left = (N * s.feed_forward * takes if copies else N * 2 * s.feed_forward * F32) + 2 * states
    return max(attending, 2 * states + qkv + scores + normed + max(made, left))


def any_block_bytes(s: Sizes, N: int, S: int) -> int:
    """In a block as it is written, in float32; the attention weights of a chunk of queries exist at once."""
    qkv = (s.heads + 2 * s.kv_heads) * s.head_size
    scores = 2 * s.heads * (N if N <= FEW_QUERIES else CHUNK) * S * F32
    return F32 * N * (3 * s.width + max(3 * qkv, 4 * s.feed_forward)) + scores

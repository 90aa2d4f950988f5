"""Attention over the rows of one layer, as the papers write it: what every storage's own form is held to.

Shapes: T queries, H query heads, KV key-value heads, G = H / KV, S rows, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_QUERIES = 16
"""Up to here the grouped product beats the fused kernel, measured on a CPU with 9 heads over 3."""
CHUNK = 128
"""Queries of a prompt whose attention weights exist at once."""


@dataclass(frozen=True)
class ScoreRule:
    """How a model makes its scores, where it differs from q·k/√D. `softcap` c: c·tanh(score/c), before any mask (Gemma
    2, arXiv 2408.00118); `sinks` (H,): a score per head that takes part in the softmax and stands for no row (GPT-OSS).
    """

    scale: float | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether a fused kernel, which knows but a scale, computes it."""
        return self.softcap is None and self.sinks is None


PLAIN = ScoreRule()


def grouped_query_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    watch: Callable[[Tensor], None] | None = None,
    rule: ScoreRule = PLAIN,
    bias: Tensor | None = None,
) -> Tensor:
    """q (T, H, D); k, v (KV, S, D); mask (T, S) or (KV, T, S) bool. Returns (T, H·D).

    Without a mask the queries are the last T rows and each sees the rows up to its own. `watch` receives the weights
    (H, T, S) in float32, without what went to sinks. `bias` (S,) is added to every query's scores.
    Grouped queries: Ainslie et al., arXiv 2305.13245.
    """
    T, H, D = q.shape
    scale = 1 / math.sqrt(D) if rule.scale is None else rule.scale
    KV, S, _ = k.shape
    G = H // KV
    q, wanted = q.to(k.dtype), q.dtype
    if T > FEW_QUERIES and watch is None and bias is None and rule.plain:
        hidden = mask if mask is None or mask.dim() == 2 else mask.repeat_interleave(G, 0)[None]
        if mask is None and T < S:  # the fused kernel counts its causal mask from the first row
            hidden = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
        y = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], k[None], v[None], hidden, is_causal=hidden is None, scale=scale, enable_gqa=G > 1
        )
        return y[0].transpose(0, 1).reshape(T, H * D).to(wanted)
    grouped = q.view(T, KV, G, D).permute(1, 2, 0, 3).reshape(KV, G * T, D)
    scores = torch.bmm(grouped, k.transpose(1, 2)).float().view(KV, G, T, S).mul_(scale)
    if rule.softcap is not None:
        scores = scores.div_(rule.softcap).tanh_().mul_(rule.softcap)
    if bias is not None:
        scores = scores + bias
    if mask is None and T > 1:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    if mask is not None:
        scores = scores.masked_fill_(~(mask if mask.dim() == 2 else mask[:, None]), -torch.inf)
    weights = _weights(scores, rule.sinks)
    if watch is not None:
        watch(weights.reshape(H, T, S))
    y = torch.bmm(weights.reshape(KV, G * T, S).to(v.dtype), v)  # (KV, G·T, D)
    return y.view(KV, G, T, D).permute(2, 0, 1, 3).reshape(T, H * D).to(wanted)


def _weights(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """The softmax of scores (KV, G, T, S), with a sink per head where a model has them."""
    if sinks is None:
        return torch.softmax(scores, -1)
    KV, G, T, _ = scores.shape
    sink = sinks.float().view(KV, G, 1, 1).expand(KV, G, T, 1)
    return torch.softmax(torch.cat([scores, sink], -1), -1)[..., :-1]


class Scratch:
    """Memory for attention weights that is used again: fresh pages for each chunk would cost a third of its time.

    One tensor per name and type, as large as the largest that was asked for; it belongs to the one computing thread.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def __call__(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        n = math.prod(shape)
        held = self._held.get((name, dtype))
        if held is None or held.numel() < n:
            with torch.inference_mode(False):
                held = self._held[name, dtype] = torch.empty(n, dtype=dtype)
        return held[:n].view(shape)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self._held.values())


scratch = Scratch()


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """Attention of the T newest of S rows, q (T, H, D) and k, v (KV, S, D), over all before them; (T, H·D) in `dtype`.

    In chunks of queries over just the keys that they see, in `dtype` with the softmax in float32.
    """
    T, H, D = q.shape
    k, v = k.to(dtype), v.to(dtype)
    KV, S, _ = k.shape
    G = H // KV
    q = (q * (1 / math.sqrt(D))).to(dtype).view(T, KV, G, D).permute(1, 2, 0, 3)
    out = torch.empty(T, KV, G, D, dtype=dtype)
    future = torch.full((CHUNK, CHUNK), -torch.inf).triu(1)
    for a in range(0, T, CHUNK):
        n = min(CHUNK, T - a)
        end = S - T + a + n
        scores = scratch("scores", dtype, KV, G * n, end)
        weights = scratch("weights", torch.float32, KV, G, n, end)
        torch.bmm(q[:, :, a : a + n].reshape(KV, G * n, D), k[:, :end].transpose(1, 2), out=scores)
        weights.copy_(scores.view(KV, G, n, end))
        weights[..., end - n :].add_(future[:n, :n])
        torch._softmax(weights, -1, False, out=weights)
        scores.copy_(weights.view(KV, G * n, end))
        out[a : a + n] = torch.bmm(scores, v[:, :end]).view(KV, G, n, D).permute(2, 0, 1, 3)
    return out.view(T, H * D)

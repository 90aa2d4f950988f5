"""What the pruning techniques share: which weights a score and a pattern remove."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.models.decoder import Decoder
from llmlab.models.loading.progress import check

PATTERNS = ("unstructured", "2:4", "4:8")


def lowest(scores: Tensor, ratio: float, pattern: str) -> Tensor:
    """(M, K) bool: what to remove. Unstructured: the lowest `ratio` of each row; N:M: all but the best N of each M."""
    if pattern == "unstructured":
        n = int(ratio * scores.shape[1])
        index = scores.topk(n, 1, largest=False).indices if n else scores.new_empty(len(scores), 0, dtype=torch.long)
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, index, True)
    n, m = map(int, pattern.split(":"))
    groups = scores.view(len(scores), -1, m)
    index = groups.topk(m - n, -1, largest=False).indices
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(2, index, True).view_as(scores)


def zeros(model: Decoder) -> tuple[int, int]:
    """How many weights of the layers' matrices are exactly zero as stored, and how many there are."""
    none = total = 0
    for block in model.layers:
        for module in block.linears().values():
            check()
            W = module.dense()
            none, total = none + int((W == 0).sum()), total + W.numel()
    return none, total

"""What the pruning techniques share: which weights a score and a pattern remove, and layer-by-layer calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from llmlab.models.decoder import Batch, Block, Decoder, Span
from llmlab.models.linears import Linear

PATTERNS = ("unstructured", "2:4", "4:8")
LINEARS = ("qkv", "out", "gate_up", "down")
SEQUENCE = 256
"""Calibration tokens per sequence."""


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


def linears(block: Block) -> Iterator[tuple[str, Linear]]:
    for name in LINEARS:
        yield name, getattr(block, name)


def batches(model: Decoder, tokens: Sequence[int]) -> Callable[[], Batch]:
    """A maker of batches that lay `tokens` end to end as sequences of `SEQUENCE`, each with a fresh memory."""
    n = len(tokens)
    cuts = [*range(0, n, SEQUENCE), n] if n % SEQUENCE or not n else list(range(0, n + 1, SEQUENCE))
    ids = torch.tensor(list(tokens), device=model.device)
    positions = torch.cat([torch.arange(b - a) for a, b in pairwise(cuts)]).to(model.device)

    def fresh() -> Batch:
        spans = [Span(a, b, model.memory()) for a, b in pairwise(cuts)]
        batch = Batch(ids, positions, spans)
        batch.rotation = model.turns(positions)[:, None, :]
        return batch

    return fresh


@torch.inference_mode()
def walk(model: Decoder, tokens: Sequence[int]) -> Iterator[tuple[Block, dict[str, Tensor]]]:
    """Each layer with the norms ‖X_j‖₂ (K,) of the inputs of its matrices on the calibration tokens.

    What the caller changes in a layer is felt by the layers after it, as in Wanda and SparseGPT.
    """
    fresh = batches(model, tokens)
    h = model.tables.look_up(fresh().tokens)
    for block in model.layers:
        squares: dict[str, Tensor] = {}

        def remember(name: str, squares: dict[str, Tensor] = squares) -> Callable[..., None]:
            def hook(_module: Linear, inputs: tuple[Tensor, ...]) -> None:
                squares[name] = inputs[0].float().square().sum(0)

            return hook

        hooks = [module.register_forward_pre_hook(remember(name)) for name, module in linears(block)]
        try:
            block(h, fresh())
        finally:
            for handle in hooks:
                handle.remove()
        yield block, {name: s.sqrt() for name, s in squares.items()}
        h = block(h, fresh())


@torch.inference_mode()
def influence(model: Decoder, tokens: Sequence[int]) -> list[float]:
    """Per layer, how much it turns its input: 1 - mean cos(h_in, h_out) (ShortGPT, arXiv 2403.03853)."""
    batch = batches(model, tokens)()
    h = model.tables.look_up(batch.tokens)
    scores = []
    for block in model.layers:
        new = block(h, batch)
        scores.append(1 - float(torch.cosine_similarity(h, new, -1).mean()))
        h = new
    return scores


def zeros(model: Decoder) -> tuple[int, int]:
    """How many weights of the layers' matrices are exactly zero as stored, and how many there are."""
    none = total = 0
    for block in model.layers:
        for _, module in linears(block):
            W = module.dense()
            none, total = none + int((W == 0).sum()), total + W.numel()
    return none, total

"""A model's layers in turn on calibration tokens: what goes into their matrices, and how much each turns it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from llmlab.models.batch import Batch, Span
from llmlab.models.block import Block
from llmlab.models.decoder import Decoder
from llmlab.models.formats.linear import Linear

LINEARS = ("qkv", "out", "gate_up", "down")
SEQUENCE = 256
"""Calibration tokens per sequence."""


def linears(block: Block) -> Iterator[tuple[str, Linear]]:
    for name in LINEARS:
        yield name, getattr(block, name)


def calibration_batches(model: Decoder, tokens: Sequence[int]) -> Callable[[], Batch]:
    """A maker of batches that lay `tokens` end to end as sequences of `SEQUENCE`, each with a fresh memory."""
    n = len(tokens)
    cuts = [*range(0, n, SEQUENCE), n] if n % SEQUENCE or not n else list(range(0, n + 1, SEQUENCE))
    ids = torch.tensor(list(tokens), device=model.device)
    positions = torch.cat([torch.arange(b - a) for a, b in pairwise(cuts)]).to(model.device)

    def fresh() -> Batch:
        spans = [Span(a, b, model.memory()) for a, b in pairwise(cuts)]
        batch = Batch(ids, positions, spans)
        batch.rotation = model.rotations_at(positions)[:, None, :]
        return batch

    return fresh


@torch.inference_mode()
def walk_layers(model: Decoder, tokens: Sequence[int]) -> Iterator[tuple[Block, dict[str, Tensor]]]:
    """Each layer with the norms ‖X_j‖₂ (K,) of the inputs of its matrices on the calibration tokens.

    What the caller changes in a layer is felt by the layers after it, as in Wanda and SparseGPT.
    """
    fresh = calibration_batches(model, tokens)
    h = model.embedding.lookup(fresh().tokens)
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
def layer_influence(model: Decoder, tokens: Sequence[int]) -> list[float]:
    """Per layer, how much it turns its input: 1 - mean cos(h_in, h_out) (ShortGPT, arXiv 2403.03853)."""
    batch = calibration_batches(model, tokens)()
    h = model.embedding.lookup(batch.tokens)
    scores = []
    for block in model.layers:
        new = block(h, batch)
        scores.append(1 - float(torch.cosine_similarity(h, new, -1).mean()))
        h = new
    return scores

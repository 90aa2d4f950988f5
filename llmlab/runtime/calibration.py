"""A model's layers in turn on calibration tokens: what goes into their matrices, and how much each turns it.

Shapes: n calibration tokens, E width, K inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from llmlab.models.batch import Batch, Span
from llmlab.models.block import Block
from llmlab.models.decoder import Decoder
from llmlab.models.loading.progress import check

SEQUENCE = 256
"""Calibration tokens per sequence."""


def calibration_batch(model: Decoder, tokens: Sequence[int]) -> Batch:
    """A batch that lays `tokens` end to end as sequences of `SEQUENCE`, each with a fresh memory."""
    n = len(tokens)
    cuts = [*range(0, n, SEQUENCE), n] if n % SEQUENCE or not n else list(range(0, n + 1, SEQUENCE))
    ids = torch.tensor(list(tokens), device=model.device)
    positions = torch.cat([torch.arange(b - a) for a, b in pairwise(cuts)]).to(model.device)
    return Batch(ids, positions, [Span(a, b, model.memory()) for a, b in pairwise(cuts)])


@dataclass
class InputStatistics:
    """What the inputs X (n, K) of a matrix were like. `squares` (K,) is Σ x², `absmax` (K,) max |x|; `gram` (K, K) is
    XᵀX in float32, where it was asked for."""

    squares: Tensor
    absmax: Tensor
    gram: Tensor | None = None

    @property
    def norms(self) -> Tensor:
        """(K,): ‖X_j‖₂ of every input j."""
        return self.squares.sqrt()


class InputCollector:
    """Gathers `InputStatistics` of a layer's matrices, by name, while it is open; a `with`."""

    def __init__(self, block: Block, gram: bool = False) -> None:
        self.found: dict[str, InputStatistics] = {}
        self._linears, self._gram = block.linears(), gram
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> dict[str, InputStatistics]:
        for name, linear in self._linears.items():
            self._hooks.append(linear.register_forward_pre_hook(self._seeing(name)))
        return self.found

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _seeing(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_linear: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].float()
            new = InputStatistics(x.square().sum(0), x.abs().amax(0), x.t() @ x if self._gram else None)
            if (old := self.found.get(name)) is not None:
                gram = None if old.gram is None or new.gram is None else old.gram + new.gram
                new = InputStatistics(old.squares + new.squares, torch.maximum(old.absmax, new.absmax), gram)
            self.found[name] = new

        return hook


@torch.inference_mode()
def walk_layers(
    model: Decoder, tokens: Sequence[int], gram: bool = False
) -> Iterator[tuple[Block, dict[str, InputStatistics]]]:
    """Each layer with the statistics of the inputs of its matrices on the calibration tokens.

    What the caller changes in a layer is felt by the layers after it, as in Wanda and SparseGPT. `gram`: with XᵀX, as
    GPTQ and SparseGPT need it.
    """
    h = model.embedding.lookup(calibration_batch(model, tokens).tokens)
    for i, block in enumerate(model.layers):
        check()
        with InputCollector(block, gram) as found:
            model.run_layers(h, calibration_batch(model, tokens), i, i + 1)
        yield block, found
        check()
        h = model.run_layers(h, calibration_batch(model, tokens), i, i + 1)


@torch.inference_mode()
def layer_influence(model: Decoder, tokens: Sequence[int]) -> list[float]:
    """Per layer, how much it turns its input: 1 - mean cos(h_in, h_out) (ShortGPT, arXiv 2403.03853)."""
    batch = calibration_batch(model, tokens)
    h = model.embedding.lookup(batch.tokens)
    scores = []
    for i in range(len(model.layers)):
        check()
        new = model.run_layers(h, batch, i, i + 1)
        scores.append(1 - float(torch.cosine_similarity(h, new, -1).mean()))
        h = new
    return scores

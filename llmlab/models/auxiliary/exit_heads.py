"""What a model would say after some of its layers: the heads that the early exits of tokens ask, and leave through.

Shapes: n rows, E width, F inner width of a trained exit, l exits, S words of the shortlist, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.models.decoder import Decoder
from llmlab.models.embedding import EmbeddingAndHead
from llmlab.models.formats.linear import Linear
from llmlab.models.formats.registry import make_linear

HEADS = ("logit-lens", "trained")
TILE = 64
"""The int4 kernel takes matrices whose rows are a multiple of this."""


class Exit:
    """One trained exit: x = rms(h), y = W x + b + V (silu(U₁ x) · U₂ x), and the odds of exiting from the same x."""

    def __init__(self, part: Mapping[str, Tensor], i: int, weights: str) -> None:
        self.first = make_linear(torch.cat([part["W"][i], part["U"][i]]), weights)
        self.second = make_linear(part["V"][i], weights)
        self.bias, self.width = part["b"][i], part["W"].shape[-1]
        self.gate = tuple(part[name][i] for name in ("gate_in", "gate_bias", "gate_out", "gate_shift"))

    def __call__(self, x: Tensor) -> Tensor:
        y, up, gate = self.first(x).split([self.width, *[(self.first.outputs - self.width) // 2] * 2], -1)
        said: Tensor = y + self.bias + self.second(F.silu(up) * gate)
        return said

    def odds(self, x: Tensor) -> Tensor:
        """(n,): the probability that the model's last layer would say the same."""
        inner, bias, out, shift = self.gate
        return torch.sigmoid(F.silu(F.linear(x, inner, bias)) @ out + shift)


class ExitHeads:
    """A head after each of `layers`, over a shortlist or the whole vocabulary.

    The logit lens reads a middle state with the model's own last norm and head. A trained part ("exits") turns the
    state before that, and knows how likely it is to be right without asking the head.
    """

    def __init__(
        self, model: Decoder, layers: Sequence[int], words: Tensor | None, part: Mapping[str, Tensor] | None = None
    ) -> None:
        """`layers`: after how many of the model's layers each stands, ascending. `words` (S,); None for all."""
        self.model, self.layers, self.words = model, tuple(layers), words
        self.head: Linear | None = None
        if words is not None:
            self.words = words.long().to(model.device)
            self.head = model.short_head(self.words)
        self.exits: dict[int, Exit] = {}
        if part is not None:
            put = {k: v.to(model.device, torch.float32) for k, v in part.items() if v.is_floating_point()}
            at = part["layers"].tolist()
            self.exits = {layer: Exit(put, at.index(layer), model.auxiliary_format) for layer in self.layers}

    def _x(self, h: Tensor) -> Tensor:
        return F.rms_norm(h, (h.shape[-1],), None, self.model.shape.eps)

    @torch.inference_mode()
    def logits(self, layer: int, h: Tensor) -> Tensor:
        """h (n, E), the states after `layer` layers, to (n, S): the logits there, over the shortlist."""
        work = self.model.work
        if self.exits:
            work.products(len(h), self.exits[layer].first, self.exits[layer].second)
            h = self.exits[layer](self._x(h))
        if self.head is None:
            return self.model.head(h, EmbeddingAndHead.REACHABLE)
        work.products(len(h), self.head)
        return self.head(self.model.norm(h))

    @torch.inference_mode()
    def odds(self, layer: int, h: Tensor) -> Tensor:
        """h (n, E) to (n,): how likely a trained exit thinks itself to be right; 1 where there is none."""
        return self.exits[layer].odds(self._x(h)) if self.exits else h.new_ones(len(h))

    def spread(self, logits: Tensor) -> Tensor:
        """(n, S) to (n, V): every word outside the shortlist is as unlikely as the least likely one in it."""
        if self.words is None:
            return logits
        least = logits.amin(-1, keepdim=True)
        return least.repeat(1, self.model.shape.vocab).index_copy_(1, self.words, logits)

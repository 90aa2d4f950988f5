"""What a model would say after some of its layers: the heads that the early exits of tokens ask, and leave through.

Shapes: n rows, E width, F inner width of a trained exit, l exits, S words of the shortlist, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.models.decoder import Decoder
from llmlab.models.linears import make_linear
from llmlab.models.tables import Tables
from llmlab.session import Session
from llmlab.tools import Tools, once

if TYPE_CHECKING:
    from llmlab.models.linears import Linear

HEADS = ("logit-lens", "trained")
WORDS = 8192
TILE = 64
"""The int4 kernel takes matrices whose rows are a multiple of this."""


def shortlist(model: Decoder, words: int, tools: Tools) -> Tensor | None:
    """(S,) ascending: the words that stand most often in the calibration text, filled up with those of the lowest ids.

    A tokenizer that merges the commonest pairs first numbers its words about so. None where that is the vocabulary.
    """
    V = model.shape.vocab
    S = words // TILE * TILE
    if not 0 < S < V:
        return None
    counts = torch.bincount(torch.tensor(tools.calibration(1 << 20)), minlength=V)
    return counts.argsort(descending=True, stable=True)[:S].sort().values


class Exit:
    """One trained exit: x = rms(h), y = W x + b + V (silu(U₁ x) · U₂ x), and the odds of leaving from the same x."""

    def __init__(self, part: Mapping[str, Tensor], i: int, weights: str) -> None:
        self.first = make_linear(torch.cat([part["W"][i], part["U"][i]]), weights)
        self.second = make_linear(part["V"][i], weights)
        self.bias, self.width = part["b"][i], part["W"].shape[-1]
        self.gate = tuple(part[name][i] for name in ("gate_in", "gate_bias", "gate_out", "gate_shift"))

    def __call__(self, x: Tensor) -> Tensor:
        y, up, gate = self.first(x).split([self.width, *[(self.first.outputs - self.width) // 2] * 2], -1)
        return y + self.bias + self.second(F.silu(up) * gate)

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
        """`layers`: after how many of the model's layers each sits, ascending. `words` (S,); None for all."""
        self.model, self.layers, self.words = model, tuple(layers), words
        self.head: Linear | None = None
        if words is not None:
            self.words = words.long().to(model.device)
            self.head = model.short_head(self.words)
        self.exits: dict[int, Exit] = {}
        if part is not None:
            put = {k: v.to(model.device, torch.float32) for k, v in part.items() if v.is_floating_point()}
            at = part["layers"].tolist()
            self.exits = {layer: Exit(put, at.index(layer), model.beside) for layer in self.layers}

    @staticmethod
    def of(model: Decoder, tools: Tools | None, head: str, layers: Sequence[int], words: int, who: str) -> ExitHeads:
        """The heads of this kind, made once per model. Trained ones sit where they were trained, whatever `layers`.

        Raises Refused, in the name of `who`, where none were trained for this model.
        """
        tools = tools or Tools()
        if head == "trained":
            make = lambda model, part: ExitHeads(model, part["layers"].tolist(), part["shortlist"], part)  # noqa: E731
            return tools.part("exits", model, who, make)
        return once(
            model, ("lens", tuple(layers), words), lambda: ExitHeads(model, layers, shortlist(model, words, tools))
        )

    def _x(self, h: Tensor) -> Tensor:
        return F.rms_norm(h, (h.shape[-1],), None, self.model.shape.eps)

    @torch.inference_mode()
    def logits(self, layer: int, h: Tensor) -> Tensor:
        """h (n, E), the states after `layer` layers, to (n, S): what is said there, over the shortlist."""
        if self.exits:
            h = self.exits[layer](self._x(h))
        if self.head is None:
            return self.model.head(h, Tables.REACHABLE)
        return self.head(self.model.norm(h))

    @torch.inference_mode()
    def odds(self, layer: int, h: Tensor) -> Tensor:
        """h (n, E) to (n,): how likely a trained exit thinks itself to be right; 1 where there is none."""
        return self.exits[layer].odds(self._x(h)) if self.exits else h.new_ones(len(h))

    def guess(self, layer: int, h: Tensor, session: Session) -> tuple[int, Tensor | None, float]:
        """A draft token from the state h (1, E) after `layer` layers, as `Session.guess`."""
        logits = self.logits(layer, h)
        if not session.sampler.greedy or self.words is None:
            return session.guess(self.spread(logits)[0])
        at, q, sure = session.guess(logits[0])
        return int(self.words[at]), q, sure

    def spread(self, logits: Tensor) -> Tensor:
        """(n, S) to (n, V): every word outside the shortlist is as unlikely as the least likely one in it."""
        if self.words is None:
            return logits
        least = logits.amin(-1, keepdim=True)
        return least.repeat(1, self.model.shape.vocab).index_copy_(1, self.words, logits)


# Calibration --------------------------------------------------------------------------------------------------------

TEXTS, GIVEN, WRITTEN = 16, 16, 32
"""How many texts the model writes to calibrate on, from how many tokens each, and how long."""


@torch.inference_mode()
def own_words(model: Decoder, tools: Tools, layers: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """How the model goes on after pieces of the calibration text: states (l, n, E) after `layers`, words (n,)."""

    def write() -> tuple[Tensor, Tensor]:
        given = torch.tensor(tools.calibration(TEXTS * GIVEN)).split(GIVEN)
        states, said = [], []
        for piece in given:
            session = Session(model)
            session.tap(layers)
            for _ in session.read(piece.tolist()):
                session.states()
            for _ in range(WRITTEN):
                token = int(session.forward().argmax())
                session.commit((), token)
                said.append(token)
            states.append(session.states()[-WRITTEN:])
        return torch.cat(states).transpose(0, 1), torch.tensor(said, device=model.device)

    return once(model, ("own words", layers), write)


def calibration(heads: ExitHeads, tools: Tools | None, layers: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """What the heads after `layers` say (l, n, S) along the model's own words, whether that is what the model said
    (l, n), and the odds that they give themselves (l, n); 1 without a gate."""
    states, said = own_words(heads.model, tools or Tools(), layers)
    p, best, odds = [], [], []
    for layer, h in zip(layers, states, strict=True):
        logits = heads.logits(layer, h)
        p.append(torch.softmax(logits, -1))
        best.append(logits.argmax(-1) if heads.words is None else heads.words[logits.argmax(-1)])
        odds.append(heads.odds(layer, h))
    return torch.stack(p), torch.stack(best) == said, torch.stack(odds)

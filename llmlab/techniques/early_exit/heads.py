"""The heads that exits ask, made once per model, and what they say along the model's own words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmlab.models.auxiliary.exit_heads import TILE, ExitHeads
from llmlab.models.cached import cached_on
from llmlab.models.decoder import Decoder
from llmlab.models.loading.progress import check
from llmlab.runtime.session import Session
from llmlab.runtime.tools import Tools

WORDS = 8192


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


def exit_heads(
    model: Decoder, tools: Tools | None, head: str, layers: Sequence[int], words: int, who: str
) -> ExitHeads:
    """The heads called `head`, made once per model. Trained ones are where they were trained, whatever `layers`.

    Raises Refused, in the name of `who`, where none were trained for this model.
    """
    tools = tools or Tools()
    if head == "trained":
        return tools.part(
            "exits", model, who, lambda m, part: ExitHeads(m, part["layers"].tolist(), part["shortlist"], part)
        )
    make = lambda: ExitHeads(model, layers, shortlist(model, words, tools))  # noqa: E731
    return tools.hold(cached_on(model, ("lens", tuple(layers), words), make))


def sample_draft(heads: ExitHeads, layer: int, h: Tensor, session: Session) -> tuple[int, Tensor | None, float]:
    """A draft token from the state h (1, E) after `layer` layers, as `Session.sample_draft`."""
    logits = heads.logits(layer, h)
    if not session.sampler.greedy or heads.words is None:
        return session.sample_draft(heads.spread(logits)[0])
    at, q, sure = session.sample_draft(logits[0])
    return int(heads.words[at]), q, sure


# Calibration --------------------------------------------------------------------------------------------------------

TEXTS, GIVEN, WRITTEN = 16, 16, 32
"""How many texts the model writes to calibrate on, from how many tokens each, and how long."""


@torch.inference_mode()
def own_words(model: Decoder, tools: Tools, layers: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """How the model goes on after pieces of the calibration text: states (l, n, E) after `layers`, words (n,)."""

    def write() -> tuple[Tensor, Tensor]:
        given = torch.tensor(tools.calibration(TEXTS * GIVEN)).split(GIVEN)
        states, words = [], []
        for piece in given:
            session = Session(model, taps=layers)
            for _ in session.prefill(piece.tolist()):
                session.states()
            for _ in range(WRITTEN):
                check()
                token = int(session.forward().logits.argmax())
                session.commit((), token)
                words.append(token)
            states.append(session.states()[-WRITTEN:])
        return torch.cat(states).transpose(0, 1), torch.tensor(words, device=model.device)

    return cached_on(model, ("own words", layers), write)


def answers_on_own_words(
    heads: ExitHeads, tools: Tools | None, layers: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """What the heads after `layers` say (l, n, S) along the model's own words, whether that is what the model said
    (l, n), and the odds that they give themselves (l, n); 1 without a gate."""
    states, words = own_words(heads.model, tools or Tools(), layers)
    p, best, odds = [], [], []
    for layer, h in zip(layers, states, strict=True):
        logits = heads.logits(layer, h)
        p.append(torch.softmax(logits, -1))
        best.append(logits.argmax(-1) if heads.words is None else heads.words[logits.argmax(-1)])
        odds.append(heads.odds(layer, h))
    return torch.stack(p), torch.stack(best) == words, torch.stack(odds)

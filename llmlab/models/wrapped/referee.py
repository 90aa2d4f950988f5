"""The referee at the door: a transformers model that reads a text in pieces must say what it says in one plain pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmlab.models.batch import Batch, Span
from llmlab.models.wrapped.model import Wrapped
from llmlab.models.wrapped.seams import attend_by

TEXT = 72
"""Tokens of the check, which cross the windows, chunks and lengths of a small sibling several times."""
PIECES = (9, 1, 2, 20, 1, 11)
"""The prompt is read so; the rest step by step."""
TOLERANCE = 1e-4
"""Largest difference of a logit, in float32, as a part of the logits' spread where that is above 1."""


@dataclass(frozen=True)
class Difference:
    """Where two ways through a model part: at token `at` first, by at most `most` in a logit, at a share of tokens."""

    at: int
    most: float
    share: float

    def __str__(self) -> str:
        return f"gives other logits in pieces than in one pass (token {self.at}, by {self.most:.2g} in a logit)"


def some_tokens(vocab: int, count: int = TEXT) -> Tensor:
    """A text (count,) of random tokens, the same every time."""
    dice = torch.Generator().manual_seed(0)
    low = min(3, vocab - 1)
    return torch.randint(low, vocab, (count,), generator=dice)


@torch.inference_mode()
def plain_logits(model: Any, tokens: Tensor) -> Tensor:
    """Logits (T, V) of one pass by transformers alone, with the attention that it calls eager."""
    attend_by(model, "eager")
    logits: Tensor = model(input_ids=tokens[None].to(model.device), use_cache=False).logits
    return logits[0].float()


def looks_ahead(model: Any, tokens: Tensor) -> bool:
    """Whether what a model says of a token depends on later ones."""
    changed = tokens.clone()
    changed[-1] = (tokens[-1] + 1) % max(2, int(tokens.max()))
    a, b = plain_logits(model, tokens)[:-1], plain_logits(model, changed)[:-1]
    return bool(((a - b).abs().max() > 1e-3 * max(1.0, float(a.std()))).item())


def difference(model: Wrapped, tokens: Tensor, want: Tensor, tolerance: float = TOLERANCE) -> Difference | None:
    """How a model that reads `tokens` in pieces, then in steps with drafts taken back, parts from `want` (T, V)."""
    got = _in_pieces(model, tokens)
    off = (got - want).abs().amax(-1) / max(1.0, float(want.std()))
    wrong = ((off > tolerance) | ~off.isfinite()).nonzero().flatten()
    if not len(wrong):
        return None
    return Difference(int(wrong[0]), float(off.nan_to_num(torch.inf).max()), len(wrong) / len(off))


def _in_pieces(model: Wrapped, tokens: Tensor) -> Tensor:
    """Logits (T, V): the prompt in pieces, then steps; every third step reads a wrong draft first and takes it back."""
    memory = model.memory()
    memory.whole = len(tokens)
    out: list[Tensor] = []
    at = 0
    for length in (*PIECES, *[1] * len(tokens)):
        if at >= len(tokens):
            break
        piece = tokens[at : at + length]
        if length == 1 and at % 3 == 0 and at + 4 < len(tokens):
            marks = memory.mark()
            _read(model, memory, torch.cat([piece, tokens[at + 2 : at + 4]]), at)
            memory.restore(marks)
        if length == 1 and at % 5 == 0 and 0 < at < len(tokens) - 2:
            out.append(_branch(model, memory, tokens, at))
        else:
            out.append(_read(model, memory, piece, at))
        memory.settle(len(piece))
        at += len(piece)
    return torch.cat(out)


def _read(model: Wrapped, memory: Any, piece: Tensor, at: int) -> Tensor:
    positions = torch.arange(at, at + len(piece))
    return model.forward(Batch(piece, positions, [Span(0, len(piece), memory, first=at)])).logits


def _branch(model: Wrapped, memory: Any, tokens: Tensor, at: int) -> Tensor:
    """As `_read` for one token, with a tree of two branches behind it, of which nothing is kept."""
    visible = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool)
    positions = torch.tensor([at, at + 1, at + 1])
    marks = memory.mark()
    draft = torch.stack([tokens[at], tokens[at + 2], tokens[at + 1]])
    logits = model.forward(Batch(draft, positions, [Span(0, 3, memory, visible)])).logits
    memory.commit(marks, 3, [0])
    return logits[:1]

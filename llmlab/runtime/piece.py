"""A sequence's part in a pass, and one pass over the parts of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmlab.kv.memory import Memory
from llmlab.models.batch import Batch, Pattern, Span, Taps, Watch
from llmlab.models.decoder import Plan
from llmlab.models.result import ForwardResult


@dataclass(frozen=True)
class Piece:
    """T tokens of one sequence at `positions` (T,), of which the last `last` are asked for logits.

    `visible`, `first`, `patterns` and `watch` as in `Span`; `embeddings` (T, E) in place of the tokens' own. `taps` are
    the layers whose states are wanted. `exact` as in `Batch`, `exact_top` as in `Session`.
    """

    tokens: list[int]
    positions: Tensor
    last: int
    memory: Memory
    visible: Tensor | None
    first: int | None
    patterns: tuple[Pattern, ...]
    watch: Watch | None
    embeddings: Tensor | None
    taps: tuple[int, ...]
    exact: bool
    exact_top: int


@torch.inference_mode()
def forward_pieces(model: Any, pieces: Sequence[Piece], plan: Plan | None) -> list[ForwardResult]:
    """One pass over the pieces of several sequences; what each is told.

    Those that ask for no logits must come first, and all must want the same taps. With a plan there is one sequence.
    """
    asked = sum(piece.last for piece in pieces)
    spans, starts, at = [], [], 0
    for p in pieces:
        starts.append(at)
        at += len(p.tokens)
        spans.append(Span(starts[-1], at, p.memory, p.visible, p.patterns, p.watch, p.first))
    tokens = torch.tensor([t for piece in pieces for t in piece.tokens], device=model.device)
    positions = torch.cat([piece.positions for piece in pieces]) if len(pieces) > 1 else pieces[0].positions
    exact = all(piece.exact for piece in pieces) and asked > 0
    taps = Taps(pieces[0].taps) if pieces[0].taps else None
    batch = Batch(tokens, positions.to(model.device), spans, exact, _embeddings(model, pieces), taps)
    result = model.forward(batch, plan, asked, pieces[0].exact_top if asked else 0)
    if len(pieces) == 1:
        return [result]
    out, row = [], 0
    for piece, start in zip(pieces, starts, strict=True):
        states = None if result.states is None else result.states[start : start + len(piece.tokens)]
        out.append(ForwardResult(result.logits[row : row + piece.last], result.layers_run, (), states))
        row += piece.last
    return out


def _embeddings(model: Any, pieces: Sequence[Piece]) -> Tensor | None:
    """(N, E): the embeddings of a pass, where one of its pieces brings its own."""
    if all(piece.embeddings is None for piece in pieces):
        return None
    parts = []
    for piece in pieces:
        own = torch.tensor(piece.tokens, device=model.device)
        parts.append(model.embedding.lookup(own) if piece.embeddings is None else piece.embeddings)
    return torch.cat(parts)

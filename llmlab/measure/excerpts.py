"""Texts on which quality is measured: which pieces of them are scored, past the point where a stack begins to act."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmlab.assets import ASSETS
from llmlab.errors import Refused
from llmlab.runtime.roles import AttentionPattern, CachePolicy, LayerPlan
from llmlab.runtime.stack import Stack

TEXTS = {"prose": "evaluation.txt", "code": "evaluation_code.txt"}
"""Kinds of text, in the order in which they are scored, and their files."""
CONTEXT = 32
"""Tokens of a piece that are context only, at least."""
SCORED = 1024
"""Tokens of each kind that are scored."""
PROMPT = 512
"""Tokens of context where a stack acts on the prompt alone."""
LEAST = 128
"""Tokens fewer than which are not worth scoring."""
OWN, LONGEST_OWN = "own", 400_000
"""A visitor's own text, and how many of its characters are read."""


@dataclass(frozen=True)
class Excerpt:
    """A piece of a text of one kind; `tokens` from `start` on are scored."""

    kind: str
    tokens: tuple[int, ...]
    start: int

    @property
    def scored(self) -> int:
        return len(self.tokens) - self.start


def acts_from(stack: Stack, longest: int) -> int:
    """After how many tokens of a text of `longest` a stack acts: an eviction, a hidden row, a prompt that lost tokens.

    `longest` where it never does.
    """
    at = 0
    for technique in stack:
        if isinstance(technique, CachePolicy) and not technique.lossless():
            at = max(at, sum(technique.budget_and_slack()))
        elif isinstance(technique, AttentionPattern) and not technique.lossless():
            at = max(at, _hides_from(technique, longest))
        elif isinstance(technique, LayerPlan) and technique.phase == "prefill" and not technique.lossless():
            at = max(at, min(PROMPT, longest // 2))
    return min(at, longest)


def _hides_from(pattern: AttentionPattern, longest: int) -> int:
    """The first position whose query does not see every row before it."""
    place = torch.arange(longest)
    q, k = place[None, :, None], place[None, None, :]
    hidden = ~pattern.visible(q, k, 0, torch.zeros(1, 1, 1, dtype=torch.long)) & (k <= q)
    rows = hidden[0].any(-1).nonzero()
    return int(rows[0]) if len(rows) else longest


def excerpts(tokenizer: Any, context: int, stack: Stack, own: str | None = None) -> list[Excerpt]:
    """The pieces to score: of the project's texts, or of a visitor's `own`; none where the stack acts on none of them.

    Every piece fits the model's `context`; where that is shorter than a text, there are several. Raises Refused for an
    own text that is too short.
    """
    files = {kind: (ASSETS / "texts" / name).read_text(encoding="utf-8") for kind, name in TEXTS.items()}
    found = []
    for kind, text in {OWN: own[:LONGEST_OWN]}.items() if own is not None else files.items():
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces = cut(kind, tokens, context, stack)
        if own is not None and not pieces:
            why = f"has {len(tokens)} tokens, of which fewer than {LEAST} come after this stack begins to act"
            raise Refused("The text to measure quality on", why, "Give a longer one")
        found += pieces
    return found


def cut(kind: str, tokens: Sequence[int], context: int, stack: Stack) -> list[Excerpt]:
    """A text's pieces, until `SCORED` tokens are scored."""
    longest = min(context, len(tokens))
    start = max(CONTEXT, acts_from(stack, longest))
    pieces, at, scored = [], 0, 0
    while scored < SCORED:
        piece = tuple(tokens[at : at + min(context, start + SCORED - scored)])
        if len(piece) - start < min(LEAST, SCORED - scored):
            break
        pieces.append(Excerpt(kind, piece, start))
        at, scored = at + len(piece), scored + pieces[-1].scored
    return pieces

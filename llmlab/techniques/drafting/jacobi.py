from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass

from llmlab.runtime.configurable import knob
from llmlab.runtime.draft import Draft, Verdict
from llmlab.runtime.roles import Drafter
from llmlab.runtime.session import Session
from llmlab.runtime.tools import Tools


@dataclass(frozen=True)
class Jacobi(Drafter):
    """Jacobi decoding.

    Idea: Greedy decoding solves one equation per token, each needing those before it. Guess a whole block, let the
    model correct all of it at once, and repeat until nothing changes: often sooner than one token at a time.
    Method: yᵢ ← argmax p(· | x, y₁…yᵢ₋₁) for the whole block in one pass. After pass k at least the first k tokens are
    final, for they no longer depend on a guess. "jacobi" slides the block over what is final, "gs-jacobi" finishes a
    block before it begins the next, "hybrid" does so for `parallel` tokens and goes on one by one.
    What to look for: Guesses that prove right although the pass before had others in front of them. There are few,
    unless a model was trained for it, and every pass costs as much as its block is wide.
    Differences from the paper: Final tokens are committed as the pass shows them and not computed again. The paper's
    "jacobi" takes the whole answer as its block, whose length a decoder does not know, and "copy" means the source of a
    translation: here it is what followed the last word where it stood before. Under sampling the guesses stay argmaxes,
    and the output follows the model all the same.
    """

    covers = ("jacobi-parallel-decoding",)
    claim = "Guesses a block of tokens and lets the model correct all of them at once."
    claim_zh = "猜出一整块词元，让模型一次全部改正。"
    biting_settings = {"block": 8}
    main_knob = "block"

    mode: str = knob("gs-jacobi", choices=("gs-jacobi", "jacobi", "hybrid"), help="what follows a finished token")
    block: int = knob(4, 2, 32, "tokens corrected at once")
    init: str = knob("copy", choices=("copy", "repeat-last", "random", "pad"), help="what a block begins with")
    parallel: int = knob(64, 1, 4096, "tokens that hybrid writes in blocks", advanced=True)

    def drafts(self, session: Session, tools: Tools) -> Generator[Draft, Verdict, None]:
        begin = _Beginning(self.init, getattr(tools.tokenizer, "pad_token_id", None) or 0)
        prompt = len(session.tokens)
        y: list[int] = []  # the last pass's corrections of what is not final yet
        left = self.block
        while True:
            if self.mode == "hybrid" and len(session.tokens) - prompt >= self.parallel:
                yield Draft()
                continue
            # The pass corrects one token more than it is given: the first one needs no guess.
            n = min((self.block if self.mode == "jacobi" else left) - 1, session.max_draft_depth())
            y = (y + begin(session.tokens, y, n))[:n]
            verdict = yield Draft.chain(y)
            final = len(verdict.path) + 1
            y, left = list(verdict.best[final:]), left - final
            if self.mode != "jacobi" and left <= 0:
                y, left = [], self.block


class _Beginning:
    """Guesses where no pass has made any yet."""

    def __init__(self, init: str, pad: int) -> None:
        self.init, self.pad = init, pad
        self.rng = random.Random(0)
        self.place: dict[int, int] = {}
        self.indexed = 0

    def __call__(self, tokens: list[int], y: list[int], n: int) -> list[int]:
        """At least what y lacks to n tokens, to stand behind tokens and y."""
        lack = max(0, n - len(y))
        last = y[-1] if y else tokens[-1]
        match self.init:
            case "pad":
                return [self.pad] * lack
            case "random":
                return [self.rng.choice(tokens) for _ in range(lack)]
            case "copy":
                # A token that is the last one of the text has nothing behind it to copy.
                for at in range(self.indexed, len(tokens) - 1):
                    self.place[tokens[at]] = at + 1
                self.indexed = len(tokens) - 1
                at = self.place.get(last, len(tokens))
                return (tokens[at : at + lack] + [last] * lack)[:lack]
        return [last] * lack

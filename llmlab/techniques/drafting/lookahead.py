from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from llmlab.runtime.configurable import knob
from llmlab.runtime.draft import Draft, Verdict
from llmlab.runtime.roles import Drafter
from llmlab.runtime.session import Session
from llmlab.runtime.tools import Tools
from llmlab.techniques.drafting.draft_tree import Tree


@dataclass(frozen=True)
class Lookahead(Drafter):
    """Lookahead decoding.

    Idea: The wrong guesses of Jacobi decoding are not worthless: what the model writes after them is often a phrase
    that turns up later, at another place. Collect such phrases, and check them when their first word comes up.
    Method: One pass holds two branches. The lookahead branch keeps the last N − 1 Jacobi guesses at each of W places
    ahead and adds one, which makes W new n-grams along the diagonals; the verification branch tries up to G n-grams of
    the pool that begin with the last token. Every pass commits at least one token.
    What to look for: Accepted tokens grow as the pool fills. A pass is W·(N − 1) + G·(N − 1) tokens wide: it pays where
    a wide pass costs no more than a narrow one, on a GPU with room to spare, and seldom on a CPU.
    Differences from the paper: Both branches are one token tree, with what they have in common computed once; the
    window's diagonals are paths off its oldest row, which is the paper's attention mask. So a node of the lookahead
    branch that proves right is accepted too. W, N and G are small here (the paper takes 15, 5 and 15 for a model of 7 B
    on an A100). Under sampling the guesses stay argmaxes.
    """

    covers = ("https://arxiv.org/abs/2402.02057",)
    claim = "Collects phrases from wrong guesses ahead and tries them when their turn comes."
    claim_zh = "从超前的错误猜测中收集短语，轮到时再试用。"
    biting_settings = {"window": 4, "ngram": 4, "candidates": 6}
    main_knob = "window"

    window: int = knob(2, 1, 30, "W: places ahead that are guessed at")
    ngram: int = knob(3, 2, 8, "N: tokens of an n-gram")
    candidates: int = knob(2, 1, 30, "G: n-grams kept per first token, and tried")
    text: bool = knob(True, help="n-grams of the prompt and the answer go into the pool as well")

    def drafts(self, session: Session, tools: Tools) -> Generator[Draft, Verdict, None]:
        W, N = self.window, self.ngram
        rng = random.Random(0)
        pool: dict[int, dict[tuple[int, ...], None]] = {}
        read = 0
        # The window: `oldest` holds the guesses at the places 1 … W - 1 ahead, place 0 being the last committed token;
        # `levels[k][i]` is what the model said on place i's diagonal k + 1 passes later, one place further each time.
        oldest = [rng.choice(session.tokens) for _ in range(W - 1)]
        levels = [[rng.choice(session.tokens) for _ in range(W)] for _ in range(N - 2)]
        while True:
            tokens, last = session.tokens, session.tokens[-1]
            if self.text:
                for at in range(read, len(tokens) - N + 1):
                    self._remember(pool, tokens[at : at + N])
                read = max(read, len(tokens) - N + 1)
            tree = Tree()
            for gram in reversed(pool.get(last, {})):
                tree.path(gram)
            ends, node = [], -1
            for i in range(W):
                node = node if i == 0 else tree.add(node, oldest[i - 1])
                ends.append(tree.path([level[i] for level in levels], node))
            draft = tree.draft()
            verdict = yield draft
            if verdict.draft is not draft:  # cut for want of room: some ends are gone
                continue
            fresh = [verdict.best[end + 1] for end in ends]
            for i, first in enumerate([last, *oldest]):
                self._remember(pool, (first, *(level[i] for level in levels), fresh[i]))
            # The window moves on by one place however many tokens were committed, or its diagonals would be torn.
            (_, *oldest), *levels = [*levels, fresh]

    def _remember(self, pool: dict[int, dict[tuple[int, ...], None]], gram: Sequence[int]) -> None:
        """Put an n-gram first among those that begin alike; the one that was last of them longest gives way."""
        known = pool.setdefault(gram[0], {})
        known.pop(tuple(gram[1:]), None)
        known[tuple(gram[1:])] = None
        if len(known) > self.candidates:
            del known[next(iter(known))]

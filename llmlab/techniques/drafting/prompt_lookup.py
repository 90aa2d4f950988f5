from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from llmlab.runtime.configurable import knob
from llmlab.runtime.draft import Draft, Verdict
from llmlab.runtime.roles import Drafter
from llmlab.runtime.session import Session
from llmlab.runtime.tools import Tools


@dataclass(frozen=True)
class PromptLookup(Drafter):
    """Prompt lookup.

    Idea: Text often repeats itself. When the last few tokens have occurred before, guess that what followed them then
    follows them now. The draft costs nothing, and the model checks all of it in one pass.
    Method: For n from `ngram` down to `least`: if the last n tokens stand earlier in the text, draft the `length`
    tokens after their latest earlier occurrence. No match, no draft.
    What to look for: Accepted per pass. It jumps where the answer quotes the prompt (code editing, extraction) and
    stays near one in free prose.
    Differences from the paper: The original takes the first occurrence it finds; this one the latest, which is closer
    to what is going on.
    """

    covers = ("https://github.com/apoorvumang/prompt-lookup-decoding",)
    claim = "Guesses by copying what followed the same words before."
    claim_zh = "照抄前文中相同词语之后的内容作为猜测。"
    biting_settings = {"length": 9, "ngram": 3, "least": 1}
    main_knob = "length"

    length: int = knob(10, 1, 32, "tokens drafted after a match")
    ngram: int = knob(3, 1, 8, "longest match tried, in tokens")
    least: int = knob(2, 1, 8, "shortest match that counts, in tokens", advanced=True)

    def drafts(self, session: Session, tools: Tools) -> Generator[Draft, Verdict, None]:
        after: dict[tuple[int, ...], int] = {}  # an n-gram to where its latest occurrence ended
        indexed = 0
        while True:
            tokens = session.tokens
            # The n-grams that end at the last token stay out: they would only find themselves.
            for end in range(max(indexed, 1), len(tokens)):
                for n in range(self.least, self.ngram + 1):
                    if n <= end:
                        after[tuple(tokens[end - n : end])] = end
            indexed = len(tokens)
            guess: list[int] = []
            for n in range(self.ngram, self.least - 1, -1):
                at = after.get(tuple(tokens[len(tokens) - n :])) if n <= len(tokens) else None
                if at is not None:
                    guess = tokens[at : at + self.length]
                    break
            yield Draft.chain(guess)

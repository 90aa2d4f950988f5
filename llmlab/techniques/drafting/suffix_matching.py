from __future__ import annotations

import heapq
from collections.abc import Generator
from dataclasses import dataclass

from llmlab.runtime.configurable import knob
from llmlab.runtime.draft import Draft, Verdict
from llmlab.runtime.roles import Drafter
from llmlab.runtime.session import Session
from llmlab.runtime.tools import Tools
from llmlab.techniques.drafting.suffixes import Suffixes


@dataclass(frozen=True)
class SuffixMatching(Drafter):
    """Suffix decoding.

    Idea: When the end of the text has occurred before, what followed it then may follow now. The longer the repeated
    end and the more often the same words followed, the longer the draft.
    Method: After a repeated end of p tokens, a node's value D is its parent's times C(node) / Σ C(siblings), with C how
    often that text occurs; the nodes of highest D are drafted, at most `factor`·p of them and none below `confidence`.
    Of all repeated ends, the one whose tree has the highest Σ D wins.
    What to look for: The length of the drafts: long in the middle of a quotation, short or nothing in free prose.
    Differences from the paper: It knows this prompt and this answer; the paper keeps a second tree of earlier answers.
    A suffix automaton stands in for the suffix trees, and of equally frequent words the latest wins. The paper's
    threshold is lower (0.1), its draft longer: here checking a token costs more.
    """

    covers = ("https://arxiv.org/abs/2411.04975",)
    claim = "Copies what most often followed the same words, further the longer the match."
    claim_zh = "照抄相同词语之后最常出现的内容，匹配越长抄得越远。"
    biting_settings = {"factor": 4.0, "nodes": 12, "least": 1, "confidence": 0.0}
    main_knob = "nodes"

    factor: float = knob(1.0, 0.25, 4.0, "tokens drafted per token of the match")
    nodes: int = knob(16, 1, 64, "tokens drafted at most")
    least: int = knob(2, 1, 8, "shortest match that counts, in tokens")
    confidence: float = knob(0.5, 0.0, 1.0, "leave out what is less likely than this")
    tree: bool = knob(True, help="draft the branches of a tree, not only the likeliest chain")

    def drafts(self, session: Session, tools: Tools) -> Generator[Draft, Verdict, None]:
        suffixes, known = Suffixes(), 0
        while True:
            for token in session.tokens[known:]:
                suffixes.append(token)
            known = len(session.tokens)
            room = session.max_draft_depth()
            best, value = Draft(), 0.0
            for s in suffixes.patterns(self.least):
                draft, sure = self._expand(suffixes, s, room)
                if sure > value:
                    best, value = draft, sure
            yield best

    def _expand(self, suffixes: Suffixes, pattern: int, room: int) -> tuple[Draft, float]:
        """The likeliest continuations of a pattern, and how many of them should prove right."""
        tokens: list[int] = []
        parents: list[int] = []
        value = 0.0
        most = min(self.nodes, round(self.factor * suffixes.length[pattern])) if room else 0
        waiting = self._following(suffixes, pattern, -1, 1, 1.0)
        while waiting and len(tokens) < most:
            d, _, parent, depth, token, state = heapq.heappop(waiting)
            tokens.append(token)
            parents.append(parent)
            value -= d
            if depth < room:
                for item in self._following(suffixes, state, len(tokens) - 1, depth + 1, -d):
                    heapq.heappush(waiting, item)
        return Draft(tuple(tokens), tuple(parents), (None,) * len(tokens)), value

    def _following(
        self, suffixes: Suffixes, state: int, parent: int, depth: int, value: float
    ) -> list[tuple[float, int, int, int, int, int]]:
        """What may follow a state, the likeliest and latest first, as a heap."""
        after = suffixes.next[state]
        total = sum(suffixes.count[s] for s in after.values())
        found = sorted(
            (-value * suffixes.count[s] / total, -suffixes.seen[s], parent, depth, token, s)
            for token, s in after.items()
            if value * suffixes.count[s] >= self.confidence * total
        )
        return found if self.tree else found[:1]

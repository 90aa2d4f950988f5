from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from llmlab.errors import Refused
from llmlab.models.capabilities import Capability
from llmlab.runtime.configurable import knob
from llmlab.runtime.draft import Draft, Verdict
from llmlab.runtime.roles import Drafter
from llmlab.runtime.session import Session
from llmlab.runtime.tools import Tools
from llmlab.techniques.drafting.draft_heads import DraftHeads
from llmlab.techniques.drafting.draft_model import DraftModel
from llmlab.techniques.drafting.draft_tree import TREES, Tree, branches
from llmlab.techniques.drafting.eagle import Eagle
from llmlab.techniques.drafting.prompt_lookup import PromptLookup
from llmlab.techniques.drafting.self_speculation import SelfSpeculation
from llmlab.techniques.drafting.suffix_matching import SuffixMatching

TEAM = 4
"""Drafters that one run may have."""


@dataclass(frozen=True)
class MultiDraft(Drafter):
    """Several drafters, one tree.

    Idea: Drafters err in different places. Let several of them guess, merge their guesses into one token tree in which
    common beginnings stand once, and check the whole tree in one pass.
    Method: At a node, try its children in order: accept x, drawn from q, with probability min(1, p(x) / q(x)), else go
    on with p ← max(p − q, 0), normalised. A child that an earlier drafter has proposed already is not tried twice; the
    others carry the q they have given that they differ from their elder siblings.
    What to look for: Accepted tokens against nodes: a second drafter pays where the first is wrong and it is right.
    Differences from the paper: SpecInfer draws its drafters from models fine-tuned to cover for one another, and its
    merged drafts can hold a token twice; here drafters are other formats of the model, a shortened model, and what
    copies from the text. Nodes beyond `nodes` are left out in the order of the drafters.
    """

    covers = ("specinfer",)
    claim = "Merges the guesses of several drafters into one tree and checks it in one pass."
    claim_zh = "把几个草稿者的猜测合成一棵树，一次验证。"
    biting_settings = {"drafters": "int4+lookup", "length": 5, "tree": "2x1", "nodes": 15, "confidence": 0.0}
    main_knob = "length"

    drafters: str = knob(
        "lookup+suffix",
        choices=("lookup+suffix", "suffix+eagle", "int4+lookup", "int4+int8", "skip+suffix", "int4+skip+lookup", "*"),
        help="weight formats or catalogue models, lookup, suffix, skip, eagle, heads; joined with +",
    )
    how: str = knob(
        "merge", choices=("merge", "first"), help="all guesses in one tree, or those of the first that has any"
    )
    length: int = knob(4, 1, 16, "tokens drafted per pass by each of them")
    tree: str = knob("1", choices=TREES, help="children per step that a model drafts")
    nodes: int = knob(6, 1, 63, "nodes of the merged tree at most")
    confidence: float = knob(0.25, 0.0, 1.0, "models, eagle and heads leave out what is less likely than this")

    def __post_init__(self) -> None:
        super().__post_init__()
        branches(self.tree, self.title)
        names = self.drafters.split("+")
        if "" in names or len(names) > TEAM or len(set(names)) < len(names):
            now = f"Name up to {TEAM} different ones, joined with +, such as int4+lookup"
            raise Refused(self.title, f"cannot read {self.drafters[:40]!r} as drafters", now)

    def team(self) -> list[Drafter]:
        """The drafters asked for, in their order."""
        team: list[Drafter] = []
        unsure, wide = self.confidence, max(branches(self.tree, self.title))
        for name in self.drafters.split("+"):
            match name:
                case "lookup":
                    team.append(PromptLookup(length=self.length))
                case "suffix":
                    team.append(SuffixMatching(nodes=self.length))
                case "eagle":
                    team.append(Eagle(length=self.length, nodes=self.length, breadth=wide, confidence=unsure))
                case "heads":
                    team.append(DraftHeads(nodes=self.length, breadth=wide, confidence=unsure))
                case "skip":
                    team.append(SelfSpeculation(length=self.length, tree=self.tree, confidence=unsure))
                case _:
                    team.append(DraftModel(model=name, length=self.length, tree=self.tree, confidence=unsure))
        return team

    def required(self) -> frozenset[Capability]:
        return frozenset().union(*(drafter.required() for drafter in self.team()))

    def prepare(self, model: Any, tools: Tools) -> None:
        for drafter in self.team():
            drafter.prepare(model, tools)

    def taps(self, model: Any, tools: Tools) -> tuple[int, ...]:
        asked = [taps for drafter in self.team() if (taps := drafter.taps(model, tools))]
        if len(asked) > 1:
            raise Refused(self.title, "has room for one drafter that reads hidden states", "Name eagle or heads")
        return asked[0] if asked else ()

    def drafts(self, session: Session, tools: Tools) -> Generator[Draft, Verdict, None]:
        team = [drafter.drafts(session, tools) for drafter in self.team()]
        begun: set[int] = set()
        asked = range(0)
        verdict = Verdict()
        while True:
            tree = Tree()
            last, asked = asked, range(len(team))
            for i in asked:
                # One that was not asked the last time has no part in that verdict.
                guess = team[i].send(verdict if i in last else Verdict()) if i in begun else next(team[i])
                begun.add(i)
                tree.merge(guess, self.nodes)
                if self.how == "first" and len(tree):
                    asked = range(i, i + 1)
                    break
            verdict = yield tree.draft()

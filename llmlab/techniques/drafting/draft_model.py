from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llmlab.runtime.configurable import knob
from llmlab.runtime.draft import Draft, Verdict
from llmlab.runtime.roles import Drafter
from llmlab.runtime.session import Session
from llmlab.runtime.tools import Tools
from llmlab.techniques.drafting.draft_length import AdaptiveLength, row_cost
from llmlab.techniques.drafting.draft_session import DraftSession
from llmlab.techniques.drafting.draft_tree import TREES, branches, chain, grow


@dataclass(frozen=True)
class DraftModel(Drafter):
    """Draft model.

    Idea: A cheaper model with the same vocabulary writes a few tokens ahead; the model checks them all in one pass and
    keeps those that it would have written itself.
    Method: Draw x₁…x_k from the draft model's q. Accept xᵢ with probability min(1, p(xᵢ) / q(xᵢ)); at the first
    rejection draw from max(p − q, 0), normalised. The output follows p exactly; the expected tokens per pass are (1 −
    α^(k+1)) / (1 − α) for an acceptance rate α.
    What to look for: Acceptance rate against time per pass. It pays when k draft steps and one wide pass take less time
    than the tokens they yield would have taken one by one.
    Differences from the paper: The draft ends early where the draft model is unsure (`confidence`), which the papers
    leave open. "int4", "int8" and "nf4" draft with the running model itself at lower precision (quantized
    self-speculation). `tree` drafts several tokens per step, as later work does; `adapt` takes for α the rate of the
    last drafts, and for a draft step's time its share of the bytes read.
    """

    covers = ("speculative-decoding", "speculative-sampling")
    claim = "A cheaper model guesses ahead, the model checks several tokens at once."
    claim_zh = "由更便宜的模型先猜，模型一次验证多个词元。"
    biting_settings = {"length": 6, "confidence": 0.0}
    main_knob = "length"

    model: str = knob("int4", choices=("int4", "int8", "nf4", "*"), help="a catalogue model, or this one at fewer bits")
    length: int = knob(4, 1, 16, "tokens drafted per pass")
    tree: str = knob("1", choices=TREES, help="children per step; the last number goes on")
    adapt: bool = knob(False, help="shorten the draft where guesses are rejected, up to length where not")
    confidence: float = knob(0.4, 0.0, 1.0, "stop drafting below this probability", advanced=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        branches(self.tree, self.title)

    def prepare(self, model: Any, tools: Tools) -> None:
        tools.partner(self.model)

    def drafts(self, session: Session, tools: Tools) -> Generator[Draft, Verdict, None]:
        helper = DraftSession(tools.partner(self.model), session.model.vocab)
        tools.remember(helper.memory)
        shape = branches(self.tree, self.title)
        pace = AdaptiveLength(self.length, row_cost(session.model) + helper.model.nbytes / session.model.nbytes)

        def score(draft: Draft) -> Tensor:
            helper.follow(session.tokens, 1)  # takes the nodes of the level before back
            return helper.forward(draft).logits

        while True:
            k = min(pace.length() if self.adapt else self.length, session.max_draft_depth())
            k, draft = helper.follow(session.tokens, k), Draft()
            if k and shape == (1,):
                draft = chain(session, helper, k, self.confidence)
            elif k:
                draft = grow(session, score, shape, k, self.confidence)
            pace.learn((yield draft))

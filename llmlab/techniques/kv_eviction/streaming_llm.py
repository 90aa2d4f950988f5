from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmlab.kv.rows import Rows
from llmlab.models.capabilities import Capability
from llmlab.runtime.configurable import knob
from llmlab.runtime.roles import UNBOUNDED, CachePolicy
from llmlab.runtime.session import Session


@dataclass(frozen=True)
class StreamingLLM(CachePolicy):
    """StreamingLLM.

    Idea: Models park surplus attention on the first few tokens, the sinks. Keep those and a window of the latest
    tokens: memory stops growing, and the model stays fluent for as long as it runs, also far past its own context. What
    lies between is forgotten.
    Method: Keep rows {0…sinks−1} and the last budget − sinks. Positions are counted inside the cache, so keys are
    rotated again when their rows move.
    What to look for: KV memory goes flat. Set the sinks to 0 and watch the text fall apart; ask about something that
    has left the window and watch it be forgotten.
    Differences from the paper: Eviction happens every `every` tokens and not at each one, which is what keeps
    speculation exact beside it.
    """

    covers = ("streaming-llm",)
    claim = "Keeps the first few tokens and a window of the latest; forgets the middle."
    claim_zh = "只保留开头几个词元和最近的窗口，忘掉中间。"
    noop_settings = {"budget": UNBOUNDED}
    biting_settings = {"budget": 12, "every": 5}
    main_knob = "budget"

    budget: int = knob(128, 4, UNBOUNDED, "rows kept per layer")
    sinks: int = knob(4, 0, 64, "first tokens that always stay")
    every: int = knob(16, 1, 256, "new rows that gather before an eviction", advanced=True)
    reposition: bool = knob(True, help="count positions inside the cache, as the paper does", advanced=True)

    def required(self) -> frozenset[Capability]:
        return self.needs | ({Capability.ROTARY} if self.reposition else frozenset())

    def budget_and_slack(self) -> tuple[int, int]:
        return self.budget, self.every

    def text_limit(self, context: int) -> int | None:
        return None if self.reposition and self.budget + self.every <= context else context

    def keep(self, rows: Rows) -> Tensor:
        sinks = min(self.sinks, self.budget)
        return torch.cat([torch.arange(sinks), torch.arange(rows.count - (self.budget - sinks), rows.count)])

    def after_eviction(self, rows: Rows, session: Session) -> None:
        if self.reposition:
            session.reposition(rows)

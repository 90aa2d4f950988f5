from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmlab.kv.rows import Rows
from llmlab.models.capabilities import Capability
from llmlab.runtime.configurable import knob
from llmlab.runtime.roles import UNBOUNDED, CachePolicy


@dataclass(frozen=True)
class H2O(CachePolicy):
    """H2O, heavy hitters.

    Idea: A few tokens collect most of the attention, and they tend to go on doing so. Keep these heavy hitters and the
    most recent tokens, head by head; drop the rest.
    Method: score(s) = Σ over all queries so far of the attention paid to row s. Keep the recent share of the budget,
    and of the older rows those with the highest scores.
    What to look for: Rows per layer and KV memory against the quality table. Compare with StreamingLLM at the same
    budget on a prompt whose answer lies in its middle.
    Differences from the paper: Eviction happens every `every` tokens and not at each one; query heads that share keys
    add up their scores (the paper's models share none); the prompt is read whole before the first eviction, as in the
    paper.
    """

    covers = ("h2o",)
    needs = CachePolicy.needs | {Capability.ATTENTION}
    claim = "Keeps the tokens that have drawn the most attention, and the latest ones."
    claim_zh = "保留获得注意力最多的词元和最近的词元。"
    noop_settings = {"budget": UNBOUNDED}
    biting_settings = {"budget": 12, "every": 5}
    main_knob = "budget"
    observes = True
    during_prompt = False

    budget: int = knob(128, 4, UNBOUNDED, "rows kept per layer and head")
    recent: float = knob(0.5, 0.0, 1.0, "share of the budget for the latest tokens")
    every: int = knob(16, 1, 256, "new rows that gather before an eviction", advanced=True)

    def budget_and_slack(self) -> tuple[int, int]:
        return self.budget, self.every

    def observe(self, rows: Rows, attention: Tensor) -> None:
        H, n, S = attention.shape
        heads = rows.k.shape[0]
        rows.stat("score")[:, :S] += attention.view(heads, H // heads, n, S).sum((1, 2))

    def keep(self, rows: Rows) -> Tensor:
        recent = round(self.recent * self.budget)
        older = rows.count - recent
        heavy = rows.stat("score")[:, :older].topk(self.budget - recent, -1).indices.sort(-1).values
        latest = torch.arange(older, rows.count, device=heavy.device).expand(len(heavy), -1)
        return torch.cat([heavy, latest], -1)

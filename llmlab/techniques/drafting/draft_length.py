"""How long a draft should be: the length that pays at the rate of acceptance seen lately."""

from __future__ import annotations

from llmlab.runtime.draft import Verdict

# The length that pays -------------------------------------------------------------------------------------------

ROW_CPU, ROW_GPU = 0.24, 0.02
"""What one more row adds to a pass, in passes of one row. On two CPU cores with int4 weights a pass of 4 rows takes 1.7
times as long and one of 8 rows 2.7 times; a GPU waits for the weights, and a row is next to free."""
MEMORY = 0.9
"""How much of what was seen still counts one draft later: the rate is one of the last ten drafts or so."""


def row_cost(model: object) -> float:
    """What checking one more token costs on this model's device, in passes."""
    return ROW_CPU if str(getattr(model, "device", "cpu")).startswith("cpu") else ROW_GPU


class AdaptiveLength:
    """How long the next draft should be, by the rate α at which guesses were accepted lately.

    With a guess costing c passes (to make and to check), k of them yield (1 − α^(k+1)) / (1 − α) tokens in 1 + c·k
    passes: take the k from 1 to `most` that yields most per pass (Leviathan et al., arXiv 2211.17192, theorem 3.8).
    """

    def __init__(self, most: int, cost: float) -> None:
        self.most, self.cost = most, cost
        self.accepted, self.tried = 2.0, 3.0  # as if it had begun with two right guesses of three

    def rate(self) -> float:
        return self.accepted / self.tried

    def length(self) -> int:
        a = self.rate()
        return max(range(1, self.most + 1), key=lambda k: sum(a**i for i in range(k + 1)) / (1 + self.cost * k))

    def learn(self, verdict: Verdict) -> None:
        """Each accepted guess was a success, and the one after them a failure, if there was one."""
        if not len(verdict.draft):
            return
        accepted = len(verdict.path)
        failed = accepted < max(verdict.draft.depths())
        self.accepted = MEMORY * self.accepted + accepted
        self.tried = MEMORY * self.tried + accepted + failed

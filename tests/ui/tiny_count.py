"""A study that counts: quick, with every kind of chart and claim, and with text that tries to be more than text."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import ClassVar

from llmlab.lab.study import Chart, Claim, Findings, Study, Subject
from llmlab.runtime.configurable import knob
from tests.held import Gate

ATTACK = '<img src=x onerror="window.pwned=1"> ${7*7} {{7*7}} <script>window.pwned=2</script> `${window.pwned=3}`'


@dataclass(frozen=True)
class TinyCount(Study):
    """Counting.

    Idea: A study for the tests of the page, which need one that takes no time and finds the same each time.
    Method: For each step a row with a level, a cost and whether the answer was right.
    What to look for: The table, one figure of each kind, and one claim of each outcome.
    Differences from the paper: No paper counts like this one, so there is nothing that it could differ from.
    """

    covers = ("speculative-decoding",)
    bench = "cascade"
    claim = "Counts to a number and says what it has found on the way."
    threads: ClassVar[list[str]] = []
    """The names of the threads that have carried it out."""
    gate: ClassVar[Gate] = Gate()
    """What each step passes after it has been told of."""

    steps: int = knob(4, 1, 1000, "how far it counts")
    cost: float = knob(1.5, 0.0, 10.0, "what its first step costs")
    word: str = knob("auto", choices=("auto", "*"), help="a word that it repeats")
    loud: bool = knob(False, help="whether it shouts", advanced=True)

    def run(self, subject: Subject) -> Findings:
        self.threads.append(threading.current_thread().name)
        rows = []
        for i in range(self.steps):
            subject.progress("Counting", i, self.steps)
            self.gate.pass_through(subject.stop)
            rows.append(
                {
                    "n": i,
                    "level": i % 2,
                    "cost": self.cost + i,
                    "correct": i % 3 > 0,
                    "half": i / 2,
                    "says": ATTACK + self.word,
                }
            )
        columns = {"n": "Count", "level": "Level", "cost": "Cost", "correct": "Right", "half": "Half", "says": "Says"}
        charts = [Chart(f"As a {kind}", "n", "cost", "level", kind) for kind in ("line", "bar", "points", "front")]
        charts.append(Chart("Against its half", "n", "cost", ideal="half"))
        charts.append(Chart("Nothing to draw", "says", "missing"))
        claims = [
            Claim("section 1", "Counting goes up.", True, f"It went to {self.steps}. {ATTACK}"),
            Claim("section 2", "Counting goes down.", False, "It went up."),
            Claim("section 3", "Counting helps.", None, "It did, by less than its error."),
            Claim("section 4", "Counting ends.", None, "Nobody has waited for it.", testable=False),
        ]
        return Findings(columns, rows, charts, claims, [f"A note. {ATTACK}"])

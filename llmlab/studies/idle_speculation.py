from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from llmlab.lab.study import Chart, Claim, Findings, Study, Subject
from llmlab.measure.statistics import Estimate, all_above, mean, ratios
from llmlab.runtime.configurable import knob
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make
from llmlab.serving.scheduler import Request, Scheduler, Share
from llmlab.serving.server import Server
from llmlab.studies.support.serving_load import HEADINGS, Served, figures, poisson, prompts

POLICIES = ("off", "always", "idle-only")
FALL = 0.02
"""A fall of throughput by less than this share is none."""


@dataclass(frozen=True)
class Speculating(Scheduler):
    """Decides which rows of a pass guesses may take: none, any, or those that would stay empty."""

    policy: str
    length: int
    rows: int
    block: int

    def decode(self, here: Sequence[Request], waiting: int) -> list[Share]:
        spare, shares = self.spare(len(here), waiting), []
        for request in here:
            draft = request.propose(min(spare, self.length))
            spare -= len(draft)
            shares.append(Share(request, draft=draft))
        return shares

    def spare(self, mandatory: int, waiting: int) -> int:
        """Rows for guesses in a pass of `mandatory` rows, while `waiting` requests have no slot."""
        if self.policy == "always":
            return mandatory * self.length
        if self.policy == "off" or waiting:
            return 0
        return min(-mandatory % self.block, self.rows - mandatory)


Found = dict[float, dict[str, list[Served]]]
"""By load and policy, round after round."""


@dataclass(frozen=True)
class IdleSpeculation(Study):
    """Speculation in idle rows.

    Idea: Work may begin before anybody knows that it is needed. If what is surely needed always goes first, Burton
    argued of parallel machines in 1985, such speculation can only help. A server of language models speculates too:
    drafted tokens take rows of the same passes as the next tokens of the requests that it serves.
    Method: Mandatory rows are the next tokens of the m running requests, at most `rows`. Guesses get no row ("off"),
    `length` rows each ("always"), or, "idle-only", the rows that are missing to the next multiple of `block`, and none
    while a request waits for a slot. Requests arrive as a Poisson process; a load of 1 is what "off" just manages.
    What to look for: Throughput and latency against load: where "always" crosses "off", and whether "idle-only" ever
    does. Then the guesses that came to nothing: under load they take the place of work.
    Differences from the paper: Burton's speculative tasks run on idle processors, which cost nothing. Rows do: the
    notes say what passes of several widths took here. Mandatory work never waits for a guess, but a pass in progress is
    not broken off.
    """

    covers = ("burton-speculative-computation",)
    claim = "Guess only in the rows that a batch leaves free, and speculation should never cost throughput."
    claim_zh = "只在批次空出的行里猜测，投机就不应降低吞吐量。"
    bench = "serving"

    drafter: str = knob("prompt-lookup", choices=("prompt-lookup", "draft-model"), help="who guesses")
    length: int = knob(4, 1, 8, "guesses per request and pass at most")
    rows: int = knob(8, 1, 32, "requests that run at once; idle-only fills a pass no further")
    block: int = knob(4, 1, 32, "rows that the kernel works on together: up to the next multiple they count as idle")
    requests: int = knob(12, 2, 400, "requests per load and round")
    tokens: int = knob(24, 1, 512, "new tokens per request at most")
    loads: int = knob(4, 1, 8, "how many loads, each twice the one before")
    highest: float = knob(4.0, 0.1, 16.0, "the highest load, in units of what the server manages without guesses")
    rounds: int = knob(5, 2, 50, "rounds, in each of which every policy meets the same arrivals")

    def run(self, subject: Subject) -> Findings:
        server, asked = Server(subject.model, self.rows), prompts(subject, self.requests)
        total, done = self.loads * self.rounds * len(POLICIES) + len(POLICIES) + 1, 0

        def serve(policy: str, load: float, arrivals: Sequence[float]) -> Served:
            nonlocal done
            served = Served([], [Request(p, self.tokens, at) for p, at in zip(asked, arrivals, strict=True)])
            stack = Stack([make(self.drafter, length=self.length)] if policy != "off" else [])
            scheduler = Speculating(policy, self.length, self.rows, self.block)
            told = -1.0
            for p in server.serve(served.requests, scheduler, stack, subject.tools, subject.loaded.stop_tokens):
                served.passes.append(p)
                if p.now > told + 1:
                    told = p.now
                    subject.progress(f"Load {load:.2g}, guesses {policy}", done, total)
            subject.tools.forget_memories()
            done += 1
            return served

        at_once = [0.0] * self.requests
        for policy in POLICIES:  # what happens only once per process must not count
            serve(policy, 1, at_once)
        capacity = self.requests / serve("off", 1, at_once).span
        found: Found = {}
        for load in [self.highest / 2**i for i in reversed(range(self.loads))]:
            arrivals = poisson(self.requests, load * capacity, subject.settings.seed)
            found[load] = {policy: [] for policy in POLICIES}
            for turn in range(self.rounds):
                for i in range(len(POLICIES)):
                    policy = POLICIES[(i + turn) % len(POLICIES)]
                    found[load][policy].append(serve(policy, load, arrivals))
        return Findings(
            {
                "policy": "guesses",
                "load": "load",
                "ratio": "× off",
                "error": "± of that",
                "other": "texts other than off's",
                **HEADINGS,
            },
            [
                {"policy": p, "load": load, **_against(by, p), "other": others(by, p), **figures(by[p])}
                for load, by in found.items()
                for p in POLICIES
            ],
            (
                Chart("Throughput against load", "load", "throughput", "policy"),
                Chart("Mean latency against load", "load", "latency", "policy"),
                Chart("Guesses that came to nothing", "load", "wasted", "policy"),
            ),
            (idle_only_never_falls(found), always_falls(found)),
            [f"Without guesses the server manages {capacity:.2f} requests a second: a load of 1.", *widths(found)],
        )


def ratios_to_off(by: dict[str, list[Served]], policy: str) -> list[float]:
    """A policy's throughput in units of off's, round by round: both meet the same arrivals, one after the other."""
    return ratios([r.throughput for r in by[policy]], [r.throughput for r in by["off"]])


def against_off(by: dict[str, list[Served]], policy: str) -> Estimate:
    """The mean of `ratios_to_off`, with the error of so few rounds."""
    return mean(torch.tensor(ratios_to_off(by, policy)))


def _against(by: dict[str, list[Served]], policy: str) -> dict[str, float]:
    told = against_off(by, policy)
    return {"ratio": told.value, "error": told.error}


def others(by: dict[str, list[Served]], policy: str) -> float:
    """Texts per round that are not off's: none in float32, a few below it, where passes of several widths round."""
    pairs = [p for a, b in zip(by[policy], by["off"], strict=True) for p in zip(a.requests, b.requests, strict=True)]
    return sum(a.text != b.text for a, b in pairs) / len(by[policy])


def idle_only_never_falls(found: Found) -> Claim:
    """Burton's sentence, at every load at once."""
    told = {load: against_off(by, "idle-only") for load, by in found.items()}
    each = "; ".join(f"{e.value:.3f} ± {e.error:.3f} at load {load:.2g}" for load, e in told.items())
    worse = [f"{load:.2g}" for load, e in told.items() if e.below(1 - FALL, len(told))]
    return Claim(
        "Burton 1985, abstract",
        "If mandatory work goes first, speculation can only speed computation: idle-only never falls below off.",
        all_above(list(told.values()), 1 - FALL),
        f"Throughput in units of off, by rounds in pairs: {each}; a fall is more than {FALL:.0%}"
        + (f", as at {', '.join(worse)}." if worse else "."),
    )


def always_falls(found: Found) -> Claim:
    """Its converse, at the highest load."""
    top = max(found)
    told = against_off(found[top], "always")
    return Claim(
        "Burton 1985, the converse",
        "Without that priority it slows computation down: at saturation, guessing always falls below off.",
        told.below(1.0),
        f"At load {top:.2g} always has {told.value:.3f} ± {told.error:.3f} times the throughput of off.",
    )


def widths(found: Found) -> Iterator[str]:
    """What decoding passes took by their rows, without which the claims cannot be understood."""
    took: dict[int, list[float]] = {}
    for p in [p for by in found.values() for rounds in by.values() for r in rounds for p in r.passes if not p.read]:
        took.setdefault(p.mandatory + p.drafted, []).append(1e3 * p.seconds)
    seen = [f"{n} rows {statistics.median(ms):.1f}" for n, ms in sorted(took.items()) if len(ms) >= 10]
    if seen:
        yield f"Median milliseconds of a decoding pass: {', '.join(seen)}."

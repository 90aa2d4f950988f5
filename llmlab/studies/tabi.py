from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmlab.errors import Refused
from llmlab.lab.study import Cell, Chart, Claim, Findings, Study, Subject
from llmlab.measure.statistics import bootstrap, every, paired, percentile
from llmlab.runtime.configurable import knob
from llmlab.studies.support.cascades import cascade
from llmlab.studies.support.cascades import models as cascade_models
from llmlab.studies.support.cascades.cascade import Level, Plan
from llmlab.studies.support.classification.classify import Data, Task, task
from llmlab.studies.support.tabi.levels import Rank, mixing, rank
from llmlab.studies.support.tabi.serving import Answer, Served, serve, timed

COLUMNS = {
    "way": "Way",
    "accuracy": "Accuracy",
    "ms": "Mean ms",
    "median": "Median ms",
    "p99": "99th percentile, ms",
    "reduction": "Mean time saved",
    "sent": "Share sent on",
    "last": "Share that reached the largest",
    "tokens": "Tokens read by the last level asked",
    "gflops": "GFLOPs per sentence",
    "percentile": "Percentile",
    "time": "Its time, ms",
    "level": "Who answered",
    "correct": "Correct",
    "cost": "GFLOPs of all asked",
    "count": "Sentences",
}
LESS, TAIL = 0.21, 1.1
"""The least share of the time that the paper saves, and the times as long that a tail may be and be comparable."""
PERCENTILES = (1, 10, 25, 50, 75, 90, 95, 99)


@dataclass(frozen=True)
class Tabi(Study):
    """Levels that answer sentences, and pass on fewer words.

    Idea: Small models answer most sentences. What they are unsure of goes on to a larger one, without the words that
    the small model hardly looked at, and its answer is mixed with theirs.
    Method: A level answers when its calibrated confidence reaches its threshold. Words are ranked by the attention that
    they get, over all heads and layers; the share `prune` that gets least is left out on the way up. The answer is
    w·p_before + (1 - w)·p_here, with w per level from calibration sentences. Temperatures come from these too, and the
    thresholds are those of least cost that keep within `loss` of the largest model.
    What to look for: Mean and 99th percentile of the time to an answer, sentence by sentence: whoever is sent on pays
    for every level, so that the tail grows where the mean falls. Pruning must win that back.
    Differences from the paper: Three levels run on one machine, one sentence at a time, where Tabi schedules them over
    GPUs. Attention is causal, so that a word's weight is what the last token gives it, and taking weights out slows the
    small pass. Offline the smaller levels are this model's first layers, each started anew as a model of its own would
    be. Classifiers never saw pruned sentences. A time is the median of three, or others on the machine would be the
    tail.
    """

    covers = ("tabi",)
    bench = "cascade"
    claim = "Calibrated levels, pruned words and a weighted answer, with measured times."
    claim_zh = "经过校准的各级、删减的词和加权的答案，并测量时间。"

    models: str = knob("variants", choices=("variants", "*"), help="this model's first layers, or names with +")
    kept: str = knob("8/16", choices=("8/16", "*"), help="how many layers the smaller levels have")
    prune: float = knob(0.3, 0.0, 0.9, "share of a sentence's words left out when it is sent on")
    loss: float = knob(0.01, 0.0, 0.2, "accuracy that thresholds may give up")
    words: str = knob("long", choices=("short", "long"), help="length of the sentences")
    classes: int = knob(3, 2, 4, "labels of the made sentences")
    train: int = knob(400, 60, 4000, "sentences that classifiers learn from")
    calibrate: int = knob(150, 20, 2000, "sentences for temperatures, thresholds and weights")
    test: int = knob(100, 20, 2000, "sentences that are timed")

    def run(self, subject: Subject) -> Findings:
        span = (4, 26) if self.words == "short" else (20, 60)
        data = Data("made", self.classes, self.train, self.calibrate, self.test, subject.settings.seed, span)
        ranks = self._ranks(subject, data)
        plan, weights, notes = self._plan(ranks)
        thresholds = plan.thresholds
        large, small = ranks[-1].name, ranks[0].name
        ways: dict[str, Callable[[int], Answer]] = {
            f"always {large}": lambda i: serve(ranks[-1:], (), i, 0.0, ()),
            f"always {small}": lambda i: serve(ranks[:1], (), i, 0.0, ()),
            "levels": lambda i: serve(ranks, thresholds, i, 0.0, weights),
            "levels, pruned": lambda i: serve(ranks, thresholds, i, self.prune, weights),
        }
        served = timed(subject, ways, ranks[-1].t.y["test"])
        base = served[f"always {large}"]
        rows: list[dict[str, Any]] = []
        for way, s in served.items():
            rows.append(row(way, s, s.right, base, len(ranks)))
            if way.startswith("levels"):
                rows.append(row(f"{way}, mixed", s, s.mixed, base, len(ranks)))
        for way, s in served.items():
            rows += [{"way": way, "percentile": p, "time": 1000 * percentile(s.seconds, p / 100)} for p in PERCENTILES]
        last = served["levels, pruned"]
        seen = torch.tensor(last.level), torch.tensor(last.right), torch.tensor(last.flops) / 1e9
        rows += [{"way": "levels, pruned", **row} for row in cascade.answered([r.name for r in ranks], *seen)]
        return Findings(COLUMNS, rows, charts(), claims(served, self.loss), notes)

    def _ranks(self, subject: Subject, data: Data) -> list[Rank]:
        if self.models == cascade_models.VARIANTS:
            total = len(subject.model.layers)
            counts = [int(k) for k in re.split(r"[/,\s]+", self.kept.strip()) if k.isdigit()]
            if not counts or counts != sorted(set(counts)) or not 1 <= counts[0] <= counts[-1] < total:
                raise Refused(
                    self.title, f"cannot keep {self.kept[:30]!r} layers", f"Give rising numbers below {total}"
                )
            t = task(subject, data)
            return [rank(f"{k} layers", t, subject.tokenizer, k) for k in (*counts, total)]
        ranks = []
        for name, model, tokenizer in cascade_models.decoders(subject, self.models, ()):

            def told(what: str, done: int, all: int, name: str = name) -> None:
                subject.progress(f"{name}: {what}", done, all)

            own = task(subject, data) if model is subject.model else Task(model, tokenizer, data, told)
            ranks.append(rank(name, own, tokenizer, own.layers))
        return ranks

    def _plan(self, ranks: Sequence[Rank]) -> tuple[Plan, tuple[float, ...], list[str]]:
        """Thresholds and mixing weights from the calibration sentences, and a word on both."""
        y = ranks[-1].t.y["calibration"]
        p = [r.known("calibration") for r in ranks]
        levels = []
        for r, own in zip(ranks, p, strict=True):
            cost = torch.tensor([r.cost(len(ids)) for ids in r.t.ids["calibration"]])
            levels.append(Level(r.name, own.amax(-1), own.argmax(-1) == y, cost))
        whole = tuple(range(len(ranks)))
        able = [x for x in cascade.plans(levels, len(ranks), steps=10) if x.order == whole]
        good = [x for x in able if x.accuracy >= levels[-1].accuracy - self.loss - 1e-9]
        # Nothing that believes a small model may be good enough; then everybody is sent on.
        plan = min(
            good, key=lambda x: x.cost, default=Plan(whole, (1.01,) * (len(ranks) - 1), levels[-1].accuracy, 0.0)
        )
        weights = mixing(p, y, plan.thresholds)
        told = ", ".join(f"{r.name} from {t:.2f}" for r, t in zip(ranks[:-1], plan.thresholds, strict=True))
        return (
            plan,
            weights,
            [
                f"Thresholds: {told}. Temperatures: " + ", ".join(f"{r.name} {r.T:.2f}" for r in ranks) + ".",
                "Weight of the levels before, on the way up: " + ", ".join(f"{w:.1f}" for w in weights) + ".",
                f"{self.test} sentences, each way in turn on every one of them.",
            ],
        )


def row(way: str, s: Served, right: Sequence[bool], base: Served, levels: int) -> dict[str, Cell]:
    n = len(right)
    mean = sum(s.seconds) / n
    return {
        "way": way,
        "accuracy": sum(right) / n,
        "ms": 1000 * mean,
        "median": 1000 * percentile(s.seconds, 0.5),
        "p99": 1000 * percentile(s.seconds, 0.99),
        "reduction": 1 - mean / (sum(base.seconds) / n),
        "sent": sum(k > 0 for k in s.level) / n,
        "last": sum(k == levels - 1 for k in s.level) / n,
        "tokens": sum(s.tokens) / n,
        "gflops": sum(s.flops) / n / 1e9,
    }


def charts() -> list[Chart]:
    return [
        Chart("Accuracy against mean time", "ms", "accuracy", "way", "front"),
        Chart("Mean time", "way", "ms", "", "bar"),
        Chart("99th percentile", "way", "p99", "", "bar"),
        Chart("Percentiles of the time", "percentile", "time", "way", "line"),
    ]


def claims(served: dict[str, Served], loss: float) -> list[Claim]:
    """What the paper says, on sentences that set no threshold; `loss`: the accuracy that thresholds may give up."""
    where = "EuroSys 2023, DOI 10.1145/3552326.3587438"
    base, cut, plain = next(iter(served.values())), served["levels, pruned"], served["levels"]
    took = {name: torch.tensor(s.seconds, dtype=torch.double) for name, s in served.items()}
    large, slow, pruned = took[next(iter(served))], took["levels"], took["levels, pruned"]

    def p99(seconds: Tensor, at: Tensor) -> float:
        return percentile(seconds[at].tolist(), 0.99)

    n = len(large)
    less = bootstrap(lambda at: float(1 - pruned[at].mean() / large[at].mean()), n)
    tail = bootstrap(lambda at: p99(pruned, at) / p99(large, at), n)
    tails = bootstrap(lambda at: 1000 * (p99(pruned, at) - p99(slow, at)), n)
    whole, lost, mixed = (
        paired(torch.tensor(a), torch.tensor(b))
        for a, b in ((cut.mixed, base.right), (cut.right, plain.right), (plain.mixed, plain.right))
    )
    return [
        Claim(f"{where}, abstract", "21 to 40 % less time on average, with a comparable tail, at the large model's"
              " accuracy.", every(less.above(LESS), tail.below(TAIL), whole.above(-loss)),
              f"{less.value:.0%} ± {less.error:.0%} less time on average, 99th percentile {tail.value:.2f} ±"
              f" {tail.error:.2f} times as long (comparable: up to {TAIL:g}), accuracy {whole.points()} (the same: at"
              f" most {100 * loss:g} less)"),
        Claim(where, "Pruning words makes up for asking several levels.", every(tails.below(), lost.above(-loss)),
              f"99th percentile {tails.value:+.0f} ± {tails.error:.0f} ms against levels without pruning, mean"
              f" {1000 * float(pruned.mean()):.0f} against {1000 * float(slow.mean()):.0f} ms, accuracy"
              f" {lost.points()}"),
        Claim(where, "Mixing the levels' answers adds accuracy.", mixed.above(), mixed.points()),
    ]  # fmt: skip

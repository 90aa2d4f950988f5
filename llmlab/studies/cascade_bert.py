from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmlab.errors import Refused
from llmlab.lab.study import Cell, Chart, Claim, Findings, Study, Subject
from llmlab.measure.statistics import all_above, bootstrap, paired
from llmlab.runtime.configurable import knob
from llmlab.studies.support.cascades import calibration, cascade
from llmlab.studies.support.cascades import models as cascade_models
from llmlab.studies.support.cascades.cascade import Level
from llmlab.studies.support.cascades.difficulty import margin_loss, missed
from llmlab.studies.support.classification import probes
from llmlab.studies.support.classification.classify import Data, Task, flops, run_exits, task
from llmlab.studies.support.classification.curves import Curve, between, led
from llmlab.techniques.early_exit.rules import Probability

PARTS = ("calibration", "test")
CALIBRATIONS = ("none", "temperature", "difficulty margin")
COLUMNS = {
    "way": "Way",
    "name": "Model",
    "calibration": "Calibration",
    "threshold": "Threshold",
    "accuracy": "Accuracy",
    "gflops": "GFLOPs per sentence",
    "speedup": "Speed-up in FLOPs",
    "answered": "Answered by the smallest",
    "confidence": "Confidence",
    "ideal": "Accuracy if calibrated",
    "level": "Who answered",
    "correct": "Correct",
    "cost": "GFLOPs of all asked",
    "count": "Sentences",
    "ece": "Calibration error",
    "auc": "Confidence: area under ROC",
}


@dataclass(frozen=True)
class Member:
    """One complete model as a classifier: what it says under each calibration, the labels, its cost; by part."""

    name: str
    p: dict[str, dict[str, Tensor]]
    y: dict[str, Tensor]
    gflops: dict[str, Tensor]

    def level(self, calibration: str, part: str = "test") -> Level:
        p = self.p[part][calibration]
        return Level(self.name, p.amax(-1), p.argmax(-1) == self.y[part], self.gflops[part])


@dataclass(frozen=True)
class CascadeBert(Study):
    """Complete small models against early exits.

    Idea: An exit in a shallow layer lacks what the last layers know. Ask complete small models instead, one after the
    other, and let them say honestly how sure they are.
    Method: A sentence stops at the first model whose likeliest class has at least the threshold. The difficulty margin
    adds λ·mean max(0, ε - (c_easy - c_hard)) to a classifier's loss, over pairs of easy and hard sentences with
    confidences c; temperature scaling divides its logits by the T that calibration sentences like best.
    What to look for: Both curves of accuracy against FLOPs, with the exits of the one deep model beside; and the
    reliability diagram: on the diagonal, a confidence of 0.8 is right four times in five.
    Differences from the paper: The paper's models were each pre-trained and are fine-tuned; offline the small ones are
    this model with its least influential layers removed, frozen, with a linear classifier of their own. A sentence is
    hard if a classifier trained on other folds misses it, where the paper trains models from several seeds.
    """

    covers = ("cascadebert",)
    bench = "cascade"
    claim = "A cascade of complete small models, calibrated, beside the exits of one deep model."
    claim_zh = "一串完整且经过校准的小模型，与一个深模型的各个出口相比。"

    models: str = knob("variants", choices=("variants", "*"), help="this model with layers removed, or names with +")
    kept: str = knob("6/15", choices=("6/15", "*"), help="layers that the variants keep, as 6/15")
    calibration: str = knob("difficulty margin", choices=CALIBRATIONS, help="of the cascade that is compared")
    margin: float = knob(0.5, 0.0, 1.0, "ε: by how much easy sentences should be surer")
    weight: float = knob(1.0, 0.0, 100.0, "λ of the margin in the loss")
    classes: int = knob(3, 2, 4, "labels of the made sentences: bad, good, neither, both")
    train: int = knob(600, 60, 4000, "sentences that classifiers learn from")
    calibrate: int = knob(200, 20, 2000, "sentences that temperatures are found on")
    test: int = knob(400, 20, 4000, "sentences that everything is measured on")
    data: str = knob("made", choices=("made", "*"), help="made, or a CSV file with the columns text and label")

    def run(self, subject: Subject) -> Findings:
        data = Data(self.data, self.classes, self.train, self.calibrate, self.test, subject.settings.seed)
        whole = task(subject, data)
        members, tasks = [], []
        for name, model, tokenizer in cascade_models.decoders(
            subject, self.models, self._variants(len(subject.model.layers))
        ):

            def told(what: str, done: int, all: int, name: str = name) -> None:
                subject.progress(f"{name}: {what}", done, all)

            own = whole if model is subject.model else Task(model, tokenizer, data, told)
            members.append(self._member(name, own))
            tasks.append(own)
        unit = float(members[-1].gflops["test"].double().mean())
        rows: list[dict[str, Cell]] = []
        for member in members:
            rows += list(alone(member, unit))
        rows += list(diagram(members[0]))
        curves = {c: self._cascade(members, c, unit) for c in CALIBRATIONS}
        exits = self._exits(tasks[-1], members[-1], unit)
        rows += [row for c in CALIBRATIONS for row in curves[c][0]] + exits[0]
        shallow = [self._shallow(tasks[-1], member, unit) for member in members[:-1]]
        rows += [row for row, _ in shallow]
        bar, answered = self._answered(members)
        rows += answered
        notes = [
            f"{self.test} test sentences, {len(tasks[-1].labels)} labels; thresholds come from calibration sentences.",
            f"Who answered is shown for {self.calibration!r} with the threshold {bar:.3f}: on calibration sentences "
            "the cheapest one that is right as often as the large model, or the one most often right where none is.",
        ]
        judged = claims(
            curves[self.calibration][1], exits[1], members, [cut for _, cut in shallow], unit,
            cut_out=self.models == cascade_models.VARIANTS,
        )  # fmt: skip
        return Findings(COLUMNS, rows, charts(), judged, notes)

    def _variants(self, total: int) -> list[tuple[str, list[str]]]:
        """This model with fewer and fewer layers removed, and itself."""
        counts = [int(k) for k in re.split(r"[/,\s]+", self.kept.strip()) if k.isdigit()]
        if not counts or counts != sorted(set(counts)) or not 1 <= counts[0] <= counts[-1] < total:
            raise Refused(self.title, f"cannot keep {self.kept[:30]!r} layers", f"Give rising numbers below {total}")
        return [*((f"{k} layers", [f"layer-drop:count={total - k}"]) for k in counts), (f"{total} layers", [])]

    def _member(self, name: str, t: Task) -> Member:
        x, y, C = t.x["train"][-1:], t.y["train"], len(t.labels)
        plain = probes.trained(x, y, C)
        careful = probes.fitted(x, margin_loss(y, missed(x, y, C), self.margin, self.weight), C)
        T = calibration.temperature(plain.logits(t.x["calibration"][-1:])[0], t.y["calibration"])
        p, cost = {}, {}
        for part in PARTS:
            x = t.x[part][-1:]
            p[part] = {
                "none": plain(x)[0],
                "temperature": torch.softmax(plain.logits(x)[0] / T, -1),
                "difficulty margin": careful(x)[0],
            }
            cost[part] = torch.tensor([flops(t.shape, [len(ids)] * t.layers) / 1e9 for ids in t.ids[part]])
        return Member(name, p, {part: t.y[part] for part in PARTS}, cost)

    def _cascade(self, members: Sequence[Member], calibration: str, unit: float) -> tuple[list[dict[str, Cell]], Curve]:
        """A row per threshold, of those that calibration sentences give, and all of them on the test sentences."""
        rows: list[dict[str, Cell]] = []
        levels = [m.level(calibration) for m in members]
        tried = [(bar, cascade.route(levels, [bar] * (len(levels) - 1))) for bar in self._bars(members, calibration)]
        for bar, routed in tried:
            rows.append(
                {
                    "way": f"cascade, {calibration}",
                    "calibration": calibration,
                    "threshold": bar,
                    "accuracy": routed.accuracy,
                    "gflops": routed.mean_cost,
                    "speedup": unit / routed.mean_cost,
                    "answered": float((routed.level == 0).double().mean()),
                }
            )
        return rows, Curve(torch.stack([r.cost for _, r in tried]), torch.stack([r.correct for _, r in tried]))

    @staticmethod
    def _bars(members: Sequence[Member], calibration: str) -> list[float]:
        return bars(torch.cat([m.level(calibration, "calibration").score for m in members[:-1]]))

    def _answered(self, members: Sequence[Member]) -> tuple[float, list[dict[str, Cell]]]:
        """The threshold that is cheapest where calibration sentences are as often answered rightly as by the large
        model, and who answers the test sentences then."""
        levels, tested = ([m.level(self.calibration, part) for m in members] for part in PARTS)
        tried = [
            (bar, cascade.route(levels, [bar] * (len(levels) - 1))) for bar in self._bars(members, self.calibration)
        ]
        goal = min(levels[-1].accuracy, max(r.accuracy for _, r in tried))
        bar = min((r.mean_cost, b) for b, r in tried if r.accuracy >= goal - 1e-9)[1]
        best = cascade.route(tested, [bar] * (len(levels) - 1))
        told = cascade.answered([m.name for m in members], best.level, best.correct, best.cost)
        return bar, [{"way": "who answered", **row} for row in told]

    def _exits(self, t: Task, whole: Member, unit: float) -> tuple[list[dict[str, Cell]], Curve]:
        """One deep model, left where a layer's own classifier is sure."""
        p, y = t.probes(t.x["test"]), t.y["test"]
        rows: list[dict[str, Cell]] = []
        costs, right = [], []
        for bar in bars(t.probes(t.x["calibration"])[:-1].amax(-1).flatten()):
            left = run_exits(Probability(bar), p, range(1, t.layers + 1))
            costs.append((whole.gflops["test"] * left.layers / t.layers).double())
            right.append(left.labels == y)
            cost = float(costs[-1].mean())
            rows.append(
                {
                    "way": "early exit",
                    "threshold": bar,
                    "accuracy": left.accuracy(y),
                    "gflops": cost,
                    "speedup": unit / cost,
                }
            )
        return rows, Curve(torch.stack(costs), torch.stack(right))

    def _shallow(self, t: Task, member: Member, unit: float) -> tuple[dict[str, Any], Tensor]:
        """The deep model cut off where it has done as much work as a smaller one: who is right then."""
        layers = max(1, round(t.layers * float(member.gflops["test"].double().mean()) / unit))
        right = t.probes(t.x["test"])[layers - 1].argmax(-1) == t.y["test"]
        row = {"way": "first layers only", "name": f"{layers} of {t.layers}", "accuracy": float(right.double().mean())}
        return {**row, "gflops": unit * layers / t.layers, "speedup": t.layers / layers}, right


def claims(
    one: Curve, exits: Curve, members: Sequence[Member], shallow: Sequence[Tensor], unit: float, cut_out: bool
) -> list[Claim]:
    """What the paper says, of the chosen calibration's cascade and the exits; `shallow`: per smaller member, whether as
    many first layers are right. `cut_out`: the small models are the large one with layers removed."""
    where = "arXiv 2012.14682"
    # Layers taken out of a model leave nothing that was ever trained to be complete: no test of what is claimed.
    why = "these small models are cut from the large one and were never trained as such; as they are: "
    why = why if cut_out else ""
    gap = led(one, exits)
    gaps = [
        paired((m.level("none").correct).double(), cut.double()) for m, cut in zip(members[:-1], shallow, strict=True)
    ]
    told = "; ".join(f"{m.name}: {g.points()}" for m, g in zip(members[:-1], gaps, strict=True))
    levels = {c: members[0].level(c) for c in CALIBRATIONS}
    better = calibration.ahead(levels["difficulty margin"], levels["none"])
    known = []
    for c, level in levels.items():
        area = calibration.auc(level.score, level.correct)
        sorts = "unknown" if area is None else f"{area:.3f}"
        known.append(f"{c}: calibration error {calibration.ece(level.score, level.correct):.3f}, area {sorts}")
    return [
        Claim(f"{where}, abstract", "Complete small models beat early exits at equal cost (by 15 % at 4 times).",
              None if gap is None or cut_out else gap.above(),
              why + ("the two have no cost in common" if gap is None else
                     f"{gap.points()} on average over the costs that both reach; {at_a_quarter(one, exits, unit)}"),
              testable=gap is not None and not cut_out),
        Claim(f"{where}, section 3", "A complete model knows more than as many first layers of a deep one.",
              None if cut_out else all_above(gaps), f"{why}complete against cut off, {told}", testable=not cut_out),
        Claim(f"{where}, section 4.2", "The difficulty margin makes confidence a better guide.",
              better.above() if better else None,
              (f"area under ROC {better.value:+.3f} ± {better.error:.3f} with it" if better else "no area to compare")
              + "; the smallest model, " + "; ".join(known), testable=better is not None),
    ]  # fmt: skip


def at_a_quarter(one: Curve, exits: Curve, unit: float) -> str:
    """Both accuracies where a sentence costs a quarter of what the large model takes, `unit` GFLOPs."""

    def both(at: Tensor | None = None) -> list[float | None]:
        return [between(c.points(at), unit / 4) for c in (one, exits)]

    def ahead(at: Tensor) -> float:
        a, b = both(at)
        return math.nan if a is None or b is None else a - b

    a, b = both()
    if a is None or b is None:
        return "one of the two does not reach a quarter of the FLOPs"
    return f"at a quarter of the FLOPs {a:.1%} against {b:.1%}, {bootstrap(ahead, one.cost.shape[1]).points()}"


def bars(scores: Tensor, count: int = 24) -> list[float]:
    """Thresholds from below the least score to above the greatest, at its quantiles."""
    q = torch.quantile(scores.double(), torch.linspace(0, 1, count, dtype=torch.double))
    return [0.0, *q.unique().tolist()[1:], 1.01]


def alone(member: Member, unit: float) -> Iterator[dict[str, Cell]]:
    """A member by itself under each calibration: its accuracy, and how well it knows itself."""
    cost = float(member.gflops["test"].double().mean())
    for c in CALIBRATIONS:
        level = member.level(c)
        yield {
            "way": "one model",
            "name": member.name,
            "calibration": c,
            "accuracy": level.accuracy,
            "gflops": cost,
            "speedup": unit / cost,
            "ece": calibration.ece(level.score, level.correct),
            "auc": calibration.auc(level.score, level.correct),
        }


def diagram(member: Member) -> Iterator[dict[str, Cell]]:
    """A member's reliability diagram under each calibration."""
    for c in CALIBRATIONS:
        level = member.level(c)
        for b in calibration.reliability(level.score, level.correct):
            yield {
                "way": f"reliability, {c}",
                "name": member.name,
                "calibration": c,
                "confidence": b.confidence,
                "ideal": b.confidence,
                "accuracy": b.accuracy,
                "count": b.count,
            }


def charts() -> list[Chart]:
    return [
        Chart("Accuracy against FLOPs", "gflops", "accuracy", "way", "front"),
        Chart("Reliability of the smallest model", "confidence", "accuracy", "calibration", "points", "ideal"),
        Chart("Calibration error", "name", "ece", "calibration", "bar"),
    ]

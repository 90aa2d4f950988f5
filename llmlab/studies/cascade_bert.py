from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmlab.errors import Refused
from llmlab.lab.study import Cell, Chart, Claim, Findings, Study, Subject
from llmlab.measure.statistics import clearly_above, paired_difference
from llmlab.runtime.configurable import knob
from llmlab.studies.support.cascades import calibration, cascade
from llmlab.studies.support.cascades import models as cascade_models
from llmlab.studies.support.cascades.cascade import Level
from llmlab.studies.support.cascades.difficulty import margin_loss, missed
from llmlab.studies.support.classification import probes
from llmlab.studies.support.classification.classify import Data, Task, flops, run_exits, task
from llmlab.studies.support.classification.curves import between, lead
from llmlab.techniques.early_exit.rules import Probability

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
    """One complete model as a classifier: what it says of the test sentences under each calibration, and its cost."""

    name: str
    p: dict[str, Tensor]
    y: Tensor
    gflops: Tensor

    def level(self, calibration: str) -> Level:
        p = self.p[calibration]
        return Level(self.name, p.amax(-1), p.argmax(-1) == self.y, self.gflops)


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
        unit = float(members[-1].gflops.double().mean())
        rows: list[dict[str, Cell]] = []
        for member in members:
            rows += list(alone(member, unit))
        rows += list(diagram(members[0]))
        curves = {c: list(self._cascade(members, c, unit)) for c in CALIBRATIONS}
        exits = list(self._exits(tasks[-1], members[-1], unit))
        rows += [row for c in CALIBRATIONS for row in curves[c]] + exits
        shallow = [self._shallow(tasks[-1], member, unit) for member in members[:-1]]
        rows += [row for row, _ in shallow]
        bar, answered = self._answered(members)
        rows += answered
        notes = [f"{self.test} test sentences, {len(tasks[-1].labels)} labels; thresholds are tried on them directly."]
        notes.append(
            f"Who answered is shown for {self.calibration!r} with the threshold {bar:.3f}: the cheapest one that"
        )
        notes[-1] += " is right as often as the large model, or the one most often right where none is."
        return Findings(COLUMNS, rows, charts(), self._claims(curves, exits, members, shallow, unit), notes)

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
        test = t.x["test"][-1:]
        p = {
            "none": plain(test)[0],
            "temperature": torch.softmax(plain.logits(test)[0] / T, -1),
            "difficulty margin": careful(test)[0],
        }
        cost = [flops(t.shape, [len(ids)] * t.layers) / 1e9 for ids in t.ids["test"]]
        return Member(name, p, t.y["test"], torch.tensor(cost))

    def _cascade(self, members: Sequence[Member], calibration: str, unit: float) -> Iterator[dict[str, Cell]]:
        levels = [m.level(calibration) for m in members]
        for bar in bars(torch.cat([level.score for level in levels[:-1]])):
            routed = cascade.route(levels, [bar] * (len(levels) - 1))
            yield {
                "way": f"cascade, {calibration}",
                "calibration": calibration,
                "threshold": bar,
                "accuracy": routed.accuracy,
                "gflops": routed.mean_cost,
                "speedup": unit / routed.mean_cost,
                "answered": float((routed.level == 0).double().mean()),
            }

    def _answered(self, members: Sequence[Member]) -> tuple[float, list[dict[str, Cell]]]:
        """The threshold of the cheapest cascade that is as often right as the large model, and who answers then."""
        levels = [m.level(self.calibration) for m in members]
        tried = bars(torch.cat([level.score for level in levels[:-1]]))
        routed = [(bar, cascade.route(levels, [bar] * (len(levels) - 1))) for bar in tried]
        goal = min(levels[-1].accuracy, max(r.accuracy for _, r in routed))
        bar, best = min(((b, r) for b, r in routed if r.accuracy >= goal - 1e-9), key=lambda x: x[1].mean_cost)
        told = cascade.answered([m.name for m in members], best.level, best.correct, best.cost)
        return bar, [{"way": "who answered", **row} for row in told]

    def _exits(self, t: Task, whole: Member, unit: float) -> Iterator[dict[str, Cell]]:
        """One deep model, left where a layer's own classifier is sure."""
        p, y = t.probes(t.x["test"]), t.y["test"]
        for bar in bars(p[:-1].amax(-1).flatten()):
            left = run_exits(Probability(bar), p, range(1, t.layers + 1))
            cost = float((whole.gflops * left.layers / t.layers).double().mean())
            yield {
                "way": "early exit",
                "threshold": bar,
                "accuracy": left.accuracy(y),
                "gflops": cost,
                "speedup": unit / cost,
            }

    def _shallow(self, t: Task, member: Member, unit: float) -> tuple[dict[str, Any], Tensor]:
        """The deep model cut off where it has done as much work as a smaller one: who is right then."""
        layers = max(1, round(t.layers * float(member.gflops.double().mean()) / unit))
        right = t.probes(t.x["test"])[layers - 1].argmax(-1) == t.y["test"]
        row = {"way": "first layers only", "name": f"{layers} of {t.layers}", "accuracy": float(right.double().mean())}
        return {**row, "gflops": unit * layers / t.layers, "speedup": t.layers / layers}, right

    def _claims(
        self,
        curves: dict[str, list[dict[str, Any]]],
        exits: list[dict[str, Any]],
        members: Sequence[Member],
        shallow: Sequence[tuple[dict[str, Any], Tensor]],
        unit: float,
    ) -> list[Claim]:
        where = "arXiv 2012.14682"
        one, other = (points(c) for c in (curves[self.calibration], exits))
        gap = lead(one, other)
        fast = [between(c, unit / 4) for c in (one, other)]
        at_four = "one of the two does not reach a quarter of the FLOPs"
        if None not in fast:
            at_four = f"at a quarter of the FLOPs {fast[0]:.1%} against {fast[1]:.1%}"
        gaps, holds = [], []
        for member, (_, cut) in zip(members[:-1], shallow, strict=True):
            d, e = paired_difference((member.p["none"].argmax(-1) == member.y).float(), cut.float())
            gaps.append(f"{member.name}: {100 * d:+.1f} ± {100 * e:.1f} points")
            holds.append(d > 0)
        # Layers taken out of a model leave nothing that was ever trained to be complete: no test of what is claimed.
        cut_out = self.models == cascade_models.VARIANTS
        why = "these small models are cut from the large one and were never trained as such; as they are: "
        why = why if cut_out else ""
        levels = {c: members[0].level(c) for c in CALIBRATIONS}
        better, error = calibration.ahead(levels["difficulty margin"], levels["none"])
        known = []
        for c, level in levels.items():
            area = calibration.auc(level.score, level.correct)
            sorts = "unknown" if area is None else f"{area:.3f}"
            known.append(f"{c}: calibration error {calibration.ece(level.score, level.correct):.3f}, area {sorts}")
        return [
            Claim(f"{where}, abstract", "Complete small models beat early exits at equal cost (by 15 % at 4 times).",
                  None if gap is None or cut_out else gap > 0,
                  why + ("the two have no cost in common" if gap is None else
                         f"{100 * gap:+.1f} points on average over the costs that both reach; {at_four}")),
            Claim(f"{where}, section 3", "A complete model knows more than as many first layers of a deep one.",
                  None if cut_out else all(holds), why + "complete against cut off, " + "; ".join(gaps)),
            Claim(f"{where}, section 4.2", "The difficulty margin makes confidence a better guide.",
                  clearly_above(better, error),
                  f"area under ROC {better:+.3f} ± {error:.3f} with it; the smallest model, " + "; ".join(known)),
        ]  # fmt: skip


def bars(scores: Tensor, count: int = 24) -> list[float]:
    """Thresholds from below the least score to above the greatest, at its quantiles."""
    q = torch.quantile(scores.double(), torch.linspace(0, 1, count, dtype=torch.double))
    return [0.0, *q.unique().tolist()[1:], 1.01]


def alone(member: Member, unit: float) -> Iterator[dict[str, Cell]]:
    """A member by itself under each calibration: its accuracy, and how well it knows itself."""
    cost = float(member.gflops.double().mean())
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


def points(rows: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(r["gflops"], r["accuracy"]) for r in rows]


def charts() -> list[Chart]:
    return [
        Chart("Accuracy against FLOPs", "gflops", "accuracy", "way", "front"),
        Chart("Reliability of the smallest model", "confidence", "accuracy", "calibration", "points", "ideal"),
        Chart("Calibration error", "name", "ece", "calibration", "bar"),
    ]

"""The seven papers' classifiers and rules, trained for one task, with the settings to try of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from llmlab.studies.support.classification import probes
from llmlab.studies.support.classification.classify import Exits, Task, run_exits
from llmlab.studies.support.classification.curves import Curve
from llmlab.techniques.early_exit import rules, thresholds
from llmlab.techniques.early_exit.rules import Each, Entropy, MultiView, NormalisedEntropy, Patience, Rule
from llmlab.techniques.early_exit.thresholds import Consistency

RECENT = 0.9
"""How much the newest classifier weighs in MPEE's memory: its authors' program."""
UNSURE = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Uncertainties below which a sentence exits, as shares of the highest."""
PROMISES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)


@dataclass
class ExitMethod:
    """A paper's classifiers and rule on a task: what they say of calibration and test sentences, and what to try."""

    name: str
    p: dict[str, Tensor]
    """(l, n, C) per part."""
    depths: Sequence[int]
    tried: Sequence[tuple[str, Rule]]
    """Settings, each with a name."""
    answer: Callable[[Tensor], Tensor] | None = None

    def exits(self, part: str) -> list[Exits]:
        """Where the sentences of a part exit, setting by setting."""
        return [run_exits(rule, self.p[part], self.depths, self.answer) for _, rule in self.tried]

    def curve(self, part: str, y: Tensor) -> Curve:
        """Layers, and right answers against the labels y (n,), of every setting on the sentences of a part."""
        tried = self.exits(part)
        return Curve(torch.stack([e.layers for e in tried]), torch.stack([e.labels == y for e in tried]))


def _both(classifiers: Callable[[Tensor], Tensor], t: Task) -> dict[str, Tensor]:
    return {part: classifiers(t.x[part]) for part in ("calibration", "test")}


def branchynet(t: Task) -> ExitMethod:
    """Two branches, a threshold each, of which those pairs stay that calibration sentences find on the front."""
    L, most = t.layers, math.log(len(t.labels))
    depths = sorted({max(1, L // 3), max(1, 2 * L // 3), L})
    p = {part: answers[[d - 1 for d in depths]] for part, answers in _both(t.probes, t).items()}
    pairs = product((0.0, 0.1, 0.3, 0.5, 0.7, 0.9), repeat=len(depths) - 1)
    tried = [(" ".join(f"{u:g}" for u in us), Each(tuple(Entropy(u * most) for u in us))) for us in pairs]
    method = ExitMethod("BranchyNet", p, depths, tried)
    curve = method.curve("calibration", t.y["calibration"]).points()
    method.tried = [s for s, (c, a) in zip(tried, curve, strict=True) if not any(d <= c and b > a for d, b in curve)]
    return method


def deebert(t: Task) -> ExitMethod:
    most = math.log(len(t.labels))
    tried = [(f"{u * most:.2g}", Entropy(u * most)) for u in UNSURE]
    return ExitMethod("DeeBERT", _both(t.probes, t), range(1, t.layers + 1), tried)


def fastbert(t: Task) -> ExitMethod:
    answers = t.probes(t.x["train"])[-1]
    # The last layer is the teacher itself; only the branches are students.
    students = probes.distilled(t.x["train"][:-1], answers)
    whole = probes.Linear(torch.cat([students.W, t.probes.W[-1:]]), torch.cat([students.b, t.probes.b[-1:]]))
    tried = [(f"{u:g}", NormalisedEntropy(u)) for u in UNSURE]
    return ExitMethod("FastBERT", _both(whole, t), range(1, t.layers + 1), tried)


def pabee(t: Task) -> ExitMethod:
    tried = [(str(n), Patience(n)) for n in range(1, min(12, t.layers - 1) + 1)]
    return ExitMethod("PABEE", _both(t.probes, t), range(1, t.layers + 1), tried)


def mpee(t: Task) -> ExitMethod:
    most = math.log(len(t.labels))
    own = probes.recycled(t.x["train"], t.y["train"], t.probes, RECENT)
    tried = [(f"{u * most:.2g}", MultiView(u * most, RECENT)) for u in UNSURE]
    return ExitMethod("MPEE", _both(own, t), range(1, t.layers + 1), tried, MultiView(0.0, RECENT).together)


def past_future(t: Task) -> ExitMethod:
    most = math.log(len(t.labels))
    imitators = probes.Imitators.fitted(t.x["train"])
    own = probes.past_future(t.x["train"], t.y["train"], len(t.labels), imitators)
    tried = [(f"{u * most:.2g}", rules.PastFuture(u * most)) for u in UNSURE]
    method = ExitMethod("Past-Future", _both(own, t), range(1, t.layers + 1), tried)
    test = t.x["test"]
    method.p["past"] = probes.past_only(t.x["train"], t.y["train"], len(t.labels)).logits(test).cumsum(0)
    error = [[imitators.error(test, l, j) for j in range(l + 1, t.layers)] for l in range(t.layers - 1)]
    method.p["error"] = torch.tensor([sum(e) / len(e) for e in error])
    return method


def cats(t: Task) -> ExitMethod:
    """The meta-classifier learns from one half of the calibration sentences, the bar comes from the other."""
    p = _both(t.probes, t)
    half = p["calibration"].shape[1] // 2
    asked = range(1, t.layers)
    same = {part: answers[:-1].argmax(-1) == answers[-1].argmax(-1) for part, answers in p.items()}
    x = torch.cat([rules.features(p["calibration"][:l, :half]) for l in asked])
    meta = Consistency.fitted(x, same["calibration"][:, :half].flatten())
    score = {part: torch.stack([meta.score(answers[:l]) for l in asked]) for part, answers in p.items()}
    rest = score["calibration"][:, half:], same["calibration"][:, half:]
    tried: list[tuple[str, Rule]] = [
        (f"{e:g}", Consistency(thresholds.conformal(*rest, e), meta.weights, meta.bias)) for e in PROMISES
    ]
    method = ExitMethod("CATs", p, range(1, t.layers + 1), tried)
    method.p["scores"] = torch.cat([rest[0], score["test"]], 1)
    method.p["same"] = torch.cat([rest[1], same["test"]], 1)
    return method


WORKS: dict[str, Callable[[Task], ExitMethod]] = {
    "branchynet": branchynet,
    "deebert": deebert,
    "fastbert": fastbert,
    "pabee": pabee,
    "mpee": mpee,
    "past-future-exit": past_future,
    "cats": cats,
}

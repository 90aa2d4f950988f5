"""What a method's settings do to test sentences, and which of them calibration sentences choose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from llmlab.lab.study import Cell
from llmlab.measure.statistics import Estimate, mean, paired
from llmlab.studies.support.classification.classify import Exits, Task, flops
from llmlab.studies.support.classification.curves import Curve, at_most
from llmlab.studies.support.exit_rules.methods import ExitMethod


def never_exit(t: Task, full: Tensor) -> Exits:
    """Every sentence through all layers, whose labels are `full` (n,)."""
    return Exits(torch.full_like(full, t.layers), full)


class Tried:
    """Every setting of a method on test sentences, and the one that calibration sentences chose."""

    def __init__(self, t: Task, method: ExitMethod, full: Tensor, loss: float, noise: float = 0.0) -> None:
        """`full` (n,): the labels that all layers say of the test sentences; `loss`: what a chosen setting may cost."""
        self.t, self.method, self.full, self.loss, self.noise = t, method, full, loss, noise
        self.exits, self.calibrated = (
            {s: exits for (s, _), exits in zip(method.tried, method.exits(part), strict=True)}
            for part in ("test", "calibration")
        )
        y = t.y["calibration"]
        base = float((t.probes(t.x["calibration"])[-1].argmax(-1) == y).double().mean())
        at = at_most(method.curve("calibration", y).points(), self.loss, base)
        self.setting = "" if at is None else method.tried[at][0]
        self.chosen = never_exit(t, full) if at is None else self.exits[self.setting]
        self.right = (self.full == t.y["test"]).double()

    @property
    def nearest(self) -> str:
        """The chosen setting; where none was good enough on calibration sentences, the most accurate there."""
        return self.setting or self.most_accurate(list(self.calibrated))

    def best(self, worth: Callable[[Exits], Tensor], least: float) -> str:
        """Of the settings clearly worth `least` per calibration sentence the most accurate there, or the worthiest.

        `worth` gives what each of n sentences is worth, (n,).
        """
        worths = {s: mean(worth(exits)) for s, exits in self.calibrated.items()}
        able = [s for s, found in worths.items() if found.above(least)]
        return self.most_accurate(able) if able else max(worths, key=lambda s: worths[s].value)

    def most_accurate(self, settings: Sequence[str]) -> str:
        """Of these settings the most accurate on calibration sentences, the one with fewer layers of equals."""
        y = self.t.y["calibration"]
        return max(settings, key=lambda s: (self.calibrated[s].accuracy(y), -self.calibrated[s].mean()))

    def curve(self) -> Curve:
        return self.method.curve("test", self.t.y["test"])

    def gain(self, setting: str) -> Estimate:
        """How much more accurate a setting is than all layers, on test sentences."""
        return paired((self.exits[setting].labels == self.t.y["test"]).double(), self.right)

    def told(self, setting: str) -> str:
        layers = f"{self.exits[setting].mean():.1f} of {self.t.layers} layers"
        return f"threshold {setting}: {layers}, accuracy {self.gain(setting).points()} against all"


def row_of(t: Task, name: str, setting: str, exits: Exits, full: Tensor, chosen: bool) -> dict[str, Cell]:
    """One setting on the test sentences: accuracy, agreement with all layers, and cost."""
    lengths = t.lengths("test")
    cost = [flops(t.shape, [int(n)] * int(l)) for n, l in zip(lengths, exits.layers, strict=True)]
    whole = [flops(t.shape, [int(n)] * t.layers) for n in lengths]
    return {
        "method": name,
        "setting": setting,
        "accuracy": exits.accuracy(t.y["test"]),
        "agreement": exits.accuracy(full),
        "layers": exits.mean(),
        "layer_tokens": float((exits.layers * lengths).double().mean()),
        "gflops": sum(cost) / len(cost) / 1e9,
        "saved": 1 - sum(cost) / sum(whole),
        "chosen": chosen,
    }


def by_layer(t: Task, method: ExitMethod, exits: Exits) -> Iterator[dict[str, Cell]]:
    """What each classifier knows by itself, and the share of exits there."""
    p = method.p["test"]
    for l, depth in enumerate(method.depths, 1):
        answers = p[l - 1] if method.answer is None else method.answer(p[:l])
        yield {
            "method": method.name,
            "layer": depth,
            "layer_accuracy": float((answers.argmax(-1) == t.y["test"]).double().mean()),
            "left": float((exits.layers == depth).double().mean()),
        }


def by_depth(t: Task, method: ExitMethod, exits: Exits) -> Iterator[dict[str, Cell]]:
    """Layers and accuracy by known difficulty."""
    depth = torch.tensor([s.depth for s in t.sentences.test])
    for d in sorted(set(depth.tolist()) - {-1}):
        at = depth == d
        yield {
            "method": method.name,
            "negations": d,
            "negation_layers": float(exits.layers[at].double().mean()),
            "negation_accuracy": float((exits.labels[at] == t.y["test"][at]).double().mean()),
        }

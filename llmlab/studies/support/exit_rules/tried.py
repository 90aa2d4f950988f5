"""What a method's settings do to test sentences, and which of them calibration sentences choose."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from llmlab.lab.study import Cell
from llmlab.measure.statistics import paired_difference, points
from llmlab.studies.support.classification.classify import Exits, Task, flops
from llmlab.studies.support.classification.curves import at_most
from llmlab.studies.support.exit_rules.methods import ExitMethod


def never_exit(t: Task, full: Tensor) -> Exits:
    """Every sentence through all layers, whose labels are `full` (n,)."""
    return Exits(torch.full_like(full, t.layers), full)


class Tried:
    """Every setting of a method on test sentences, and the one that calibration sentences chose."""

    def __init__(self, t: Task, method: ExitMethod, full: Tensor, loss: float, noise: float = 0.0) -> None:
        """`full` (n,): the labels that all layers say of the test sentences; `loss`: what a chosen setting may cost."""
        self.t, self.method, self.full, self.loss, self.noise = t, method, full, loss, noise
        self.exits = {s: exits for (s, _), exits in zip(method.tried, method.exits("test"), strict=True)}
        y = t.y["calibration"]
        base = float((t.probes(t.x["calibration"])[-1].argmax(-1) == y).double().mean())
        at = at_most(method.curve("calibration", y), self.loss, base)
        self.setting = "" if at is None else method.tried[at][0]
        self.chosen = never_exit(t, full) if at is None else self.exits[self.setting]
        self.right = (self.full == t.y["test"]).double()

    def best(self, able: Callable[[Exits], bool]) -> tuple[Exits, float, float, str] | None:
        """Of the settings that are able on calibration sentences the most accurate there, on test sentences: its
        exits, the accuracy against all layers with its standard error, and that in words. None where none is able."""
        y = self.t.y["calibration"]
        tried = [(s, exits) for (s, _), exits in zip(self.method.tried, self.method.exits("calibration"), strict=True)]
        good = [(exits.accuracy(y), -exits.mean(), s) for s, exits in tried if able(exits)]
        if not good:
            return None
        setting = max(good)[2]
        exits = self.exits[setting]
        gain, error = paired_difference((exits.labels == self.t.y["test"]).double(), self.right)
        return exits, gain, error, self._told(f"threshold {setting}", exits, gain, error)

    def curve(self) -> list[tuple[float, float]]:
        return self.method.curve("test", self.t.y["test"])

    def against_full(self) -> tuple[float, float]:
        return paired_difference((self.chosen.labels == self.t.y["test"]).double(), self.right)

    def told(self) -> str:
        gain, error = self.against_full()
        where = f"threshold {self.setting}" if self.setting else "no threshold was good enough on calibration sentences"
        return self._told(where, self.chosen, gain, error)

    def _told(self, where: str, exits: Exits, gain: float, error: float) -> str:
        return f"{where}: {exits.mean():.1f} of {self.t.layers} layers, accuracy {points(gain, error)} against all"


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

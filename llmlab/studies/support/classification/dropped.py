"""The harness of dropped tokens: ways for words to leave, what each does to sentences and costs, and who survives."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.lab.study import Cell, Subject
from llmlab.measure.statistics import at_most_lost, paired_difference, points
from llmlab.runtime.clock import Clock
from llmlab.runtime.token_drop_plan import Fate, Selector, TokenDropPlan, places
from llmlab.studies.support.classification import probes
from llmlab.studies.support.classification.classify import Task, batch_of, encoded, flops
from llmlab.studies.support.classification.saliency import Saliency, saliency
from llmlab.studies.support.classification.sentences import make

TIMES = 5
"""How often words may be dropped, evenly up to the last layer."""
ASKED = 32
"""Training sentences whose loss is differentiated."""
AT_ONCE = 16
"""Sentences read in one pass."""
LONG = (110, 150)
"""Words of the long texts that are timed."""
LAPS = 3


Plan = Mapping[int, Selector]


@dataclass
class Way:
    """One setting: which selector stands after which layer, and what becomes of the words that leave."""

    name: str
    setting: str
    plan: Plan
    fate: Fate = "discard"

    def depth(self) -> TokenDropPlan:
        return TokenDropPlan(self.plan, self.fate)


@dataclass
class Outcome:
    """A way on n sentences: the states (L, n, E) of their last tokens, and the tokens of each layer, (n, L)."""

    x: Tensor
    counts: list[list[int]]
    kept: dict[int, list[Tensor]] = field(default_factory=dict)

    def cost(self, t: Task, layers: Sequence[int] | None = None) -> Tensor:
        """(n,) FLOPs, through all layers or so many of each sentence."""
        depth = layers if layers is not None else [t.layers] * len(self.counts)
        return torch.tensor([flops(t.shape, c[:l]) for c, l in zip(self.counts, depth, strict=True)])


@torch.inference_mode()
def outcome(t: Task, way: Way, sequences: Sequence[Sequence[int]]) -> Outcome:
    states, counts, kept = [], [], {}
    for a in range(0, len(sequences), AT_ONCE):
        depth = way.depth()
        t.model.forward(batch_of(t.model, sequences[a : a + AT_ONCE]), depth, 0)
        states.append(torch.stack(depth.states).cpu())
        counts += [list(c) for c in zip(*depth.counts, strict=True)]
        for layer, who in depth.kept.items():
            kept.setdefault(layer, []).extend(who)
    with torch.inference_mode(False):  # classifiers are trained on it
        return Outcome(torch.cat(states, 1).clone(), counts, kept)


@dataclass(frozen=True)
class Judge:
    """Classifiers and the scale of the states that they were trained on."""

    scale: probes.Scale
    own: probes.Linear
    last: bool
    """Whether there is one for the last layer alone."""

    @classmethod
    def trained(cls, t: Task, x: Tensor, last: bool = True) -> Judge:
        """On the states x (L, n, E) of the training sentences, as the papers train again after words were dropped."""
        x = x[-1:] if last else x
        scale = probes.Scale.of(x)
        return cls(scale, probes.trained(scale.apply_(x.clone()), t.y["train"], len(t.labels)), last)

    def logits(self, x: Tensor) -> Tensor:
        """x (L, n, E) to (L or 1, n, C)."""
        return self.own.logits(self.scale.apply_((x[-1:] if self.last else x).clone()))

    def right(self, x: Tensor, y: Tensor) -> Tensor:
        """(n,) 1 where the last layer's classifier is right."""
        return (self.logits(x)[-1].argmax(-1) == y).double()


class Bench:
    """What the papers' parts share: the task, where words may leave, and a pass forth and back over a few sentences."""

    def __init__(self, subject: Subject, t: Task, first: int = 0) -> None:
        self.subject, self.t = subject, t
        self.places = places(t.layers, first or max(1, t.layers // 2), TIMES)
        self.rewards: list[float] = []
        """TR-BERT's mean reward, round by round."""
        self.agreement = 0.0
        """How well AdapLeR's predictors rank the words of sentences that they have not seen."""

    @cached_property
    def found(self) -> Saliency:
        t, y = self.t, self.t.y["train"][:ASKED]
        W, b = t.probes.W[-1], t.probes.b[-1]
        mean, deviation = t.scale.mean[-1], t.scale.deviation[-1]

        def loss(h: Tensor) -> Tensor:
            return F.cross_entropy((h.cpu() - mean) / deviation @ W + b, y, reduction="sum")

        def told(done: int, total: int) -> None:
            self.subject.progress("Going back through the layers", done, total)

        f = saliency(t.model, t.ids["train"][:ASKED], loss, told)
        return Saliency(f.h.cpu(), f.contribution.cpu(), f.gate.cpu(), f.received.cpu(), f.spans)


def row_of(t: Task, way: Way, out: Outcome, right: Tensor, full: Tensor, chosen: bool) -> dict[str, Any]:
    whole = sum(flops(t.shape, [len(ids)] * t.layers) for ids in t.ids["test"])
    cost = out.cost(t)
    gain, error = paired_difference(right, full)
    return {
        "method": way.name,
        "setting": way.setting,
        "accuracy": float(right.mean()),
        "change": gain,
        "error": error,
        "layer_tokens": statistics.fmean(sum(c) for c in out.counts),
        "gflops": float(cost.mean()) / 1e9,
        "saved": 1 - float(cost.sum()) / whole,
        "chosen": chosen,
    }


class Results:
    """What a work's ways did on the test sentences."""

    def __init__(self, full: Tensor, whole: float) -> None:
        self.full, self.whole = full, whole
        self.ways: list[Way] = []
        self.outs: list[Outcome] = []
        self.judges: list[Judge] = []
        self.rows: list[dict[str, Any]] = []

    def add(self, way: Way, out: Outcome, judge: Judge, row: dict[str, Any]) -> None:
        self.ways.append(way)
        self.outs.append(out)
        self.judges.append(judge)
        self.rows.append(row)

    def curve(self, name: str) -> list[tuple[float, float]]:
        """(GFLOP, accuracy), all tokens included, where every curve begins."""
        own = [(r["gflops"], r["accuracy"]) for r in self.rows if r["method"] == name]
        return [*own, (self.whole / 1e9, float(self.full.mean()))]

    def told(self, pick: Way | None) -> str:
        if pick is None:
            return "no setting was good enough on calibration sentences"
        row = self.rows[self.ways.index(pick)]
        return f"{pick.setting}: {row['saved']:.0%} of the FLOPs saved, accuracy {points(row['change'], row['error'])}"

    def saves(self, pick: Way | None, least: float, loss: float) -> bool | None:
        """Whether a setting saves at least this share of the FLOPs at this loss at most; see `at_most_lost`."""
        row = None if pick is None else self.rows[self.ways.index(pick)]
        return False if row is None or row["saved"] < least else at_most_lost(row["change"], row["error"], loss)


def timed(b: Bench, ways: Sequence[Way], count: int) -> list[dict[str, Any]]:
    """The time to the answer of single texts, each way in turn; ratios to all tokens are of the same lap."""
    t = b.t
    short = [t.ids["test"][i] for i in range(min(count, len(t.ids["test"])))]
    made = make(3, 1, 1, max(1, count // 2), t.data.seed, LONG).test
    long = encoded(b.subject.tokenizer, [s.text for s in made])
    clock = Clock(t.model.device)
    rows = []
    for name, texts in (("short", short), ("long", long)):
        seconds: dict[int, list[float]] = {i: [] for i in range(len(ways))}
        for i, ids in enumerate(texts):
            b.subject.progress(f"Timing {name} texts", i, len(texts))
            for lap in range(LAPS + 1):
                for w, way in enumerate(ways):
                    start = clock()
                    outcome(t, way, [ids])
                    if lap:  # the first warms up
                        seconds[w].append(clock() - start)
        for w, way in enumerate(ways):
            ratio = [plain / own for plain, own in zip(seconds[0], seconds[w], strict=True)]
            rows.append(
                {
                    "method": way.name,
                    "setting": way.setting,
                    "texts": name,
                    "tokens": statistics.fmean(map(len, texts)),
                    "ms": 1000 * statistics.median(seconds[w]),
                    "speedup": statistics.median(ratio),
                }
            )
    return rows


def likeness(b: Bench) -> Iterator[dict[str, Any]]:
    """Mean cosine between two words of a sentence, the first one left out, by layer."""
    f = b.found
    for l in range(1, len(f.h)):
        found = []
        for x, y in f.spans:
            h = F.normalize(f.h[l, x + 1 : y], dim=-1)
            n = y - x - 1
            found.append(float(((h @ h.t()).sum() - n) / (n * (n - 1))))
        yield {"method": "All tokens", "layer": l, "cosine": statistics.fmean(found)}


def survivors(b: Bench, way: Way, example: int) -> Iterator[dict[str, Cell]]:
    """Which words of one sentence are still there after each place, the others as dots."""
    t, ids = b.t, b.t.ids["test"][example]
    words = [b.subject.tokenizer.decode([i]) for i in ids]
    for layer, (kept,) in sorted(outcome(t, way, [ids]).kept.items()):
        here = set(kept.tolist())
        shown = [w if i in here else "·" for i, w in enumerate(words)]
        yield {"method": way.name, "setting": way.setting, "layer": layer, "words": "".join(shown)}

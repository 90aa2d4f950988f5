from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from llmlab.lab.study import Cell, Chart, Claim, Findings, Study, Subject
from llmlab.runtime.configurable import knob
from llmlab.studies.support.classification import probes
from llmlab.studies.support.classification.classify import (
    Data,
    Left,
    Task,
    at_most,
    flops,
    lead,
    leave,
    no_loss,
    paired,
    points,
    task,
)
from llmlab.techniques.early_exit import rules, thresholds
from llmlab.techniques.early_exit.rules import Each, Entropy, MultiView, NormalisedEntropy, Patience, Rule
from llmlab.techniques.early_exit.thresholds import Consistency

RECENT = 0.9
"""How much the newest classifier weighs in MPEE's memory: its authors' program."""
UNSURE = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Uncertainties below which one leaves, as shares of the highest."""
PROMISES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
DRAWS = 200
"""Times that calibration and test sentences are dealt anew to see a promise kept."""
NOISY = 150
"""Sentences that are read again with wrong words in them."""
SEEN = ("local", "past", "past and future")


@dataclass
class Way:
    """A paper's classifiers and rule on a task: what they say of calibration and test sentences, and what to try."""

    name: str
    p: dict[str, Tensor]
    """(l, n, C) per part."""
    depths: Sequence[int]
    tried: Sequence[tuple[str, Rule]]
    """Settings, each with a name."""
    answer: Callable[[Tensor], Tensor] | None = None

    def curve(self, part: str, y: Tensor) -> list[tuple[float, float]]:
        left = [leave(rule, self.p[part], self.depths, self.answer) for _, rule in self.tried]
        return [(one.mean(), one.accuracy(y)) for one in left]


def _both(classifiers: Callable[[Tensor], Tensor], t: Task) -> dict[str, Tensor]:
    return {part: classifiers(t.x[part]) for part in ("calibration", "test")}


def branchynet(t: Task) -> Way:
    """Two branches, a threshold each, of which those pairs stay that calibration sentences find on the front."""
    L, most = t.layers, math.log(len(t.labels))
    depths = sorted({max(1, L // 3), max(1, 2 * L // 3), L})
    p = {part: said[[d - 1 for d in depths]] for part, said in _both(t.probes, t).items()}
    pairs = product((0.0, 0.1, 0.3, 0.5, 0.7, 0.9), repeat=len(depths) - 1)
    tried = [(" ".join(f"{u:g}" for u in us), Each(tuple(Entropy(u * most) for u in us))) for us in pairs]
    way = Way("BranchyNet", p, depths, tried)
    curve = way.curve("calibration", t.y["calibration"])
    way.tried = [s for s, (c, a) in zip(tried, curve, strict=True) if not any(d <= c and b > a for d, b in curve)]
    return way


def deebert(t: Task) -> Way:
    most = math.log(len(t.labels))
    tried = [(f"{u * most:.2g}", Entropy(u * most)) for u in UNSURE]
    return Way("DeeBERT", _both(t.probes, t), range(1, t.layers + 1), tried)


def fastbert(t: Task) -> Way:
    said = t.probes(t.x["train"])[-1]
    # The last layer is the teacher itself; only the branches are students.
    students = probes.distilled(t.x["train"][:-1], said)
    whole = probes.Linear(torch.cat([students.W, t.probes.W[-1:]]), torch.cat([students.b, t.probes.b[-1:]]))
    tried = [(f"{u:g}", NormalisedEntropy(u)) for u in UNSURE]
    return Way("FastBERT", _both(whole, t), range(1, t.layers + 1), tried)


def pabee(t: Task) -> Way:
    tried = [(str(n), Patience(n)) for n in range(1, min(12, t.layers - 1) + 1)]
    return Way("PABEE", _both(t.probes, t), range(1, t.layers + 1), tried)


def mpee(t: Task) -> Way:
    most = math.log(len(t.labels))
    own = probes.recycled(t.x["train"], t.y["train"], t.probes, RECENT)
    tried = [(f"{u * most:.2g}", MultiView(u * most, RECENT)) for u in UNSURE]
    return Way("MPEE", _both(own, t), range(1, t.layers + 1), tried, MultiView(0.0, RECENT).together)


def past_future(t: Task) -> Way:
    most = math.log(len(t.labels))
    imitators = probes.Imitators.fitted(t.x["train"])
    own = probes.past_future(t.x["train"], t.y["train"], len(t.labels), imitators)
    tried = [(f"{u * most:.2g}", rules.PastFuture(u * most)) for u in UNSURE]
    way = Way("Past-Future", _both(own, t), range(1, t.layers + 1), tried)
    test = t.x["test"]
    way.p["past"] = probes.past_only(t.x["train"], t.y["train"], len(t.labels)).logits(test).cumsum(0)
    error = [[imitators.error(test, l, j) for j in range(l + 1, t.layers)] for l in range(t.layers - 1)]
    way.p["error"] = torch.tensor([sum(e) / len(e) for e in error])
    return way


def cats(t: Task) -> Way:
    """The meta-classifier learns from one half of the calibration sentences, the bar comes from the other."""
    p = _both(t.probes, t)
    half = p["calibration"].shape[1] // 2
    asked = range(1, t.layers)
    same = {part: said[:-1].argmax(-1) == said[-1].argmax(-1) for part, said in p.items()}
    x = torch.cat([rules.features(p["calibration"][:l, :half]) for l in asked])
    meta = Consistency.fitted(x, same["calibration"][:, :half].flatten())
    score = {part: torch.stack([meta.score(said[:l]) for l in asked]) for part, said in p.items()}
    rest = score["calibration"][:, half:], same["calibration"][:, half:]
    tried: list[tuple[str, Rule]] = [
        (f"{e:g}", Consistency(thresholds.conformal(*rest, e), meta.weights, meta.bias)) for e in PROMISES
    ]
    way = Way("CATs", p, range(1, t.layers + 1), tried)
    way.p["scores"] = torch.cat([rest[0], score["test"]], 1)
    way.p["same"] = torch.cat([rest[1], same["test"]], 1)
    return way


WORKS: dict[str, Callable[[Task], Way]] = {
    "branchynet": branchynet,
    "deebert": deebert,
    "fastbert": fastbert,
    "pabee": pabee,
    "mpee": mpee,
    "past-future-exit": past_future,
    "cats": cats,
}


@dataclass(frozen=True)
class ExitRules(Study):
    """Exit rules for sentences.

    Idea: Put a small classifier behind every layer of a frozen model and let a sentence leave as soon as a rule trusts
    what has been said of it. Seven papers differ in how the classifiers are trained and in when they are trusted.
    Method: Leave when the entropy −Σ p ln p is below a threshold (BranchyNet with two branches, DeeBERT with one per
    layer; MPEE on a memory of all that was said, Past-Future on states seen and imitated), when it is below `speed`
    times ln C (FastBERT, whose classifiers learn from the last one), when t classifiers in a row have agreed (PABEE),
    or when a meta-classifier's score is above a bar that conformal calibration sets for a promised agreement 1 − ε
    (CATs).
    What to look for: Curves of accuracy against layers and FLOPs; where sentences leave; whether those with more
    negations stay longer. Settings called "chosen" are the cheapest that lose at most `loss` on calibration sentences;
    claims are judged on others.
    Differences from the paper: The papers fine-tune an encoder of 12 layers; here a language model is frozen and linear
    probes see the last token. On a frozen backbone BranchyNet's, DeeBERT's and PABEE's classifiers are the same.
    FastBERT's have no attention of their own. Past-Future's imitators are linear, without tanh, fitted by least
    squares, and its gate is one number per exit. MPEE's teacher weighs layers, not sentences; its tokens are in the
    study of dropped tokens.
    """

    covers = ("branchynet", "deebert", "fastbert", "pabee", "mpee", "past-future-exit", "cats")
    bench = "classification"
    claim = "Seven ways for a sentence to leave a frozen model early, on one task and one axis of cost."
    claim_zh = "一句话提前离开冻结模型的七种方式，同一任务，同一代价轴。"

    work: str = knob("all", choices=("all", *WORKS), help="whose classifiers and rule")
    classes: int = knob(3, 2, 4, "labels of the made sentences: bad, good, neither, both")
    train: int = knob(1000, 60, 4000, "sentences that classifiers learn from")
    calibration: int = knob(400, 40, 4000, "sentences that thresholds are chosen on")
    test: int = knob(400, 40, 4000, "sentences that everything is measured on")
    loss: float = knob(0.01, 0.0, 0.2, "accuracy that a chosen threshold may cost, as a share")
    noise: float = knob(0.15, 0.0, 0.5, "share of wrong words, for PABEE's robustness; 0: not tested", advanced=True)
    data: str = knob("made", choices=("made", "*"), help="made, or a CSV file with the columns text and label")

    def run(self, subject: Subject) -> Findings:
        sizes = (self.train, self.calibration, self.test, subject.settings.seed)
        t = task(subject, Data(self.data, self.classes, *sizes))
        chosen = tuple(WORKS) if self.work == "all" else (self.work,)
        subject.progress("Training a classifier per layer", 0, len(chosen))
        full = t.probes(t.x["test"])[-1].argmax(-1)
        rows: list[dict[str, Cell]] = [self._row(t, "All layers", "", leave_never(t, full), full, True)]
        claims: list[Claim] = []
        for i, name in enumerate(chosen):
            subject.progress(f"Trying {name}", i, len(chosen))
            way = WORKS[name](t)
            found = Tried(self, t, way, full)
            rows += [self._row(t, way.name, s, left, full, s == found.setting) for s, left in found.left.items()]
            rows += list(_by_layer(t, way, found.chosen)) + list(_by_depth(t, way, found.chosen))
            if name == "cats":
                kept = list(promises(way))
                rows += kept
                claims.append(guarantee(kept, way))
            claims += CLAIMS[name](found) if name in CLAIMS else []
        best = float((full == t.y["test"]).double().mean())
        notes = [
            f"{len(t.y['test'])} test sentences of {float(t.lengths('test').double().mean()):.0f} tokens on average, "
            f"with the question behind them; through all layers {best:.1%} are answered rightly.",
            "A standard error of one accuracy is about "
            f"{100 * math.sqrt(best * (1 - best) / len(full)):.1f} points; comparisons are of the same sentences.",
        ]
        return Findings(COLUMNS, rows, CHARTS, claims, notes)

    def _row(self, t: Task, name: str, setting: str, left: Left, full: Tensor, chosen: bool) -> dict[str, Cell]:
        lengths = t.lengths("test")
        cost = [flops(t.shape, [int(n)] * int(l)) for n, l in zip(lengths, left.layers, strict=True)]
        whole = [flops(t.shape, [int(n)] * t.layers) for n in lengths]
        return {
            "method": name,
            "setting": setting,
            "accuracy": left.accuracy(t.y["test"]),
            "agreement": left.accuracy(full),
            "layers": left.mean(),
            "layer_tokens": float((left.layers * lengths).double().mean()),
            "gflops": sum(cost) / len(cost) / 1e9,
            "saved": 1 - sum(cost) / sum(whole),
            "chosen": chosen,
        }


def leave_never(t: Task, full: Tensor) -> Left:
    return Left(torch.full_like(full, t.layers), full)


class Tried:
    """Every setting of a way on test sentences, and the one that calibration sentences chose."""

    def __init__(self, study: ExitRules, t: Task, way: Way, full: Tensor) -> None:
        self.study, self.t, self.way, self.full = study, t, way, full
        self.left = {s: leave(rule, way.p["test"], way.depths, way.answer) for s, rule in way.tried}
        y = t.y["calibration"]
        base = float((t.probes(t.x["calibration"])[-1].argmax(-1) == y).double().mean())
        at = at_most(way.curve("calibration", y), study.loss, base)
        self.setting = "" if at is None else way.tried[at][0]
        self.chosen = leave_never(t, full) if at is None else self.left[self.setting]
        self.right = (self.full == t.y["test"]).double()

    def best(self, able: Callable[[Left], bool]) -> tuple[Left, float, float, str] | None:
        """Of the settings that are able on calibration sentences the most accurate there, on test sentences: who left
        where, the accuracy against all layers with its standard error, and that in words. None where none is able."""
        y = self.t.y["calibration"]
        tried = [
            (s, leave(rule, self.way.p["calibration"], self.way.depths, self.way.answer)) for s, rule in self.way.tried
        ]
        good = [(left.accuracy(y), -left.mean(), s) for s, left in tried if able(left)]
        if not good:
            return None
        setting = max(good)[2]
        left = self.left[setting]
        gain, error = paired((left.said == self.t.y["test"]).double(), self.right)
        told = f"threshold {setting}: {left.mean():.1f} of {self.t.layers} layers, {points(gain, error)} against all"
        return left, gain, error, told

    def curve(self) -> list[tuple[float, float]]:
        return self.way.curve("test", self.t.y["test"])

    def against_full(self) -> tuple[float, float]:
        return paired((self.chosen.said == self.t.y["test"]).double(), self.right)

    def told(self) -> str:
        gain, error = self.against_full()
        where = f"threshold {self.setting}" if self.setting else "no threshold was good enough on calibration sentences"
        return f"{where}: {self.chosen.mean():.1f} of {self.t.layers} layers, {points(gain, error)} against all"


def _by_layer(t: Task, way: Way, left: Left) -> Iterator[dict[str, Cell]]:
    """What each classifier knows by itself, and how many leave there."""
    p = way.p["test"]
    for l, depth in enumerate(way.depths, 1):
        said = p[l - 1] if way.answer is None else way.answer(p[:l])
        yield {
            "method": way.name,
            "layer": depth,
            "layer_accuracy": float((said.argmax(-1) == t.y["test"]).double().mean()),
            "left": float((left.layers == depth).double().mean()),
        }


def _by_depth(t: Task, way: Way, left: Left) -> Iterator[dict[str, Cell]]:
    """Layers and accuracy by known difficulty."""
    depth = torch.tensor([s.depth for s in t.sentences.test])
    for d in sorted(set(depth.tolist()) - {-1}):
        at = depth == d
        yield {
            "method": way.name,
            "negations": d,
            "negation_layers": float(left.layers[at].double().mean()),
            "negation_accuracy": float((left.said[at] == t.y["test"][at]).double().mean()),
        }


# What the papers say ------------------------------------------------------------------------------------------------


def most_leave_early(f: Tried) -> list[Claim]:
    source, claim = "BranchyNet, arXiv 1709.01686", "Most samples leave at a side branch, with little or no loss."
    found = f.best(lambda left: float((left.layers < f.t.layers).double().mean()) > 0.5)
    if found is None:
        return [Claim(source, claim, False, "under no thresholds that were tried do most sentences leave early")]
    left, gain, error, told = found
    early = float((left.layers < f.t.layers).double().mean())
    return [Claim(source, claim, no_loss(gain, error, f.study.loss), f"{early:.0%} leave at a branch; {told}")]


def forty_percent(f: Tried) -> list[Claim]:
    source, claim = "DeeBERT, arXiv 2004.12993", "Up to about 40 % of the time is saved with little loss."
    found = f.best(lambda left: left.mean() <= 0.6 * f.t.layers)
    if found is None:
        return [Claim(source, claim, False, "no threshold that was tried saves 40 % of the layers")]
    left, gain, error, told = found
    saved = 1 - left.mean() / f.t.layers
    return [Claim(source, claim, no_loss(gain, error, f.study.loss), f"{saved:.0%} of the layers saved; {told}")]


def uncertainty_and_students(f: Tried) -> list[Claim]:
    p, y = f.way.p["test"], f.t.y["test"]
    right = (p.argmax(-1) == y).double()
    unsure = rules.entropy(p)
    half = p.shape[1] // 2
    order = unsure.argsort(1)
    sure, rest = (right.gather(1, part).mean(1) for part in (order[:, :half], order[:, half:]))
    layers = int((sure >= rest).sum())
    taught = (f.t.probes(f.t.x["test"]).argmax(-1) == f.full)[:-1].double()
    student = (p.argmax(-1) == f.full)[:-1].double()
    gain, error = paired(student.mean(0), taught.mean(0))
    gain_full, error_full = f.against_full()
    fast = f.t.layers / f.chosen.mean()
    return [
        Claim(
            "FastBERT, arXiv 2004.02178, section 3.3",
            "The lower the uncertainty, the higher the accuracy, at every layer.",
            layers >= 0.9 * len(right),
            f"at {layers} of {len(right)} layers the surer half is at least as accurate; "
            f"{float(sure.mean()):.1%} against {float(rest.mean()):.1%} on average",
        ),
        Claim(
            "FastBERT, arXiv 2004.02178",
            "Branches taught by the last classifier, without labels, follow it well.",
            gain > -error,
            f"they agree with it {100 * gain:+.1f} ± {100 * error:.1f} points more often than branches taught by "
            "labels, on average over the layers",
        ),
        Claim(
            "FastBERT, arXiv 2004.02178",
            "A speed-up from 1x to 12x depending on the speed threshold, with little loss at low speeds.",
            no_loss(gain_full, error_full, f.study.loss) if fast > 1.1 else False,
            f"{fast:.1f}x fewer layers at the chosen speed, {f.t.layers / min(c for c, _ in f.curve()):.1f}x at the "
            f"highest speed tried; {f.told()}",
        ),
    ]


def patience(f: Tried) -> list[Claim]:
    y = {part: f.t.y[part] for part in ("calibration", "test")}
    tried = f.way.curve("calibration", y["calibration"])
    best = max(range(len(tried)), key=lambda i: (tried[i][1], -tried[i][0]))
    setting = f.way.tried[best][0]
    gain, error = paired((f.left[setting].said == y["test"]).double(), f.right)
    other = deebert(f.t)
    ahead = lead(f.curve(), other.curve("test", y["test"]))
    claims = [
        Claim(
            "PABEE, arXiv 2006.04152",
            "Some patience is more accurate than all layers: models overthink.",
            None if abs(gain) < error else gain > 0,
            f"patience {setting}, best on calibration sentences, is {100 * gain:+.1f} ± {100 * error:.1f} points from "
            f"all layers after {f.left[setting].mean():.1f} layers on average",
        ),
        Claim(
            "PABEE, arXiv 2006.04152",
            "Patience beats entropy at the same number of layers.",
            None if ahead is None else ahead > 0,
            "the two have no number of layers in common"
            if ahead is None
            else f"{100 * ahead:+.1f} points on average over the numbers of layers that both reach",
        ),
    ]
    if f.study.noise:
        claims.append(_robust(f, other))
    return claims


def _robust(f: Tried, other: Way) -> Claim:
    """Both rules on clean and on noisy copies of some test sentences, each at its own chosen threshold."""
    t, n = f.t, min(NOISY, len(f.t.y["test"]))
    dice = torch.Generator().manual_seed(t.data.seed)
    noisy = []
    for ids in t.ids["test"][:n]:
        wrong = torch.rand(len(ids), generator=dice) < f.study.noise
        wrong[len(ids) - t.asked :] = False
        random = torch.randint(0, t.shape.vocab, (len(ids),), generator=dice)
        noisy.append(torch.where(wrong, random, torch.tensor(ids)).tolist())
    said = t.probes(t.see(noisy))
    y = t.y["test"][:n]
    falls = []
    for found in (f, Tried(f.study, t, other, f.full)):
        rule = dict(found.way.tried).get(found.setting)
        if rule is None:
            return Claim("PABEE, arXiv 2006.04152", ROBUST, None, "no threshold was good enough to compare")
        left = leave(rule, said, found.way.depths)
        falls.append((left.said == y).double() - (found.left[found.setting].said[:n] == y).double())
    gap, error = paired(*falls)
    return Claim(
        "PABEE, arXiv 2006.04152",
        ROBUST,
        None if abs(gap) < error else gap > 0,
        f"with {f.study.noise:.0%} wrong words accuracy falls by {-100 * float(falls[0].mean()):.1f} points under "
        f"patience and by {-100 * float(falls[1].mean()):.1f} under entropy, ± {100 * error:.1f}, on {n} sentences",
    )


ROBUST = "Patience is more robust to disturbed input than entropy."


def memory(f: Tried) -> list[Claim]:
    own, forgetful = f.curve(), deebert(f.t).curve("test", f.t.y["test"])
    ahead = lead(own, forgetful)
    return [
        Claim(
            "MPEE, aclanthology 2022.coling-1.414",
            "Classifiers that recycle what earlier ones said are better than ones that forget, at equal depth.",
            None if ahead is None else ahead > 0,
            "the two have no depth in common"
            if ahead is None
            else f"{100 * ahead:+.1f} points against DeeBERT on average over the depths that both reach",
        )
    ]


def early_margin(f: Tried) -> list[Claim]:
    y, p, L = f.t.y["test"], f.way.p, f.t.layers
    early = max(1, L // 4)
    local = (f.t.probes(f.t.x["test"]).argmax(-1) == y).double()
    past, both = ((p[k].argmax(-1) == y).double() for k in ("past", "test"))
    gain, error = paired(both[:early].mean(0), local[:early].mean(0))
    shown = ", ".join(
        f"{name} {float(a[:early].mean()):.1%}" for name, a in zip(SEEN, (local, past, both), strict=True)
    )
    wrong = p["error"]
    return [
        Claim(
            "Past-Future, aclanthology 2021.naacl-main.162",
            "Seeing the past and an imitated future gives a large margin at very early exits.",
            None if abs(gain) < error else gain > 0.02,
            f"over the first {early} layers: {shown} ({100 * gain:+.1f} ± {100 * error:.1f} points); the imitated "
            f"states are wrong by {float(wrong[0]):.2f} of their variance from the first layer and by "
            f"{float(wrong[L // 2]):.2f} from the middle",
        )
    ]


CLAIMS: dict[str, Callable[[Tried], list[Claim]]] = {
    "branchynet": most_leave_early,
    "deebert": forty_percent,
    "fastbert": uncertainty_and_students,
    "pabee": patience,
    "mpee": memory,
    "past-future-exit": early_margin,
}


def promises(way: Way) -> Iterator[dict[str, Any]]:
    """Per ε: agreement on fresh sentences and layers, over many deals of the sentences that no classifier has seen."""
    scores, same = way.p["scores"], way.p["same"]
    n = scores.shape[1]
    depths, full = tuple(way.depths[:-1]), way.depths[-1]
    for epsilon in PROMISES:
        dice = torch.Generator().manual_seed(0)
        kept = []
        for _ in range(DRAWS):
            order = torch.randperm(n, generator=dice)
            cal, fresh = order[: n // 2], order[n // 2 :]
            bar = thresholds.conformal(scores[:, cal], same[:, cal], epsilon)
            kept.append(thresholds.trade(scores[:, fresh], same[:, fresh], depths, full, bar))
        share, layers = torch.tensor(kept).mean(0).tolist()
        yield {
            "method": way.name,
            "epsilon": epsilon,
            "kept": share,
            "promised": 1 - epsilon,
            "kept_layers": layers,
        }


def guarantee(rows: Sequence[dict[str, Any]], way: Way) -> Claim:
    n = way.p["scores"].shape[1] // 2
    slack = [math.sqrt(r["epsilon"] * (1 - r["epsilon"]) * 2 / n / DRAWS) for r in rows]
    held = [r["kept"] >= r["promised"] - 2 * s for r, s in zip(rows, slack, strict=True)]
    told = "; ".join(f"ε = {r['epsilon']:g}: {r['kept']:.1%} in {r['kept_layers']:.1f} layers" for r in rows)
    return Claim(
        "CATs, arXiv 2104.08803",
        "Early answers agree with the full model's with at least the promised probability 1 − ε.",
        all(held),
        f"{told}; means over {DRAWS} deals of {n} sentences to calibrate on and {n} fresh ones",
    )


COLUMNS = {
    "method": "Method",
    "setting": "Threshold",
    "accuracy": "Accuracy",
    "agreement": "Agreement with all layers",
    "layers": "Layers",
    "layer_tokens": "Layers × tokens",
    "gflops": "GFLOP per sentence",
    "saved": "FLOPs saved",
    "chosen": "Chosen on calibration sentences",
    "layer": "Layer",
    "layer_accuracy": "Accuracy of this layer's classifier",
    "left": "Share that leaves here",
    "negations": "Negations",
    "negation_layers": "Layers with so many negations",
    "negation_accuracy": "Accuracy with so many negations",
    "epsilon": "ε",
    "kept": "Agreement on fresh sentences",
    "promised": "Promised agreement",
    "kept_layers": "Layers under the promise",
}
CHARTS = (
    Chart("Accuracy against layers", "layers", "accuracy", "method", "front"),
    Chart("Accuracy against FLOPs", "gflops", "accuracy", "method", "front"),
    Chart("What each classifier knows", "layer", "layer_accuracy", "method"),
    Chart("Where sentences leave, at the chosen threshold", "layer", "left", "method", "bar"),
    Chart("Layers by known difficulty", "negations", "negation_layers", "method"),
    Chart("CATs: agreement, promised and found", "epsilon", "kept", "method", "line", "promised"),
)

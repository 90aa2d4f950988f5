from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from llmlab.lab.study import Cell, Chart, Claim, Findings, Study, Subject
from llmlab.measure.statistics import mean
from llmlab.runtime.configurable import knob
from llmlab.studies.support.classification.classify import Data, Task, task
from llmlab.studies.support.exit_rules.claims import CLAIMS
from llmlab.studies.support.exit_rules.methods import WORKS
from llmlab.studies.support.exit_rules.promise import guarantee, promises
from llmlab.studies.support.exit_rules.tried import Tried, by_depth, by_layer, never_exit, row_of

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


@dataclass(frozen=True)
class ExitRules(Study):
    """Exit rules for sentences.

    Idea: Put a small classifier behind every layer of a frozen model and let a sentence leave as soon as a rule trusts
    what has been said of it. Seven papers differ in how the classifiers are trained and in when they are trusted.
    Method: Leave when the entropy −Σ p ln p is below a threshold (BranchyNet with two branches, DeeBERT with one per
    layer; MPEE on a memory of earlier answers, Past-Future on states seen and imitated), when it is below `speed`
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
        rows: list[dict[str, Cell]] = [row_of(t, "All layers", "", never_exit(t, full), full, True)]
        claims: list[Claim] = []
        for i, name in enumerate(chosen):
            subject.progress(f"Trying {name}", i, len(chosen))
            method = WORKS[name](t)
            tried = Tried(t, method, full, self.loss, self.noise)
            rows += [row_of(t, method.name, s, exits, full, s == tried.setting) for s, exits in tried.exits.items()]
            subject.so_far = Findings(COLUMNS, rows)
            rows += [*by_layer(t, method, tried.chosen), *by_depth(t, method, tried.chosen)]
            if name == "cats":
                kept = list(promises(method))
                rows += [row for row, _ in kept]
                claims.append(guarantee(kept, method))
            claims += CLAIMS[name](tried) if name in CLAIMS else []
        return Findings(COLUMNS, rows, CHARTS, claims, _notes(t, full))


def _notes(t: Task, full: Tensor) -> list[str]:
    best = mean((full == t.y["test"]).double())
    return [
        f"{len(t.y['test'])} test sentences of {float(t.lengths('test').double().mean()):.0f} tokens on average, "
        f"with the question behind them; through all layers {best.value:.1%} are answered rightly.",
        "A standard error of one accuracy is about "
        f"{100 * best.error:.1f} points; comparisons are of the same sentences.",
    ]

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llmlab.errors import Refused
from llmlab.lab.study import Chart, Claim, Findings, Study, Subject
from llmlab.runtime.configurable import knob
from llmlab.studies.support.classification.classify import Data, task
from llmlab.studies.support.token_drop.bench import Bench
from llmlab.studies.support.token_drop.claims import CLAIMS
from llmlab.studies.support.token_drop.exits_too import surface, together
from llmlab.studies.support.token_drop.methods import WORKS, Learned
from llmlab.studies.support.token_drop.outcomes import DropSetting, Judge, Outcome, Results, outcome, row_of
from llmlab.studies.support.token_drop.views import faster, likeness, survivors, timed

COLUMNS = {
    "method": "Method",
    "setting": "Setting",
    "accuracy": "Accuracy",
    "change": "Against all tokens",
    "error": "Standard error of that",
    "layer_tokens": "Layers × tokens",
    "gflops": "GFLOP per sentence",
    "saved": "FLOPs saved",
    "chosen": "Chosen on calibration sentences",
    "layer": "Layer",
    "cosine": "Cosine between words",
    "words": "Words that stay",
    "texts": "Texts",
    "tokens": "Tokens",
    "ms": "ms to the answer",
    "speedup": "Times as fast",
    "speedup_error": "Standard error of that",
    "count": "Texts timed",
}
CHARTS = (
    Chart("Accuracy against FLOPs", "gflops", "accuracy", "method", "front"),
    Chart("Accuracy against layers × tokens", "layer_tokens", "accuracy", "method", "front"),
    Chart("How alike a sentence's words are", "layer", "cosine", "method"),
    Chart("Time to the answer", "texts", "ms", "method", "bar"),
)


@dataclass(frozen=True)
class TokenDrop(Study):
    """Dropped tokens for sentences.

    Idea: The deeper the layer, the fewer words a classifier still needs. Let the others leave on the way, and see which
    words stay, what it costs in accuracy and what it saves in time.
    Method: After some layers a word leaves when little attention is paid to it, under a schedule learned from the
    loss's slope (PoWER-BERT); when a policy rewarded by log p(label) − price·cost deselects it, to wait for the last
    layer (TR-BERT); when its predicted share of gradient × input is below η / T (AdapLeR); when it draws less than a
    share of the mean attention, and the sentence itself may leave by entropy (Magic Pyramid). MPEE's words melt into
    one.
    What to look for: The words that survive, layer by layer; accuracy against FLOPs; and the time to the answer,
    measured on short and on long texts: making attention weights costs time that few words do not win back.
    Differences from the paper: The papers fine-tune an encoder, and again after dropping; here all but the small parts
    is frozen, only the last classifier is trained again, and attention is causal, so that early words cannot know what
    follows. Words leave from half of the layers on; first and last token always stay. PoWER-BERT's schedule comes from
    the loss's slope at full length, in one step. TR-BERT's rewards are few. AdapLeR's η is tried, not learned, and its
    predictors stand at five layers. Magic Pyramid's bars are tried too.
    """

    covers = ("power-bert", "tr-bert", "adapler", "magic-pyramid")
    bench = "classification"
    claim = "Five ways to let words leave a frozen model before its last layer, and the words that stay."
    claim_zh = "让词在最后一层之前离开冻结模型的五种方式，以及留下的词。"

    work: str = knob("power-bert", choices=("all", *WORKS), help="whose selection; all takes several minutes")
    classes: int = knob(3, 2, 4, "labels of the made sentences: bad, good, neither, both")
    train: int = knob(300, 60, 4000, "sentences that classifiers learn from")
    calibration: int = knob(80, 20, 2000, "sentences that settings are chosen on")
    test: int = knob(160, 20, 2000, "sentences that everything is measured on")
    loss: float = knob(0.01, 0.0, 0.2, "accuracy that a chosen setting may cost, as a share")
    timed: int = knob(6, 1, 64, "short texts, and half as many long ones, that are timed")
    first: int = knob(0, 0, 128, "layers that every word goes through; 0: half of them", advanced=True)
    data: str = knob("made", choices=("made", "*"), help="made, or a CSV file with the columns text and label")

    def run(self, subject: Subject) -> Findings:
        sizes = (self.train, self.calibration, self.test, subject.settings.seed)
        layers = len(subject.model.layers)
        if self.first >= layers:
            raise Refused(self.title, f"would drop nothing: it waits for layer {self.first} of {layers}", "Lower first")
        t = task(subject, Data(self.data, self.classes, *sizes))
        b = Bench(subject, t, self.first)
        works = tuple(WORKS) if self.work == "all" else (self.work,)
        subject.progress("Training classifiers", 0, 0)
        whole = Outcome(t.x["test"], [[len(ids)] * t.layers for ids in t.ids["test"]])
        right = (t.probes(whole.x)[-1].argmax(-1) == t.y["test"]).double()
        rows: list[dict[str, Any]] = [row_of(t, DropSetting("All tokens", "", {}), whole, right, right, True)]
        claims: list[Claim] = []
        shown: list[DropSetting] = []
        for name in works:
            r = Results(right, whole.cost(t).double())
            learned = WORKS[name](b)
            best, nearest = self._try(b, learned, r, classify_last=name != "magic-pyramid")
            shown.append(best or nearest)
            rows += r.rows
            if name == "magic-pyramid":
                more, points = surface(t, r)
                rows += more
                claims += together(t, points)
            else:
                claims += CLAIMS[name](self.loss, b, learned, r, best or nearest)
        if "power-bert" in works:
            cosines = likeness(b).mean(1).tolist()
            rows += [{"method": "All tokens", "layer": l, "cosine": c} for l, c in enumerate(cosines, 1)]
        example = max(range(len(t.ids["test"])), key=lambda i: len(t.ids["test"][i]))
        for setting in shown:
            rows += list(survivors(b, setting, example))
        times = timed(b, [DropSetting("All tokens", "", {}), *shown], self.timed)
        rows += times
        claims += list(faster(times))
        return Findings(COLUMNS, rows, CHARTS, claims, self._notes(b, right))

    def _try(
        self, b: Bench, learned: Learned, r: Results, classify_last: bool
    ) -> tuple[DropSetting | None, DropSetting]:
        """Every setting on the test sentences, into `r`; of the candidates the cheapest that calibration sentences find
        good enough, if any, and the one most accurate on them, which is judged where none is."""
        t = b.t
        y = t.y["calibration"]
        base = float((t.probes(t.x["calibration"])[-1].argmax(-1) == y).double().mean())
        best: tuple[float, DropSetting] | None = None
        nearest: tuple[float, DropSetting] | None = None
        for setting in learned.settings:
            b.subject.progress(f"{setting.name} {setting.value}", len(r.settings), 0)
            out = outcome(t, setting, t.ids["test"])
            judge = Judge.trained(t, outcome(t, setting, t.ids["train"]).x, last=classify_last)
            r.add(t, setting, out, judge)
            if not setting.candidate:
                continue
            tried = outcome(t, setting, t.ids["calibration"])
            cost, accuracy = float(tried.cost(t).mean()), float(judge.right(tried.x, y).mean())
            if accuracy >= base - self.loss - 1e-9 and (best is None or cost < best[0]):
                best = (cost, setting)
            if nearest is None or accuracy > nearest[0]:
                nearest = (accuracy, setting)
        if best:
            r.rows[r.settings.index(best[1])]["chosen"] = True
        assert nearest is not None
        return best and best[1], nearest[1]

    def _notes(self, b: Bench, right: Tensor) -> list[str]:
        tokens = float(b.t.lengths("test").double().mean())
        return [
            f"{self.test} test sentences of {tokens:.0f} tokens on average, with the "
            f"question behind them; with all tokens {float(right.mean()):.1%} are answered rightly.",
            f"Words may leave after layers {', '.join(map(str, b.places))} of {b.t.layers}; every setting has "
            "classifiers trained on sentences that lost words in the same way.",
        ]

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmlab.errors import Refused
from llmlab.lab.study import Chart, Claim, Findings, Study, Subject
from llmlab.runtime.configurable import knob
from llmlab.runtime.token_drop_plan import AtLeast, TokenDropPlan, Top
from llmlab.studies.support.classification import selectors
from llmlab.studies.support.classification.classify import Data, batch_of, flops, run_exits, task
from llmlab.studies.support.classification.curves import best_points, lead
from llmlab.studies.support.classification.dropped import (
    Bench,
    Judge,
    Outcome,
    Results,
    Way,
    likeness,
    outcome,
    row_of,
    survivors,
    timed,
)
from llmlab.studies.support.classification.selectors import Contribution, Policy
from llmlab.techniques.early_exit.rules import Entropy

LEARNED = 24
"""Of the sentences whose loss is differentiated, those that predictors learn from; the others test them."""
PRICE = 1.0
"""What a policy pays for keeping every word in every layer, in nats."""


def power_bert(b: Bench) -> Iterator[Way]:
    """The learned schedule, and at the same cost an even one, and chance under the learned one."""
    worth = selectors.worth_by_rank(b.found, b.places)
    L = b.t.layers
    for share in (0.9, 0.75, 0.6):
        masses = selectors.retention(worth, b.places, L, share)
        told = " ".join(f"{m:.0%}" for m in masses)
        plan = {p: Top(m, of_whole=True) for p, m in zip(b.places, masses, strict=True)}
        yield Way("PoWER-BERT", told, plan)
        if share == 0.75:
            chance = {p: Top(m, "random", True, b.t.data.seed) for p, m in zip(b.places, masses, strict=True)}
            yield Way("Chance, same schedule", told, chance)
    for keep in (0.85, 0.7):
        yield Way("Attention, even schedule", f"{keep:.0%} each time", dict.fromkeys(b.places, Top(keep)))


def tr_bert(b: Bench) -> Iterator[Way]:
    """Policies at two layers: from attention by imitation, then by REINFORCE on rollouts over training sentences."""
    t, L = b.t, b.t.layers
    at = sorted({b.places[0], b.places[len(b.places) // 2]})
    f, seed = b.found, t.data.seed
    nets = [selectors.imitated(f.h[p], f.received[p - 1], f.spans, seed) for p in at]
    before = dict(zip(at, [Policy(copy.deepcopy(net)) for net in nets], strict=True))
    # The classifier that rewards has been trained on what the policy begins with.
    judge = Judge.trained(t, outcome(t, Way("", "", before, "pass"), t.ids["train"]).x)
    dice = torch.Generator().manual_seed(seed)
    sentences, samples, rounds = 12, 3, 10
    full = [flops(t.shape, [len(ids)] * L) for ids in t.ids["train"]]

    def act(step: int) -> tuple[list[selectors.Choices], Tensor]:
        picked = torch.randint(0, len(full), (sentences,), generator=dice).tolist()
        again = picked * samples
        plan = {p: Policy(net, dice=dice) for p, net in zip(at, nets, strict=True)}
        depth = TokenDropPlan(plan, "pass", remember=True)
        with torch.inference_mode():
            t.model.forward(batch_of(t.model, [t.ids["train"][i] for i in again]), depth, 0)
        said = (
            judge.logits(torch.stack(depth.states).cpu())[-1]
            .log_softmax(-1)
            .gather(1, t.y["train"][again][:, None])[:, 0]
        )
        counts = zip(*depth.counts, strict=True)
        cost = [flops(t.shape, c) / full[i] for c, i in zip(counts, again, strict=True)]
        reward = said - PRICE * torch.tensor(cost)
        return [depth.looks[p] for p in at], reward.view(samples, sentences).t()

    curve = selectors.reinforced(nets, act, rounds, lambda d, n: b.subject.progress("Rewarding the policy", d, n))
    b.rewards = curve
    for bar in (0.3, 0.5):
        yield Way("TR-BERT", f"{bar:g}", {p: Policy(net, bar) for p, net in zip(at, nets, strict=True)}, "pass")
    yield Way("TR-BERT, only imitated", "0.5", before, "pass")
    for keep in (0.6,):
        told = f"{keep:.0%} at layers {' and '.join(map(str, at))}"
        yield Way("Attention at the same layers", told, dict.fromkeys(at, Top(keep)), "pass")
        yield Way("Chance at the same layers", told, dict.fromkeys(at, Top(keep, "random", seed=seed)), "pass")


def adapler(b: Bench) -> Iterator[Way]:
    f, seed = b.found, b.t.data.seed
    spans = f.spans[:LEARNED]
    nets = {p: selectors.predictor(f.h[p], f.contribution[p], spans, seed) for p in b.places}
    agreement = []
    for p, net in nets.items():
        for x, y in f.spans[LEARNED:]:
            with torch.no_grad():
                guess = net(f.h[p][x + 1 : y])
            agreement.append(selectors.rank_correlation(guess, f.contribution[p][x + 1 : y]))
    b.agreement = statistics.fmean(agreement)
    for eta in (0.2, 0.4, 0.6):
        yield Way("AdapLeR", f"{eta:g}", {p: Contribution(net, eta) for p, net in nets.items()})
    for keep in (0.9, 0.7):
        plan = {p: Contribution(net, share=keep) for p, net in nets.items()}
        yield Way("Contribution, fixed share", f"{keep:.0%} each time", plan)


def magic_pyramid(b: Bench) -> Iterator[Way]:
    for bar in (0.0, 0.3, 0.6):
        yield Way("Magic Pyramid", f"{bar:g}", dict.fromkeys(b.places, AtLeast(bar)) if bar else {})


def fused(b: Bench) -> Iterator[Way]:
    """Where the paper drops: after 4, 7 and 10 of 12 layers, by the attention of the last token."""
    at = sorted({max(1, b.t.layers * k // 12) for k in (4, 7, 10)})
    for keep in (0.7, 0.4):
        for fate, name in (("fuse", "MPEE, fused"), ("discard", "MPEE, discarded")):
            yield Way(name, f"{keep:.0%} each time", dict.fromkeys(at, Top(keep, "last")), fate)  # type: ignore[arg-type]


WORKS: dict[str, Callable[[Bench], Iterator[Way]]] = {
    "power-bert": power_bert,
    "tr-bert": tr_bert,
    "adapler": adapler,
    "magic-pyramid": magic_pyramid,
    "mpee": fused,
}
UNSURE = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
"""Entropies at which Magic Pyramid's sentences leave, as shares of the highest; 0: never."""


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
        y = t.y["test"]
        whole = Outcome(t.x["test"], [[len(ids)] * t.layers for ids in t.ids["test"]])
        right = (t.probes(whole.x)[-1].argmax(-1) == y).double()
        base = float((t.probes(t.x["calibration"])[-1].argmax(-1) == t.y["calibration"]).double().mean())
        rows: list[dict[str, Any]] = [row_of(t, Way("All tokens", "", {}), whole, right, right, True)]
        claims: list[Claim] = []
        shown: list[Way] = []
        for name in works:
            r = Results(right, float(whole.cost(t).mean()))
            best: tuple[float, Way] | None = None
            nearest: tuple[float, Way] | None = None
            for way in WORKS[name](b):
                subject.progress(f"{way.name} {way.setting}", len(r.ways), 0)
                out = outcome(t, way, t.ids["test"])
                judge = Judge.trained(t, outcome(t, way, t.ids["train"]).x, last=name != "magic-pyramid")
                r.add(way, out, judge, row_of(t, way, out, judge.right(out.x, y), right, False))
                if way.name not in OWN.values() or not way.plan:
                    continue
                tried = outcome(t, way, t.ids["calibration"])
                cost = float(tried.cost(t).mean())
                accuracy = float(judge.right(tried.x, t.y["calibration"]).mean())
                if accuracy >= base - self.loss - 1e-9 and (best is None or cost < best[0]):
                    best = (cost, way)
                if nearest is None or accuracy > nearest[0]:
                    nearest = (accuracy, way)
            if nearest:
                shown.append((best or nearest)[1])
            if best:
                next(row for way, row in zip(r.ways, r.rows, strict=True) if way is best[1])["chosen"] = True
            pick = best[1] if best else None
            more, said = CLAIMS[name](self, b, r, pick)
            rows += r.rows + more
            claims += said
        rows += list(likeness(b)) if "power-bert" in works else []
        example = max(range(len(t.ids["test"])), key=lambda i: len(t.ids["test"][i]))
        for way in shown:
            rows += list(survivors(b, way, example))
        times = timed(b, [Way("All tokens", "", {}), *shown], self.timed)
        rows += times
        claims += list(_speed(times))
        notes = [
            f"{self.test} test sentences of {float(t.lengths('test').double().mean()):.0f} tokens on average, with the "
            f"question behind them; with all tokens {float(right.mean()):.1%} are answered rightly.",
            f"Words may leave after layers {', '.join(map(str, b.places))} of {t.layers}; every setting has "
            "classifiers trained on sentences that lost words in the same way.",
        ]
        return Findings(COLUMNS, rows, CHARTS, claims, notes)


OWN = {
    "power-bert": "PoWER-BERT",
    "tr-bert": "TR-BERT",
    "adapler": "AdapLeR",
    "magic-pyramid": "Magic Pyramid",
    "mpee": "MPEE, fused",
}


Said = tuple[list[dict[str, Any]], list[Claim]]


def _compared(source: str, claim: str, r: Results, one: str, other: str) -> Claim:
    """Whether one curve lies above another at equal FLOPs."""
    gap = lead(r.curve(one), r.curve(other))
    said = "the two have no cost in common"
    if gap is not None:
        said = f"{one} against {other}: {100 * gap:+.1f} points on average over the costs that both reach"
    return Claim(source, claim, None if gap is None else gap > 0, said)


def of_power_bert(study: TokenDrop, b: Bench, r: Results, pick: Way | None) -> Said:
    where = "PoWER-BERT, arXiv 2001.08950"
    alike = [row["cosine"] for row in likeness(b)]
    return [], [
        Claim(
            f"{where}, section 3",
            "Word vectors grow more alike with depth, so that many can go.",
            alike[-1] > alike[0],
            f"mean cosine between two words of a sentence: {alike[0]:.2f} after layer 1, "
            f"{alike[len(alike) // 2]:.2f} in the middle, {alike[-1]:.2f} before the last",
        ),
        Claim(
            where,
            "Up to 4.5 times less inference time with less than 1 % loss of accuracy.",
            r.saves(pick, 1 - 1 / 4.5, study.loss),
            r.told(pick) + "; the model was not fine-tuned after dropping, as the paper's is",
        ),
        _compared(
            where,
            "A learned schedule is better than an even one.",
            r,
            "PoWER-BERT",
            "Attention, even schedule",
        ),
        _compared(where, "Attention tells which words matter.", r, "PoWER-BERT", "Chance, same schedule"),
    ]


def of_tr_bert(study: TokenDrop, b: Bench, r: Results, pick: Way | None) -> Said:
    where = "TR-BERT, arXiv 2105.11618"
    curve = b.rewards
    third = max(1, len(curve) // 3)
    first, last = statistics.fmean(curve[:third]), statistics.fmean(curve[-third:])
    return [], [
        Claim(
            where,
            "Rewards teach the policy which words to keep.",
            last > first,
            f"mean reward {first:.3f} in the first {third} rounds and {last:.3f} in the last",
        ),
        _compared(where, "The policy beats attention.", r, "TR-BERT", "Attention at the same layers"),
        _compared(where, "The policy beats chance.", r, "TR-BERT", "Chance at the same layers"),
        Claim(
            where,
            "2 to 5 times faster with little loss.",
            r.saves(pick, 0.5, study.loss),
            r.told(pick),
        ),
    ]


def of_adapler(study: TokenDrop, b: Bench, r: Results, pick: Way | None) -> Said:
    where = "AdapLeR, arXiv 2203.08991"
    agreement = b.agreement
    outs = [o for w, o in zip(r.ways, r.outs, strict=True) if w is pick]
    shares = [sum(c) / (len(c) * c[0]) for o in outs for c in o.counts]
    spread = f"; sentences keep {min(shares):.0%} to {max(shares):.0%} of tokens × layers" if shares else ""
    return [], [
        Claim(
            where,
            "A small net can tell from a state what gradient × input would say.",
            agreement > 0.3,
            f"rank correlation {agreement:.2f} on sentences that it has not seen",
        ),
        _compared(
            where,
            "Letting each input keep as many words as it needs beats a fixed share.",
            r,
            "AdapLeR",
            "Contribution, fixed share",
        ),
        Claim(
            where,
            "Much faster with little loss of accuracy (up to 22 times).",
            r.saves(pick, 0.5, study.loss),
            r.told(pick) + spread,
        ),
    ]


def of_magic_pyramid(study: TokenDrop, b: Bench, r: Results, pick: Way | None) -> Said:
    """Exits on the states that dropping left: the whole surface from the passes that have been made."""
    t, most = b.t, math.log(len(b.t.labels))
    y, lengths = t.y["test"], t.lengths("test")
    halves = {"all": torch.ones(len(y), dtype=torch.bool)}
    middle = lengths.median()
    halves |= {"short": lengths <= middle, "long": lengths > middle}
    rows: list[dict[str, Any]] = []
    points: dict[str, dict[str, list[tuple[float, float]]]] = {k: {"exit": [], "drop": [], "both": []} for k in halves}
    for way, out, judge in zip(r.ways, r.outs, r.judges, strict=True):
        p = torch.softmax(judge.logits(out.x), -1)
        for unsure in UNSURE:
            left = run_exits(Entropy(unsure * most), p, range(1, t.layers + 1))
            cost = out.cost(t, left.layers.tolist())
            right = (left.said == y).double()
            kind = "both" if way.plan and unsure else "drop" if way.plan else "exit"
            for half, at in halves.items():
                points[half][kind].append((float(cost[at].mean()) / 1e9, float(right[at].mean())))
            if unsure:
                name = "Magic Pyramid, exits too" if way.plan else "Exits alone"
                row = row_of(t, Way(name, f"{way.setting} and {unsure:g}", {}), out, right, r.full, False)
                row["gflops"], row["saved"] = float(cost.mean()) / 1e9, 1 - float(cost.mean()) / r.whole
                counts = [sum(c[:l]) for c, l in zip(out.counts, left.layers.tolist(), strict=True)]
                rows.append({**row, "layer_tokens": statistics.fmean(counts)})
    claims = []
    for half in halves:
        gaps = []
        for other in ("exit", "drop"):
            full = [points[half]["exit"][0]]
            alone = best_points([*points[half][other], *full])
            gap = lead(best_points([*points[half]["both"], *full]), alone)
            gaps.append(gap)
        told = ", ".join(
            f"{100 * g:+.1f} points against {n} alone" if g is not None else f"no cost in common with {n} alone"
            for g, n in zip(gaps, ("exits", "dropping"), strict=True)
        )
        able = [g for g in gaps if g is not None]
        claims.append(
            Claim(
                "Magic Pyramid, arXiv 2111.00230",
                f"Leaving early and dropping words together beat each alone ({half} sentences).",
                all(g > 0 for g in able) if able else None,
                f"at equal FLOPs, best settings of each: {told}",
            )
        )
    return rows, claims


def of_fused(study: TokenDrop, b: Bench, r: Results, pick: Way | None) -> Said:
    return [], [
        _compared(
            "MPEE, aclanthology 2022.coling-1.414",
            "Fusing the words that leave is better than discarding them.",
            r,
            "MPEE, fused",
            "MPEE, discarded",
        )
    ]


CLAIMS: dict[str, Callable[[TokenDrop, Bench, Results, Way | None], Said]] = {
    "power-bert": of_power_bert,
    "tr-bert": of_tr_bert,
    "adapler": of_adapler,
    "magic-pyramid": of_magic_pyramid,
    "mpee": of_fused,
}


def _speed(times: Sequence[dict[str, Any]]) -> Iterator[Claim]:
    for name in dict.fromkeys(r["method"] for r in times if r["method"] != "All tokens"):
        told = {r["texts"]: r for r in times if r["method"] == name}
        yield Claim(
            name,
            "Fewer words are less time, measured, on long texts at least.",
            told["long"]["speedup"] > 1,
            "; ".join(
                f"{k} texts of {r['tokens']:.0f} tokens: {r['ms']:.0f} ms to the answer, {r['speedup']:.2f}x as fast"
                for k, r in told.items()
            ),
        )


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
}
CHARTS = (
    Chart("Accuracy against FLOPs", "gflops", "accuracy", "method", "front"),
    Chart("Accuracy against layers × tokens", "layer_tokens", "accuracy", "method", "front"),
    Chart("How alike a sentence's words are", "layer", "cosine", "method"),
    Chart("Time to the answer", "texts", "ms", "method", "bar"),
)

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor

from llmlab.lab.study import Cell, Chart, Claim, Findings, Study, Subject, number
from llmlab.measure.statistics import ALIKE, Estimate, all_above, bootstrap, every, folds, paired
from llmlab.runtime.configurable import knob
from llmlab.studies.support.cascades import calibration, cascade, problems
from llmlab.studies.support.cascades import models as cascade_models
from llmlab.studies.support.cascades.cascade import Level
from llmlab.studies.support.cascades.problems import KINDS
from llmlab.studies.support.cascades.replies import Reply, ask

VARIANTS = (("weak: two layers removed", ("layer-drop:count=2",)), ("strong: whole", ()))
COST = 0.4
"""The share of the strong model's cost that the paper claims."""
METHODS = ("chains, vote", "programs, vote", "mixed, vote", "mixed, verify")
COLUMNS = {
    "way": "Way",
    "threshold": "Threshold",
    "sent": "Share sent on",
    "right": "Right",
    "price": "Price against the strong model alone",
    "gflops": "GFLOPs per query",
    "chance": "Right when as many are sent on by chance",
    "auc": "Agreement: area under ROC",
    "query": "Query",
    "level": "Who answered",
    "score": "Score",
    "cost": "Price of the query",
    "correct": "Correct",
}


@dataclass(frozen=True)
class MotCascade(Study):
    """A cascade of mixed thoughts.

    Idea: A weak model answers the same question several times, in chains of words and in programs. Where its answers
    agree it is believed; where they do not, a strong model is asked.
    Method: Vote: agreement is the share of the commonest answer among all samples; it is accepted at a threshold τ.
    Verify: the commonest answer of the chains must equal that of the programs. Every method draws as many samples.
    Everybody asked is paid, in price (a token of the strong model costs `ratio` tokens of the weak) and in GFLOPs.
    What to look for: Each method against the line of sending on by chance. Two representations make different mistakes,
    so their agreement should say more than that of one alone: see the area under the ROC curve.
    Differences from the paper: The paper draws 20 samples of GPT-3.5 before GPT-4; here there are few, at a lower
    temperature, which a small model needs. Without other models, the weak one is a pruned copy of the strong one, so
    that in GFLOPs, unlike in price, its samples cost more than they save. All thresholds are shown; the match of the
    first claim is chosen on one half of the problems and judged on the other.
    """

    covers = ("mot-cascade",)
    bench = "cascade"
    claim = "Believes a weak model where its chains and its programs agree."
    claim_zh = "当弱模型的推理链与程序结论一致时，就相信它。"

    models: str = knob("variants", choices=("variants", "*"), help="a pruned copy first, or two names joined with +")
    samples: int = knob(4, 2, 20, "answers of the weak model that a method draws")
    temperature: float = knob(0.5, 0.1, 2.0, "of the weak model")
    threshold: float = knob(0.5, 0.0, 1.0, "agreement of mixed votes at which the rows per query accept")
    strong: str = knob("pot", choices=("pot", "cot"), help="how the strong model is asked")
    ratio: float = knob(25.0, 1.0, 1000.0, "price of a strong token in weak ones")
    kind: str = knob("all", choices=("all", *KINDS), help="kinds of problems")
    each: int = knob(20, 5, 200, "problems of each kind")
    examples: int = knob(5, 1, 8, "examples in the prompt", advanced=True)

    def run(self, subject: Subject) -> Findings:
        seed = subject.settings.seed
        asked = problems.asked(self.kind, self.each, seed, self.examples)
        models = cascade_models.decoders(subject, self.models, VARIANTS)
        (_, weak, weak_words), (_, strong, strong_words) = models[0], models[-1]
        drawn: dict[str, list[list[Reply]]] = {}
        for style in ("cot", "pot"):
            what = f"Weak model: {self.samples} times {style}"
            replies = ask(
                weak, weak_words, asked, style, partial(subject.progress, what),
                self.examples, self.samples, self.temperature, seed,
            )  # fmt: skip
            drawn[style] = [replies[i : i + self.samples] for i in range(0, len(replies), self.samples)]
        sure = ask(
            strong, strong_words, asked, self.strong, partial(subject.progress, "Strong model"),
            self.examples, seed=seed,
        )  # fmt: skip
        truth = [p.answer for p in asked]
        price = torch.tensor([self.ratio * tokens(r) for r in sure], dtype=torch.double)
        unit, flops = float(price.mean()), torch.tensor([r.flops / 1e9 for r in sure], dtype=torch.double)
        right = torch.tensor([r.reading.right for r in sure])
        last = Level("strong", torch.ones(len(sure)), right, price)
        rows: list[dict[str, Cell]] = [
            {"way": "strong alone", "right": last.accuracy, "price": 1.0, "gflops": float(flops.mean())}
        ]
        kept: dict[str, Level] = {}
        for method in METHODS:
            first, taken = weak_level(method, drawn["cot"], drawn["pot"], truth)
            area = calibration.auc(first.score, first.correct)
            work = torch.tensor([sum(r.flops for r in t) / 1e9 for t in taken], dtype=torch.double)
            kept[method] = first
            rows += list(sweep(method, first, last, work, flops, unit, area))
        first = kept["mixed, vote"]
        for row in cascade.route([first, last], [self.threshold]).rows([first, last]):
            rows.append({"way": "query", **row, "cost": number(row, "cost") / unit})
        notes = [f"{len(asked)} problems; {self.samples} samples at temperature {self.temperature:g}."]
        return Findings(COLUMNS, rows, charts(), claims(kept, last), notes)


def tokens(reply: Reply) -> int:
    return reply.prompt_tokens + reply.new_tokens


def vote(answers: Sequence[Fraction | None]) -> tuple[Fraction | None, float]:
    """The commonest answer, the earliest of equals, and its share of all samples; what cannot be read never counts."""
    counts = Counter(a for a in answers if a is not None)
    if not counts:
        return None, 0.0
    answer, n = counts.most_common(1)[0]
    return answer, n / len(answers)


def decide(method: str, chains: Sequence[Reply], programs: Sequence[Reply]) -> tuple[Fraction | None, float]:
    """(answer, agreement) of the weak model's samples: 0 or 1 for "verify", a share otherwise."""
    a, b = [r.reading.answer for r in chains], [r.reading.answer for r in programs]
    if method.endswith("verify"):
        (one, _), (other, _) = vote(a), vote(b)
        return other, float(one is not None and one == other)
    return vote([*a, *b])


def weak_level(
    method: str, cot: Sequence[Sequence[Reply]], pot: Sequence[Sequence[Reply]], truth: Sequence[Fraction]
) -> tuple[Level, list[list[Reply]]]:
    """The weak level under a method, and the samples that it draws: as many for each method."""
    k = len(cot[0])
    half = k // 2
    parts = {"chains, vote": (k, 0), "programs, vote": (0, k)}.get(method, (k - half, half))
    taken = [(list(c[: parts[0]]), list(p[: parts[1]])) for c, p in zip(cot, pot, strict=True)]
    decisions = [decide(method, c, p) for c, p in taken]
    return Level(
        f"weak: {method}",
        torch.tensor([s for _, s in decisions], dtype=torch.double),
        torch.tensor([a == t for (a, _), t in zip(decisions, truth, strict=True)]),
        torch.tensor([sum(map(tokens, c + p)) for c, p in taken], dtype=torch.double),
    ), [c + p for c, p in taken]


def sweep(
    method: str, weak: Level, strong: Level, work: Tensor, flops: Tensor, unit: float, area: float | None
) -> Iterator[dict[str, Cell]]:
    """A row per threshold, from believing everything to believing nothing."""
    for threshold in bars(weak):
        routed = cascade.route([weak, strong], [threshold])
        sent = float((routed.level == 1).double().mean())
        yield {
            "way": method,
            "threshold": threshold,
            "sent": sent,
            "right": routed.accuracy,
            "price": routed.mean_cost / unit,
            "gflops": float((work + (routed.level == 1) * flops).mean()),
            "chance": cascade.by_chance(weak, strong, sent)[1],
            "auc": area,
        }


def charts() -> list[Chart]:
    return [
        Chart("Right answers against price", "price", "right", "way", "front"),
        Chart("Right answers by share sent on; the curve is chance", "sent", "right", "way", "line", "chance"),
        Chart("Right answers against GFLOPs", "gflops", "right", "way", "front"),
    ]


def claims(weak: dict[str, Level], strong: Level) -> list[Claim]:
    """What the paper says, of the weak level under each method."""
    where = "arXiv 2310.03094"
    gain, price, told = cheapest_match(weak, strong)
    wins = [calibration.ahead(weak["mixed, vote"], weak[m]) for m in ("chains, vote", "programs, vote")]
    known = [w for w in wins if w is not None]
    areas = {m: calibration.auc(level.score, level.correct) for m, level in weak.items()}
    sent = over_chance(weak, strong)
    return [
        Claim(f"{where}, abstract", "The cascade matches the strong model at 40 % of its cost.",
              every(price.below(COST), gain.above(-ALIKE)),
              f"strong alone: {strong.accuracy:.1%} right; the cheapest match on one half of the problems is"
              f" {gain.points()} from it on the other half, at {price.value:.0%} ± {price.error:.0%} of the price"
              f" ({told}); a match loses at most {100 * ALIKE:g} points"),
        Claim(f"{where}, section 4", "Agreement across chains and programs tells more than agreement within one.",
              all_above(known) if len(known) == len(wins) else None,
              "area under ROC: " + "; ".join(f"{m} {a:.2f}" for m, a in areas.items() if a is not None)
              + "; mixed votes against either: " + ", ".join(f"{w.value:+.2f} ± {w.error:.2f}" for w in known),
              testable=len(known) == len(wins)),
        Claim(f"{where}, section 4", "Sending on by agreement is better than by chance.",
              sent.above() if sent else None,
              f"over chance: {sent.points()} on average over methods and thresholds" if sent
              else "no threshold sends a part of the queries on", testable=sent is not None),
    ]  # fmt: skip


def bars(level: Level) -> list[float]:
    """Every threshold that makes a difference, from believing everything to believing nothing."""
    return [*level.score.unique().tolist(), float(level.score.max()) + 1]


def cheapest_match(weak: dict[str, Level], strong: Level) -> tuple[Estimate, Estimate, str]:
    """How much more often than the strong level the cheapest match of it is right, its price against that level's
    alone, and which matches were chosen.

    Method and threshold are chosen on one half of the queries, the cheapest as often right there as the strong level,
    and judged on the other, and the other way round.
    """
    n = len(strong.correct)
    right, cost, chosen = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.double), []
    for choose, judge in folds(n):
        goal = strong.part(choose).accuracy
        tried = [(m, bar) for m, level in weak.items() for bar in bars(level)]
        there = [(cascade.route([weak[m].part(choose), strong.part(choose)], [bar]), m, bar) for m, bar in tried]
        # To believe nothing is always among them, and as good as the strong level.
        _, method, bar = min(((r.mean_cost, m, bar) for r, m, bar in there if r.accuracy >= goal - 1e-9))
        routed = cascade.route([weak[method].part(judge), strong.part(judge)], [bar])
        right[judge], cost[judge] = routed.correct, routed.cost.double()
        chosen.append(f"{method} from {bar:.2f}" if bar <= float(weak[method].score.max()) else "always the strong one")
    price = bootstrap(lambda at: float(cost[at].mean() / strong.cost[at].double().mean()), n)
    return paired(right, strong.correct), price, "; ".join(dict.fromkeys(chosen))


def over_chance(weak: dict[str, Level], strong: Level) -> Estimate | None:
    """How much more often right the cascades are than sending on as many by chance, on average over methods and
    thresholds that send some; None where none does."""
    tried = [(level, [b for b in bars(level) if 0 < float((level.score < b).double().mean()) < 1])
             for level in weak.values()]  # fmt: skip

    def gap(at: Tensor) -> float:
        last, found = strong.part(at), []
        for level, thresholds in tried:
            first = level.part(at)
            for bar in thresholds:
                routed = cascade.route([first, last], [bar])
                sent = float((routed.level == 1).double().mean())
                found.append(routed.accuracy - cascade.by_chance(first, last, sent)[1])
        return sum(found) / len(found) if found else math.nan

    found = bootstrap(gap, len(strong.correct))
    return found if math.isfinite(found.value) else None

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor

from llmlab.lab.study import Cell, Chart, Claim, Findings, Study, Subject, number
from llmlab.measure.statistics import share_error
from llmlab.runtime.configurable import knob
from llmlab.studies.support.cascades import calibration, cascade, problems
from llmlab.studies.support.cascades import models as cascade_models
from llmlab.studies.support.cascades.cascade import Level
from llmlab.studies.support.cascades.problems import KINDS
from llmlab.studies.support.cascades.replies import Reply, ask

VARIANTS = (("weak: two layers removed", ("layer-drop:count=2",)), ("strong: whole", ()))
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
    that in GFLOPs, unlike in price, its samples cost more than they save. All thresholds are shown; none was chosen on
    other problems.
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
        kept: dict[str, list[dict[str, Cell]]] = {}
        for method in METHODS:
            first, taken = weak_level(method, drawn["cot"], drawn["pot"], truth)
            area = calibration.auc(first.score, first.correct)
            work = torch.tensor([sum(r.flops for r in t) / 1e9 for t in taken], dtype=torch.double)
            kept[method] = list(sweep(method, first, last, work, flops, unit, area))
            rows += kept[method]
        first, _ = weak_level("mixed, vote", drawn["cot"], drawn["pot"], truth)
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
    for threshold in [*weak.score.unique().tolist(), float(weak.score.max()) + 1]:
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


def claims(kept: dict[str, list[dict[str, Cell]]], strong: Level) -> list[Claim]:
    where = "arXiv 2310.03094"
    error = share_error(strong.accuracy, len(strong.correct))
    rows = [r for found in kept.values() for r in found]
    able = [r for r in rows if number(r, "right") >= strong.accuracy - error]
    first = min(able, key=lambda r: number(r, "price"))
    known = {m: number(found[0], "auc") for m, found in kept.items() if found[0]["auc"] is not None}
    mixed = max((a for m, a in known.items() if m.startswith("mixed")), default=None)
    single = max((a for m, a in known.items() if not m.startswith("mixed")), default=None)
    lead = [number(r, "right") - number(r, "chance") for r in rows if 0 < number(r, "sent") < 1]
    return [
        Claim(f"{where}, abstract", "The cascade matches the strong model at 40 % of its cost.",
              number(first, "price") <= 0.4,
              f"strong alone: {strong.accuracy:.1%} ± {error:.1%}; cheapest match: {first['way']},"
              f" {first['right']:.1%} right at {first['price']:.0%} of the price, {first['gflops']:.1f} GFLOPs"),
        Claim(f"{where}, section 4", "Agreement across chains and programs tells more than agreement within one.",
              None if mixed is None or single is None else mixed > single,
              "area under ROC: " + "; ".join(f"{m} {a:.2f}" for m, a in known.items())),
        Claim(f"{where}, section 4", "Sending on by agreement is better than by chance.",
              min(lead) > 0 if lead else None,
              f"over chance: {100 * sum(lead) / len(lead):+.1f} points on average, {100 * min(lead):+.1f} at worst"
              if lead else "no threshold sends a part of the queries on"),
    ]  # fmt: skip

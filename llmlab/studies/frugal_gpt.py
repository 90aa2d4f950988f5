from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from llmlab.errors import Refused
from llmlab.lab.study import Cell, Chart, Claim, Findings, Study, Subject
from llmlab.measure.statistics import ALIKE, Estimate, bootstrap, every, paired
from llmlab.runtime.configurable import knob
from llmlab.studies.support.cascades import calibration, cascade, problems
from llmlab.studies.support.cascades import models as cascade_models
from llmlab.studies.support.cascades.cascade import Level, Plan, Scorer
from llmlab.studies.support.cascades.problems import KINDS
from llmlab.studies.support.cascades.replies import Reply, ask, features

VARIANTS = (("pruned", ("layer-drop:count=2",)), ("whole", ()))
BUDGETS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Of what the most accurate level costs alone."""
COLUMNS = {
    "way": "Way",
    "name": "Levels",
    "budget": "Budget",
    "right": "Right",
    "cost": "Cost per query",
    "share": "Cost against the best level",
    "gflops": "GFLOPs per query",
    "ms": "ms per query",
    "auc": "Scorer: area under ROC",
    "query": "Query",
    "level": "Who answered",
    "score": "Score",
    "correct": "Correct",
}


@dataclass(frozen=True)
class Answers:
    """What a level says of all queries, with a scorer's features and what it took."""

    level: Level
    features: Tensor
    gflops: Tensor
    seconds: Tensor


@dataclass(frozen=True)
class FrugalGpt(Study):
    """A learned cascade under a budget.

    Idea: Ask a cheap model first and let a learned scorer decide whether its answer will do; only the rest goes on to
    dearer ones. Which models to ask, in which order and when to stop is learned from a few labelled queries.
    Method: max over (L, τ) of the share of right answers, subject to a mean cost of at most b, where level L_i answers
    as soon as its score g reaches τ_i and everybody asked is paid. A model costs c₂ per token read and c₁ per token
    written. g is a logistic regression on the answer's log-probabilities, its length and whether it can be read.
    What to look for: The front of cost and right answers, on queries that nothing was learned from, beside each level
    alone; and the orders that were chosen.
    Differences from the paper: Prices are an input: by default each model costs ten times the one before it, whatever
    it really takes (GFLOPs and time stand beside). The paper's scorer is a fine-tuned DistilBERT and its search is
    pruned; here all orders are tried, with thresholds at quantiles. A level is a model with a style of prompt, so that
    the choice of the prompt, another of the paper's levers, is learned with it; answer caches have their own study.
    """

    covers = ("frugalgpt",)
    bench = "cascade"
    claim = "Learns whom to ask, in which order and whom to believe, under a budget."
    claim_zh = "在预算内学习问谁、按什么顺序问、相信谁。"

    models: str = knob("variants", choices=("variants", "*"), help="cheaper variants of this model, or names with +")
    styles: str = knob("cot+pot", choices=("pot", "cot+pot", "direct+cot+pot"), help="styles in which each is asked")
    pay: str = knob("price", choices=("price", "flops", "seconds"), help="what a query costs")
    prices: str = knob("tenfold", choices=("tenfold", "*"), help="in:out per million tokens, as 0.1:0.2/1:2, by model")
    budget: float = knob(0.5, 0.01, 5.0, "of what the most accurate level costs alone")
    kind: str = knob("all", choices=("all", *KINDS), help="kinds of problems")
    each: int = knob(40, 10, 400, "problems of each kind; half to learn from")
    examples: int = knob(5, 1, 8, "examples in the prompt", advanced=True)

    def run(self, subject: Subject) -> Findings:
        levels, learn, test = self._answers(subject)
        singles = [a.level.part(learn) for a in levels]
        top = max(singles, key=lambda s: (s.accuracy, -float(s.cost.mean())))
        best = singles.index(top)
        found = cascade.plans(singles, steps=10 if len(levels) <= 4 else 6)
        tested = [a.level.part(test) for a in levels]
        unit = float(tested[best].cost.double().mean())
        rows = [self._single(a, test, unit) for a in levels]
        learned: list[tuple[float, Plan, dict[str, Cell]]] = []
        for share in sorted({*BUDGETS, self.budget}):
            plan = cascade.best(found, share * float(top.cost.double().mean()))
            if plan is not None:
                learned.append((share, plan, self._planned(plan, share, levels, test, unit)))
        rows += [row for _, _, row in learned]
        chosen = next((p for share, p, _ in learned if share == self.budget), None)
        if chosen:
            rows += queries(chosen, tested)
        notes = [f"Learned from {len(learn)} queries, tested on {len(test)} others."]
        notes += [f"Budget {s:g}: {told(p, tested)}" for s, p, _ in learned]
        equal = cascade.best(found, float(top.cost.double().mean()))
        assert equal is not None  # the best level alone keeps to its own cost
        return Findings(COLUMNS, rows, charts(), claims(matching(found, top), equal, tested, best), notes)

    def _answers(self, subject: Subject) -> tuple[list[Answers], Tensor, Tensor]:
        seed = subject.settings.seed
        asked = problems.asked(self.kind, self.each, seed, self.examples)
        models = cascade_models.decoders(subject, self.models, VARIANTS)
        table = self._table(len(models))
        learn, test = torch.arange(0, len(asked), 2), torch.arange(1, len(asked), 2)
        levels = []
        for (name, model, tokenizer), price in zip(models, table, strict=True):
            for style in self.styles.split("+"):
                who = f"{name}, {style}"
                replies = ask(
                    model, tokenizer, asked, style,
                    partial(subject.progress, who), self.examples, seed=seed,
                )  # fmt: skip
                levels.append(self._level(who, replies, price, learn))
        return levels, learn, test

    def _table(self, count: int) -> list[tuple[float, float]]:
        """Per model, dollars per million tokens read and written."""
        if self.prices == "tenfold":
            return [(0.1 * 10**i, 0.2 * 10**i) for i in range(count)]
        try:
            pairs = [tuple(float(x) for x in pair.split(":")) for pair in self.prices.split("/")]
        except ValueError:
            pairs = []
        table = [(p[0], p[1]) for p in pairs if len(p) == 2 and min(p) >= 0]
        if len(table) != count:
            raise Refused("The price table", f"does not give {count} models two prices each", "Write 0.1:0.2/1:2")
        return table

    def _level(self, name: str, replies: Sequence[Reply], price: tuple[float, float], learn: Tensor) -> Answers:
        x = torch.tensor([features(r) for r in replies])
        correct = torch.tensor([r.reading.right for r in replies])
        gflops = torch.tensor([r.flops / 1e9 for r in replies], dtype=torch.double)
        seconds = torch.tensor([r.seconds for r in replies], dtype=torch.double)
        dollars = [r.prompt_tokens * price[0] + r.new_tokens * price[1] for r in replies]
        cost = {"price": torch.tensor(dollars, dtype=torch.double) / 1e6, "flops": gflops, "seconds": seconds}[self.pay]
        score = Scorer.fitted(x[learn], correct[learn])(x)
        return Answers(Level(name, score, correct, cost), x, gflops, seconds)

    def _single(self, a: Answers, test: Tensor, unit: float) -> dict[str, Cell]:
        level = a.level.part(test)
        cost = float(level.cost.mean())
        return {
            "way": "one level",
            "name": level.name,
            "right": level.accuracy,
            "cost": cost,
            "share": cost / unit,
            "gflops": float(a.gflops[test].mean()),
            "ms": 1000 * float(a.seconds[test].mean()),
            "auc": calibration.auc(level.score, level.correct),
        }

    def _planned(
        self, plan: Plan, share: float, levels: Sequence[Answers], test: Tensor, unit: float
    ) -> dict[str, Cell]:
        spent = {}
        for what in ("gflops", "seconds"):
            paid = [replace(a.level, cost=getattr(a, what)).part(test) for a in levels]
            spent[what] = plan.run(paid).mean_cost
        routed = plan.run([a.level.part(test) for a in levels])
        return {
            "way": "cascade",
            "name": _named(plan, [a.level for a in levels]),
            "budget": share,
            "right": routed.accuracy,
            "cost": routed.mean_cost,
            "share": routed.mean_cost / unit,
            "gflops": spent["gflops"],
            "ms": 1000 * spent["seconds"],
        }


def queries(plan: Plan, levels: Sequence[Level]) -> Iterator[dict[str, Cell]]:
    """One row per query: who answered it."""
    order = [levels[k] for k in plan.order]
    for row in plan.run(levels).rows(order):
        yield {"way": "query", **row}


def told(plan: Plan, levels: Sequence[Level]) -> str:
    bars = zip(plan.order[:-1], plan.thresholds, strict=True)
    steps = [f"{levels[k].name} if its score is {t:.2f} or more" for k, t in bars]
    return ", else ".join([*steps, levels[plan.order[-1]].name])


def charts() -> list[Chart]:
    return [
        Chart("Right answers against cost", "share", "right", "way", "front"),
        Chart("Right answers against GFLOPs", "gflops", "right", "way", "front"),
        Chart("Right answers against time", "ms", "right", "way", "front"),
    ]


def matching(found: Sequence[Plan], top: Level) -> Plan:
    """The cheapest plan as often right as a level, of those that cost less than it; the one most often right where none
    is, and any where nothing costs less."""
    cheaper = [p for p in found if p.cost < float(top.cost.double().mean()) - 1e-12] or list(found)
    able = [p for p in cheaper if p.accuracy >= top.accuracy - 1e-9]
    return min(able, key=lambda p: p.cost) if able else max(cheaper, key=lambda p: (p.accuracy, -p.cost))


def claims(match: Plan, equal: Plan, tested: Sequence[Level], best: int) -> list[Claim]:
    """What the paper promises, on the queries that nothing was learned from.

    `match`: what `matching` finds on the queries to learn from; `equal`: the plan most often right there at the best
    level's cost.
    """
    where, top = "arXiv 2305.05176, abstract", tested[best]
    alone = f"best level alone: {top.name}, {top.accuracy:.1%} right"
    (gain, share), (more, _) = (_against(plan, tested, top) for plan in (match, equal))
    return [
        Claim(where, "A cascade matches the best model with up to 98 % less cost.",
              every(share.below(1.0), gain.above(-ALIKE)),
              f"{alone}; {_named(match, tested)}, the cheapest match on the queries that it was learned from:"
              f" {gain.points()} for {share.value:.1%} ± {share.error:.1%} of the cost; a match loses at most"
              f" {100 * ALIKE:g} points. The share follows from the price table, which is an input"),
        Claim(where, "At equal cost a cascade is right up to 4 points more often than the best model.", more.above(),
              f"{alone}; {_named(equal, tested)}, learned at its cost: {more.points()}"),
    ]  # fmt: skip


def _named(plan: Plan, levels: Sequence[Level]) -> str:
    return " → ".join(levels[k].name for k in plan.order)


def _against(plan: Plan, tested: Sequence[Level], top: Level) -> tuple[Estimate, Estimate]:
    """How much more often a plan is right than a level, and its cost as a share of that level's."""
    routed = plan.run(tested)
    cost, whole = routed.cost.double(), top.cost.double()
    return paired(routed.correct, top.correct), bootstrap(
        lambda at: float(cost[at].mean() / whole[at].mean()), len(cost)
    )

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from llmlab.lab.study import Cell, Chart, Claim, Findings, Study, Subject
from llmlab.measure.statistics import Estimate, all_above, bootstrap, mean
from llmlab.runtime.configurable import knob
from llmlab.studies.support.cascades import caching, problems
from llmlab.studies.support.cascades import models as cascade_models
from llmlab.studies.support.cascades.caching import POLICIES, Outcome
from llmlab.studies.support.cascades.embeddings import embedded, nearest_finder, predictor
from llmlab.studies.support.cascades.problems import KINDS, Problem
from llmlab.studies.support.cascades.replies import ask

VARIANTS = (("small: two layers removed", ("layer-drop:count=2",)), ("large: whole", ()))
SKEWS = (0.0, 0.4, 0.8, 1.2, 2.0)
MODELS: dict[str, tuple[int, ...]] = {"small": (0,), "large": (1,), "chosen": (0, 1)}
Paid = dict[tuple[float, int, str, str], list[float]]
"""By skew, answers kept, policy and model: the cost per query in each cost table."""
WHERE = "arXiv 2306.02003, abstract"
TIMES, SAVES = 50.0, 1.05
"""Times cheaper that the paper claims, and that count as a saving on real models."""
FALL = 0.02
"""The share by which LEC may be dearer and count as not dearer."""
RARE = 0.01
"""The share of wrong hits that counts as none."""
RESAMPLES = 60
SURE = (0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
WORDINGS = ("{}", "Please work this out. {}")
COLUMNS = {
    "part": "Part",
    "key": "Key",
    "threshold": "Least cosine",
    "policy": "Policy",
    "model": "Model",
    "setting": "Policy and model",
    "skew": "Zipf skew",
    "size": "Answers kept",
    "cost": "Cost per query",
    "ideal": "Cost with the best fixed cache",
    "unit": "Unit of cost",
    "hits": "Hits",
    "wrong": "Wrong hits, of all queries",
    "wrong_share": "Wrong hits, of the hits",
    "small": "Misses answered by the small model",
}


@dataclass(frozen=True)
class AnswerCache(Study):
    """A cache of answers, and a choice of models.

    Idea: People ask the same again. Keep the answers that are worth most, and let a predictor choose which model
    answers a new question.
    Method: A full cache gives up the answer with the least expected cost (LEC): estimated frequency times estimated
    cost of answering again. LRU gives up the one asked longest ago, LFU the rarest. The multiplexer asks the model with
    the least estimated cost; a small model whose answer is wrong costs its own price and the large model's.
    What to look for: Cost per query against skew and cache size. When costs differ much, LEC pays for a few cheap
    queries again and again to keep the dear ones. With keys that only look alike, watch the wrong hits.
    Differences from the paper: The theory assumes keys that match exactly; embeddings (mean-pooled states of an early
    layer) are tried as well, with their wrong hits. Costs are known after one answer, so means stand where the paper
    has confidence bounds. In the simulation each query costs each model 1 or `ratio`, at random. In the measured part
    every (query, model) is really answered once, and streams are then drawn over those costs.
    """

    covers = ("caching-multiplexing",)
    bench = "cascade"
    speed = "simulated"
    claim = "Keeps the answers that cost most to give again, and chooses who gives new ones."
    claim_zh = "保留重新回答代价最高的答案，并选择由谁给出新答案。"

    prompts: int = knob(20, 4, 200, "different queries in the simulation")
    ratio: float = knob(100.0, 1.0, 1000.0, "of the highest to the lowest cost in the simulation")
    rounds: int = knob(8_000, 100, 50_000, "queries in a stream")
    tables: int = knob(10, 1, 50, "cost tables to average over", advanced=True)
    models: str = knob("variants", choices=("variants", "*"), help="a pruned copy first, or two names joined with +")
    style: str = knob("pot", choices=("pot", "cot"), help="how the models are asked")
    kind: str = knob("all", choices=("all", *KINDS), help="kinds of problems")
    each: int = knob(16, 4, 100, "measured problems of each kind; half to learn from")
    examples: int = knob(5, 1, 8, "examples in the prompt", advanced=True)
    layer: int = knob(10, 1, 64, "layer whose states are the embedding", advanced=True)
    skew: float = knob(0.8, 0.0, 3.0, "of the measured streams")

    def run(self, subject: Subject) -> Findings:
        subject.progress("Loading the model", 0, 0)
        paid: Paid = {}
        simulated = list(self._simulated(subject, paid))
        measured, saving, notes = self._measured(subject)
        told = [*of_simulated(paid, self.ratio, self.prompts), *of_measured(measured, saving)]
        return Findings(COLUMNS, [*simulated, *measured], charts(), told, notes)

    # Simulation -----------------------------------------------------------------------------------------------------

    def _simulated(self, subject: Subject, paid: Paid) -> Iterator[dict[str, Cell]]:
        """A row per setting; into `paid`, what a query costs under it by table."""
        sizes = sorted({self.prompts // 4, self.prompts // 2, 3 * self.prompts // 4})
        seed = subject.settings.seed
        for i, skew in enumerate(SKEWS):
            chances = caching.zipf(self.prompts, skew)
            for size in sizes:
                subject.progress("Simulating", i * len(sizes) + sizes.index(size), len(SKEWS) * len(sizes))
                made = [self._table(seed + t) for t in range(self.tables)]
                streams = [caching.stream(chances, self.rounds, seed + t) for t in range(self.tables)]
                for policy in POLICIES:
                    for name, models in MODELS.items():
                        got = [
                            caching.serve(q, costs, size, policy, models)
                            for q, costs in zip(streams, made, strict=True)
                        ]
                        paid[skew, size, policy, name] = [o.cost for o in got]
                        best = [caching.ideal(chances, [min(c[m] for m in models) for c in t], size) for t in made]
                        yield {
                            "part": "simulated",
                            "key": "exact",
                            **setting(policy, name, skew, size),
                            "unit": "cheapest answer",
                            "ideal": fmean(best),
                            **outcome(got),
                        }

    def _table(self, seed: int) -> list[list[float]]:
        """A cost for each query and model: 1 or the ratio, with equal chance."""
        rng = random.Random(seed)
        return [[rng.choice((1.0, self.ratio)) for _ in range(2)] for _ in range(self.prompts)]

    # Measured -------------------------------------------------------------------------------------------------------

    def _measured(self, subject: Subject) -> tuple[list[dict[str, Cell]], Estimate, list[str]]:
        seed = subject.settings.seed
        asked = problems.asked(self.kind, self.each, seed, self.examples)
        pair = cascade_models.decoders(subject, self.models, VARIANTS)
        pair = [pair[0], pair[-1]]
        spent: dict[str, list[list[float]]] = {"GFLOPs": [], "ms": []}
        right: list[list[bool]] = []
        for name, model, tokenizer in pair:
            replies = ask(
                model, tokenizer, asked, self.style,
                partial(subject.progress, name), self.examples, seed=seed,
            )  # fmt: skip
            spent["GFLOPs"].append([r.flops / 1e9 for r in replies])
            spent["ms"].append([1000 * r.seconds for r in replies])
            right.append([r.reading.right for r in replies])
        (_, model, tokenizer) = pair[0]
        texts = [w.format(p.question) for p in asked for w in WORDINGS]
        keys, took, work = embedded(model, tokenizer, texts, self.layer)
        learn, test = list(range(0, len(asked), 2)), list(range(1, len(asked), 2))
        guess, fit = predictor(keys[:: len(WORDINGS)], spent["GFLOPs"], right, learn, test)
        rows = list(self._streams(asked, test, spent, right, keys, {"GFLOPs": work, "ms": took}, guess, seed))
        subject.progress("Resampling problems", 0, 0)
        saving = bootstrap(
            partial(self._saving, test, spent["GFLOPs"], right[0], guess, seed), len(test), times=RESAMPLES
        )
        share = [sum(r[i] for i in test) / len(test) for r in right]
        notes = [
            f"Measured on {len(test)} problems: the small model is right on {share[0]:.0%}, the large {share[1]:.0%}.",
            f"The predictor learned from {len(learn)} others: R² {fit:.2f} for the small model's cost on these.",
            f"An embedding takes {work:.2f} GFLOPs and {took:.1f} ms, which every query with such a key pays.",
        ]
        return rows, saving, notes

    def _saving(
        self,
        test: Sequence[int],
        spent: list[list[float]],
        right: list[bool],
        guess: dict[int, tuple[float, float]],
        seed: int,
        at: Tensor,
    ) -> float:
        """How many times cheaper LEC with a choice is than the better single model under LFU, on the problems `at` of
        those that nothing was learned from, each as a problem of its own."""
        some = [test[i] for i in at.tolist()]
        costs = [[spent[0][i] + (0.0 if right[i] else spent[1][i]), spent[1][i]] for i in some]
        queries = caching.stream(caching.zipf(len(some), self.skew), self.rounds, seed)
        size = max(1, len(some) // 2)
        single = [caching.serve(queries, costs, size, "lfu", MODELS[m]).cost for m in ("small", "large")]
        chosen = caching.serve(queries, costs, size, "lec", MODELS["chosen"], lambda q, m: guess[some[q]][m])
        return min(single) / chosen.cost

    def _streams(
        self,
        asked: Sequence[Problem],
        test: Sequence[int],
        spent: dict[str, list[list[float]]],
        right: list[list[bool]],
        keys: Tensor,
        looking: dict[str, float],
        guess: dict[int, tuple[float, float]],
        seed: int,
    ) -> Iterator[dict[str, Cell]]:
        """Streams over the test problems; query `2 i + w` is the i-th of them in its w-th wording."""
        count = len(test) * len(WORDINGS)
        places = [len(WORDINGS) * test[q // len(WORDINGS)] + q % len(WORDINGS) for q in range(count)]
        near = keys[places] @ keys[places].t()
        chances = [p / len(WORDINGS) for p in caching.zipf(len(test), self.skew) for _ in WORDINGS]
        queries = caching.stream(chances, self.rounds, seed)
        size = max(1, len(test) // 2)
        for unit, (small, large) in spent.items():
            costs = []
            for q in range(count):
                i = test[q // len(WORDINGS)]
                costs.append([small[i] + (0.0 if right[0][i] else large[i]), large[i]])
            predicted = (lambda q, m: guess[test[q // len(WORDINGS)]][m]) if unit == "GFLOPs" else None
            for policy in POLICIES:
                for name, models in MODELS.items():
                    got = caching.serve(queries, costs, size, policy, models, predicted)
                    yield measured(policy, name, self.skew, size, unit, "exact", None, got)
            for sure in SURE:
                got = caching.serve(
                    queries, costs, size, "lec", MODELS["chosen"], predicted, nearest_finder(near, sure),
                    lambda q, found: q // len(WORDINGS) == found // len(WORDINGS), looking[unit],
                )  # fmt: skip
                yield measured("lec", "chosen", self.skew, size, unit, "embedding", sure, got)


def of_simulated(paid: Paid, ratio: float, prompts: int) -> list[Claim]:
    """The paper's claims that a simulation can judge, over its cost tables."""
    gain, picked = most_gained(paid)
    keep = {
        (skew, size, model): mean((torch.tensor(paid[skew, size, "lru", model]) / torch.tensor(lec)).log())
        for (skew, size, policy, model), lec in paid.items()
        if policy == "lec"
    }
    least, most = (f(keep.values(), key=lambda e: e.value) for f in (min, max))
    return [
        Claim(WHERE, "With costs that differ by 100, caching and choosing together are up to 50 times cheaper.",
              gain.above(TIMES) if ratio == 100 else None,
              f"LEC with a choice against the better of two single models under LFU: {gain.value:.1f} ±"
              f" {gain.error:.1f} times, where other cost tables gained most ({picked}, of {prompts}), costs differing"
              f" by {ratio:g}",
              testable=ratio == 100),
        Claim(WHERE, "LEC is never dearer than LRU, whoever answers.", all_above(list(keep.values()), -FALL),
              f"LRU costs {math.exp(least.value):.2f} (± {least.error:.0%}) to {math.exp(most.value):.2f} (±"
              f" {most.error:.0%}) times what LEC does, by skew, size and model, on geometric average over tables;"
              f" dearer is by more than {FALL:.0%}"),
    ]  # fmt: skip


def most_gained(paid: Paid) -> tuple[Estimate, str]:
    """How many times cheaper LEC with a choice is than the better single model under LFU, at the skew and size where
    it gains most, and which those are. They are chosen for each cost table on all others."""
    gains = {
        (skew, size): torch.tensor([paid[skew, size, "lfu", m] for m in ("small", "large")]).amin(0) / torch.tensor(lec)
        for (skew, size, policy, model), lec in paid.items()
        if (policy, model) == ("lec", "chosen")
    }
    keys, table = list(gains), torch.stack(list(gains.values())).double()
    n = table.shape[1]
    if n == 1:
        return Estimate(float(table.max())), "with one cost table nothing is left to choose on"
    others = (table.sum(1, keepdim=True) - table) / (n - 1)
    best = others.argmax(0)
    told = dict.fromkeys(f"skew {keys[i][0]:g} with {keys[i][1]} answers kept" for i in best.tolist())
    return mean(table.gather(0, best[None])[0]), ", ".join(told)


def of_measured(rows: Sequence[dict[str, Any]], saving: Estimate) -> list[Claim]:
    """What real models say; `saving` is the combination's against the better single model."""
    alike = [r for r in rows if r["key"] == "embedding" and r["unit"] == "GFLOPs"]
    clean = [r for r in alike if not r["wrong"]]
    # One counterexample refutes; that none was met in so many queries confirms only that they are rare.
    never = Estimate(0.0, 1 / (2 * alike[0]["size"] * len(WORDINGS))).below(RARE)
    return [
        Claim(WHERE, "On real models the combination saves as well (4.3 times in FLOPs where models differ by 10).",
              saving.above(SAVES),
              f"{saving.value:.2f} ± {saving.error:.2f} times in FLOPs against the better single model under LFU; a"
              f" saving is more than {SAVES:g}"),
        Claim("assumed throughout", "A query is found under its key only if it is the same query.",
              never if len(clean) == len(alike) else False,
              "with embeddings as keys: " + "; ".join(
                  f"cosine {r['threshold']:g}: {r['hits']:.0%} hits, {r['wrong_share']:.0%} of them wrong"
                  if r["hits"] else f"cosine {r['threshold']:g}: no hits"
                  for r in alike) + f"; {len(clean)} of {len(alike)} thresholds without a wrong hit"),
    ]  # fmt: skip


def setting(policy: str, model: str, skew: float, size: int) -> dict[str, Cell]:
    return {"policy": policy, "model": model, "setting": f"{policy}, {model}", "skew": skew, "size": size}


def outcome(got: Sequence[Outcome]) -> dict[str, Cell]:
    hits, wrong = fmean(o.hits for o in got), fmean(o.wrong for o in got)
    return {
        "cost": fmean(o.cost for o in got),
        "hits": hits,
        "wrong": wrong,
        "wrong_share": wrong / hits if hits else None,
        "small": fmean(o.chosen[0] for o in got),
    }


def measured(
    policy: str, model: str, skew: float, size: int, unit: str, key: str, sure: float | None, got: Outcome
) -> dict[str, Cell]:
    row = {"part": "measured", "key": key, "threshold": sure, "unit": unit}
    return {**row, **setting(policy, model, skew, size), **outcome([got])}


def charts() -> list[Chart]:
    return [
        Chart("Cost per query against skew", "skew", "cost", "setting", "line", "ideal"),
        Chart("Cost per query against answers kept", "size", "cost", "setting", "line", "ideal"),
        Chart("Hits of embedding keys", "threshold", "hits", "unit", "line"),
        Chart("Wrong hits of embedding keys", "threshold", "wrong_share", "unit", "line"),
    ]

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from torch import Tensor

from llmlab.lab.study import Cell, Chart, Claim, Findings, Study, Subject
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
    rounds: int = knob(10_000, 100, 50_000, "queries in a stream")
    tables: int = knob(3, 1, 50, "cost tables to average over", advanced=True)
    models: str = knob("variants", choices=("variants", "*"), help="a pruned copy first, or two names joined with +")
    style: str = knob("pot", choices=("pot", "cot"), help="how the models are asked")
    kind: str = knob("all", choices=("all", *KINDS), help="kinds of problems")
    each: int = knob(16, 4, 100, "measured problems of each kind; half to learn from")
    examples: int = knob(5, 1, 8, "examples in the prompt", advanced=True)
    layer: int = knob(10, 1, 64, "layer whose states are the embedding", advanced=True)
    skew: float = knob(0.8, 0.0, 3.0, "of the measured streams")

    def run(self, subject: Subject) -> Findings:
        subject.progress("Loading the model", 0, 0)
        simulated = list(self._simulated(subject))
        measured, notes = self._measured(subject)
        return Findings(COLUMNS, [*simulated, *measured], charts(), self._claims(simulated, measured), notes)

    # Simulation -----------------------------------------------------------------------------------------------------

    def _simulated(self, subject: Subject) -> Iterator[dict[str, Cell]]:
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

    def _measured(self, subject: Subject) -> tuple[list[dict[str, Cell]], list[str]]:
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
        share = [sum(r[i] for i in test) / len(test) for r in right]
        notes = [
            f"Measured on {len(test)} problems: the small model is right on {share[0]:.0%}, the large {share[1]:.0%}.",
            f"The predictor learned from {len(learn)} others: R² {fit:.2f} for the small model's cost on these.",
            f"An embedding takes {work:.2f} GFLOPs and {took:.1f} ms, which every query with such a key pays.",
        ]
        return rows, notes

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

    def _claims(self, simulated: Sequence[dict[str, Any]], real: Sequence[dict[str, Any]]) -> list[Claim]:
        where = "arXiv 2306.02003, abstract"
        one = {(r["skew"], r["size"], r["policy"], r["model"]): r["cost"] for r in simulated}
        gains = {
            (skew, size): min(one[skew, size, "lfu", m] for m in ("small", "large")) / one[skew, size, "lec", "chosen"]
            for skew, size, *_ in one
        }
        (skew, size), most = max(gains.items(), key=lambda g: g[1])
        keep = [one[s, z, "lru", m] / one[s, z, "lec", m] for s, z, p, m in one if p == "lec"]
        exact = {r["setting"]: r["cost"] for r in real if r["unit"] == "GFLOPs" and r["key"] == "exact"}
        base = min(exact["lfu, small"], exact["lfu, large"])
        alike = [r for r in real if r["key"] == "embedding" and r["unit"] == "GFLOPs"]
        clean = [r for r in alike if not r["wrong"]]
        return [
            Claim(where, "With costs that differ by 100, caching and choosing together are up to 50 times cheaper.",
                  most >= 50 if self.ratio == 100 else None,
                  f"LEC with a choice against the better of two single models under LFU: up to {most:.1f} times, at"
                  f" skew {skew:g} with {size} of {self.prompts} answers kept, costs differing by {self.ratio:g}"),
            Claim(where, "LEC is never dearer than LRU, whoever answers.", min(keep) >= 0.98,
                  f"LRU costs {min(keep):.2f} to {max(keep):.2f} times what LEC does, by skew, size and model"),
            Claim(where, "On real models the combination saves as well (4.3 times in FLOPs where models differ by 10).",
                  base / exact["lec, chosen"] > 1.05,
                  f"{base / exact['lec, chosen']:.2f} times in FLOPs against the better single model under LFU"),
            Claim("assumed throughout", "A query is found under its key only if it is the same query.",
                  all(r["wrong"] == 0 for r in alike),
                  "with embeddings as keys: " + "; ".join(
                      f"cosine {r['threshold']:g}: {r['hits']:.0%} hits, {r['wrong_share']:.0%} of them wrong"
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

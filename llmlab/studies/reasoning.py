from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llmlab.lab.study import Cell, Chart, Claim, Findings, Study, Subject
from llmlab.measure.statistics import ALIKE, Estimate, all_above, all_below, paired
from llmlab.runtime.configurable import knob
from llmlab.studies.support.cascades import models as cascade_models
from llmlab.studies.support.cascades import problems
from llmlab.studies.support.cascades.problems import KINDS, STYLES
from llmlab.studies.support.cascades.replies import Reply, ask

POINTS = 0.12
"""What programs gain over chains in the paper, as a share of the questions."""
COLUMNS = {
    "model": "Model",
    "style": "Style",
    "kind": "Problems",
    "asked": "Asked",
    "right": "Right",
    "arithmetic": "Wrong arithmetic",
    "plan": "Wrong plan",
    "unreadable": "Nothing to read",
    "wrong": "Wrong, no steps shown",
    "plan_right": "Right once sums are corrected",
    "prompt_tokens": "Prompt tokens",
    "new_tokens": "New tokens",
    "gflops": "GFLOPs per question",
    "ms": "ms per question",
}


@dataclass(frozen=True)
class Reasoning(Study):
    """Answer, chain or program.

    Idea: Show the model how to answer: with the number alone, with worked steps in words (chain of thought), or with a
    program that a calculator runs (program of thought). Steps cost tokens; see what they buy.
    Method: The same problems and examples in three styles, greedy. A chain whose last sum comes out right once every
    sum is done by a calculator had a right plan and wrong arithmetic; otherwise the plan was wrong. A program is run by
    an evaluator of assignments and + - * / // % ** only, so that its arithmetic cannot be wrong.
    What to look for: Tokens per answer against the share that is right. Where chains fail by arithmetic, programs win
    by exactly that.
    Differences from the paper: Both papers ask for grade-school and finance problems of models a thousand times larger;
    here the problems are made from templates, of one and two steps and of dates, and the examples come from the same
    templates. Programs are assignments, never executed as Python.
    """

    covers = ("chain-of-thought", "program-of-thoughts")
    bench = "cascade"
    claim = "Direct answers, chains and programs: what is right, what goes wrong, what it costs."
    claim_zh = "直接回答、推理链与程序：什么对，什么出错，代价多少。"

    models: str = knob("this", choices=("this", "*"), help="this model, or names joined with +")
    kind: str = knob("all", choices=("all", *KINDS), help="kinds of problems")
    each: int = knob(24, 4, 200, "problems of each kind")
    examples: int = knob(5, 1, 8, "examples in the prompt")

    def run(self, subject: Subject) -> Findings:
        asked = problems.asked(self.kind, self.each, subject.settings.seed, self.examples)
        variants = [(subject.settings.model, ())]
        models = cascade_models.VARIANTS if self.models == "this" else self.models
        rows: list[dict[str, Cell]] = []
        notes: list[str] = []
        got: dict[tuple[str, str], list[Reply]] = {}
        for name, model, tokenizer in cascade_models.decoders(subject, models, variants):
            for style in STYLES:
                replies = ask(
                    model, tokenizer, asked, style,
                    partial(subject.progress, f"{name}: {style}"),
                    self.examples, seed=subject.settings.seed,
                )  # fmt: skip
                got[name, style] = replies
                kinds = sorted({p.kind for p in asked}, key=KINDS.index)
                for kind in (*kinds, "all") if len(kinds) > 1 else kinds:
                    rows.append(row(name, style, kind, [r for r in replies if kind in ("all", asked[r.problem].kind)]))
                wrong = next((r for r in replies if not r.reading.right), None)
                if wrong:
                    p = asked[wrong.problem]
                    notes.append(f"{style}, {wrong.reading.verdict}: {p.question} → {wrong.text} ({p.answer})")
        return Findings(COLUMNS, rows, charts(), claims(got), notes)


def row(name: str, style: str, kind: str, replies: Sequence[Reply]) -> dict[str, Cell]:
    n = len(replies)
    verdicts = Counter(r.reading.verdict for r in replies)
    right, slips = verdicts["right"] / n, verdicts["wrong arithmetic"] / n
    return {
        "model": name,
        "style": style,
        "kind": kind,
        "asked": n,
        "right": right,
        "arithmetic": slips if style == "cot" else None,
        "plan": verdicts["wrong plan"] / n if style != "direct" else None,
        "unreadable": verdicts["unreadable"] / n,
        "wrong": verdicts["wrong"] / n if style == "direct" else None,
        "plan_right": right + slips if style != "direct" else None,
        "prompt_tokens": sum(r.prompt_tokens for r in replies) / n,
        "new_tokens": sum(r.new_tokens for r in replies) / n,
        "gflops": sum(r.flops for r in replies) / n / 1e9,
        "ms": 1000 * sum(r.seconds for r in replies) / n,
    }


def charts() -> list[Chart]:
    return [
        Chart("Right answers", "style", "right", "kind", "bar"),
        Chart("Right once sums are corrected", "style", "plan_right", "kind", "bar"),
        Chart("Right answers against new tokens", "new_tokens", "right", "style", "front"),
        Chart("Right answers against GFLOPs", "gflops", "right", "style", "front"),
    ]


def gains(one: Sequence[Reply], other: Sequence[Reply], slips: bool = False) -> Tensor:
    """(problems,) 1 where `one` is right and `other` is not, -1 the other way round, else 0.

    With `slips`, chains of `other` with wrong arithmetic count as right.
    """
    good = ("right", "wrong arithmetic") if slips else ("right",)
    mine, theirs = ([r.reading.verdict in kinds for r in got] for got, kinds in ((one, ("right",)), (other, good)))
    return torch.tensor(mine).double() - torch.tensor(theirs).double()


def claims(got: dict[tuple[str, str], list[Any]]) -> list[Claim]:
    """What the two papers say, model by model."""
    names = list(dict.fromkeys(name for name, _ in got))

    def each(one: str, other: str, slips: bool = False) -> list[Tensor]:
        return [gains(got[n, one], got[n, other], slips) for n in names]

    def evidence(found: list[Estimate]) -> str:
        return "; ".join(f"{n}: {e.points()}" for n, e in zip(names, found, strict=True))

    programs = each("pot", "cot")
    chain, program, planned = (
        [paired(g, torch.zeros_like(g)) for g in found]
        for found in (each("cot", "direct"), programs, each("pot", "cot", slips=True))
    )
    over_models = torch.stack(programs).mean(0)
    average = paired(over_models, torch.zeros_like(over_models))
    return [
        Claim(
            "arXiv 2201.11903, section 3.2",
            "Chains of thought do not help small models; the gain comes with about 100 billion parameters.",
            all_below(chain, ALIKE),
            f"Chain against the bare answer, {evidence(chain)}; help is more than {100 * ALIKE:g} points. No model "
            "here has more than a few billion",
        ),
        Claim(
            "arXiv 2211.12588, abstract",
            "Programs are right about 12 points more often than chains, on average.",
            average.above(POINTS),
            f"{evidence(program)}; on average {average.points()}, against {100 * POINTS:g}",
        ),
        Claim(
            "arXiv 2211.12588, section 1",
            "Leaving the sums to an interpreter gains what chains lose by arithmetic: the plans are as good.",
            all_above(planned, -ALIKE),
            f"Programs against chains whose sums were corrected, {evidence(planned)}; as good is at most "
            f"{100 * ALIKE:g} points worse",
        ),
    ]

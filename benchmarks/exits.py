"""What early exits cost and gain on held-out prompts of six kinds: agreement, layers, layer-rows, time per pass.

    python -m benchmarks.exits [--technique early-exit:head=trained,rule=margin,threshold=0.6 …] [--weights int4]
                               [--tokens 96] [--own-text] [--prompts judging] [--json OUT|-]

The model first writes a text by itself, greedily. Every stack then reads that same text word by word, so that each of
its answers can be held against the model's. With --own-text every stack writes its own text instead, as in generation,
and the model says at each place of it what it would have written: what an ε promises is held against that. Plain
passes are timed in the same way, prompt by prompt in turn. Errors are over the prompts.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import held_out
from llmlab.cli.output import report, say, write
from llmlab.errors import Refused
from llmlab.lab.experiment import Lab
from llmlab.lab.settings import Settings, within
from llmlab.measure.benchmark import busy_warning
from llmlab.measure.statistics import bootstrap, quartiles
from llmlab.models.kernels.topk import argmax
from llmlab.runtime.stack import Stack
from llmlab.runtime.tools import Tools
from llmlab.studies.support.sweep.prompts import Use, known_prompts

STACKS = ("early-exit:head=trained,rule=margin,threshold=0.6", "early-exit", "hash-exit", "skip-layer", "skip-decode")


@dataclass(frozen=True)
class Word:
    """What a stack said at one place: its choice, the layers that it waited for, the rows that went through layers
    there, those made up for earlier words included, and the seconds."""

    choice: int
    waited: float
    rows: int
    seconds: float


def passes(
    model: Any, stack: Stack, tools: Tools, prompt: list[int], text: list[int] | None, most: int, stops: Collection[int]
) -> list[Word]:
    """What a stack says along `text`, given word by word; without one it writes its own, of `most` words at most."""
    session = stack.session(model)
    session.tools = tools
    out: list[Word] = []
    with ExitStack() as undo:
        for patch in stack.with_role("ForwardPatch"):
            undo.enter_context(patch.installed(session))
        for _ in session.prefill(prompt):
            pass
        for i in range(most if text is None else len(text)):
            start, before = time.perf_counter(), model.work.layer_rows
            result = session.forward()
            (choice,) = argmax(result.logits)
            out.append(Word(choice, result.layers_run, model.work.layer_rows - before, time.perf_counter() - start))
            token = choice if text is None else text[i]
            session.commit((), token)
            if text is None and token in stops:
                break
    return out


@dataclass(frozen=True)
class Read:
    """A stack on one prompt: how many of its words are the model's, of how many; layers and rows in all, as shares of
    a plain pass; and the time of a pass against a plain one."""

    kind: str
    same: int
    words: int
    waited: float
    rows: float
    time: float


def measure(settings: Settings, stacks: dict[str, Stack], use: Use, own_text: bool) -> dict[str, Any]:
    """Per stack and kind: top-1 agreement, shares of the layers waited for and of the rows computed, and time."""
    lab = Lab()
    prompts = known_prompts(use)
    read: dict[str, list[Read]] = {name: [] for name in stacks}
    for number, item in enumerate(prompts):
        prepared = lab.prepare(replace(settings, prompt=item["prompt"]))
        plain, tools = prepared.loaded.model, lab.tools(prepared)
        run = partial(passes, most=settings.max_new_tokens, stops=prepared.loaded.stop_tokens)
        said = run(plain, Stack(), tools, prepared.prompt, None)
        base = run(plain, Stack(), tools, prepared.prompt, [w.choice for w in said])
        for name, stack in stacks.items():
            report(f"Measuring {name}"[:60], number, len(prompts))
            model = lab.model_cache.transformed(prepared.loaded, stack, tools).model
            for technique in stack:
                technique.prepare(model, tools)
            got = run(model, stack, tools, prepared.prompt, None if own_text else [w.choice for w in said])
            if own_text:
                base = run(plain, Stack(), tools, prepared.prompt, [w.choice for w in got])
            read[name].append(_read(item["kind"], got, base, len(plain.layers)))
    rows = []
    for name, each in read.items():
        for kind in (*dict.fromkeys(r.kind for r in each), "all"):
            row = {"stack": name, "kind": kind, **figures([r for r in each if kind in (r.kind, "all")])}
            plans = stacks[name].with_role("LayerPlan")
            promised = [1 - e for e in (getattr(t, "epsilon", 0.0) for t in plans) if e]
            rows.append(row | ({"promised": promised[0]} if promised else {}))
    about = {"weights": settings.weights, "prompts": len(prompts), "use": use, "own_text": own_text}
    return {**about, "tokens": settings.max_new_tokens, "rows": rows}


def _read(kind: str, got: Sequence[Word], base: Sequence[Word], layers: int) -> Read:
    seconds = [statistics.mean(w.seconds for w in words) for words in (got, base)]
    same = sum(a.choice == b.choice for a, b in zip(got, base, strict=True))
    waited, rows = sum(w.waited for w in got) / layers, sum(w.rows for w in got) / layers
    return Read(kind, same, len(got), waited, rows, seconds[0] / seconds[1])


def figures(each: Sequence[Read]) -> dict[str, float]:
    """Means over the words with their errors over the prompts; of time the median over prompts and its quartiles."""
    words = torch.tensor([r.words for r in each]).double()
    row: dict[str, float] = {"words": int(words.sum())}
    for name, values in (
        ("agreement", [r.same for r in each]),
        ("layers", [r.waited for r in each]),
        ("layer_rows", [r.rows for r in each]),
    ):
        found = bootstrap(partial(_share, torch.tensor(values).double(), words), len(each))
        row |= {name: round(found.value, 4), f"{name}_error": round(found.error, 4)}
    low, high = quartiles([r.time for r in each])
    return row | {
        "time": round(statistics.median(r.time for r in each), 3),
        "low": round(low, 3),
        "high": round(high, 3),
    }


def _share(values: Tensor, words: Tensor, at: Tensor) -> float:
    return float(values[at].sum() / words[at].sum())


def main(arguments: list[str] | None = None) -> int:
    p = held_out.parser("exits", __doc__, 96)
    p.add_argument("--own-text", action="store_true", help="every stack writes its own text, as in generation")
    a = p.parse_args(arguments)
    try:
        tokens = within("tokens", a.tokens, 8, 2048, int)
        settings, stacks = held_out.asked(a, STACKS)
        if load := busy_warning():
            say(load)
        result = measure(replace(settings, max_new_tokens=tokens), stacks, a.prompts, a.own_text)
    except Refused as e:
        say(str(e))
        return 2
    for row in result["rows"]:
        agreement = f"agreement {row['agreement']:6.1%} ± {row['agreement_error']:.1%}"
        agreement += f" of {row['promised']:.0%} promised" if "promised" in row else ""
        layers = f"waited for {row['layers']:6.1%}, rows {row['layer_rows']:6.1%} ± {row['layer_rows_error']:.1%}"
        say(f"{row['stack']:60} {row['kind']:18} {agreement}, {layers}, time × {_spread(row)}")
    write(result, a.json)
    return 0


def _spread(row: dict[str, Any]) -> str:
    return f"{row['time']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


if __name__ == "__main__":
    sys.exit(main())

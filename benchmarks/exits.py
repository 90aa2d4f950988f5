"""What early exits cost and gain on held-out prompts of six kinds: agreement, layers per token, time per pass.

    python -m benchmarks.exits [--technique early-exit:head=trained,rule=margin,threshold=0.6 …] [--weights int4]
                               [--tokens 96] [--json OUT|-]

The model first writes a text by itself, greedily. Every stack then reads that same text word by word, so that each of
its answers can be held against the model's. Plain passes are timed in the same way, prompt by prompt in turn.
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from benchmarks import held_out
from llmlab.cli.output import report, say, write
from llmlab.errors import Refused
from llmlab.lab.experiment import Lab
from llmlab.lab.settings import Settings, within
from llmlab.measure.benchmark import busy_warning
from llmlab.models.kernels.topk import argmax
from llmlab.runtime.stack import Stack
from llmlab.runtime.tools import Tools
from llmlab.studies.support.sweep.prompts import known_prompts

STACKS = ("early-exit:head=trained,rule=margin,threshold=0.6", "early-exit", "hash-exit", "skip-layer", "skip-decode")


def forced(
    model: Any, stack: Stack, tools: Tools, prompt: list[int], text: list[int]
) -> list[tuple[int, float, float]]:
    """Per token of `text`, which is given word by word: the stack's own choice, the layers it ran, and its seconds."""
    session = stack.session(model)
    session.tools = tools
    out = []
    with ExitStack() as undo:
        for patch in stack.with_role("ForwardPatch"):
            undo.enter_context(patch.installed(session))
        for _ in session.prefill(prompt):
            pass
        for token in text:
            start = time.perf_counter()
            (choice,) = argmax(session.forward().logits)
            out.append((choice, session.layers_run, time.perf_counter() - start))
            session.commit((), token)
    return out


def measure(settings: Settings, stacks: dict[str, Stack]) -> dict[str, Any]:
    """Per stack and kind: top-1 agreement, mean share of the layers, and time per pass over the plain model's."""
    lab, rows = Lab(), []
    prompts = known_prompts()
    seen: dict[tuple[str, str], list[tuple[bool, float]]] = {}
    ratios: dict[tuple[str, str], list[float]] = {}
    for number, item in enumerate(prompts):
        report("Measuring", number, len(prompts))
        prepared = lab.prepare(replace(settings, prompt=item["prompt"]))
        plain, tools = prepared.loaded.model, lab.tools(prepared)
        text: list[int] = []
        for event in lab.run(prepared):
            text += getattr(event, "tokens", []) if type(event).__name__ == "Committed" else []
        base = statistics.mean(s for *_, s in forced(plain, Stack(), tools, prepared.prompt, text))
        for name, stack in stacks.items():
            model = lab.model_cache.transformed(prepared.loaded, stack, tools).model
            for technique in stack:
                technique.prepare(model, tools)
            got = forced(model, stack, tools, prepared.prompt, text)
            for kind in (item["kind"], "all"):
                cell = seen.setdefault((name, kind), [])
                cell += [(a == b, ran / len(plain.layers)) for (a, ran, _), b in zip(got, text, strict=True)]
                ratios.setdefault((name, kind), []).append(statistics.mean(s for *_, s in got) / base)
    for (name, kind), cell in seen.items():
        agreement, layers = (statistics.mean(float(x[i]) for x in cell) for i in (0, 1))
        row = {"stack": name, "kind": kind, "tokens": len(cell), "agreement": round(agreement, 4)}
        rows.append(row | {"layers": round(layers, 4), "time": round(statistics.median(ratios[name, kind]), 3)})
    return {"weights": settings.weights, "prompts": len(prompts), "tokens": settings.max_new_tokens, "rows": rows}


def main(arguments: list[str] | None = None) -> int:
    a = held_out.parser("exits", __doc__, 96).parse_args(arguments)
    try:
        within("tokens", a.tokens, 8, 2048, int)
        settings, stacks = held_out.asked(a, STACKS)
        if load := busy_warning():
            say(load)
        result = measure(settings, stacks)
    except Refused as e:
        say(str(e))
        return 2
    for row in result["rows"]:
        figures = f"agreement {row['agreement']:6.1%}, layers {row['layers']:6.1%}, time × {row['time']:.2f}"
        say(f"{row['stack']:60} {row['kind']:10} {figures}")
    write(result, a.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

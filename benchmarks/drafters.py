"""What drafts gain on held-out prompts of six kinds: tokens per pass, and time against decoding without them.

    python -m benchmarks.drafters [--technique eagle --technique prompt-lookup:length=4 …] [--weights int4]
                                  [--tokens 128] [--rounds 3] [--prompts judging] [--json OUT|-]

Each `--technique` is a stack of its own; join with & what belongs together. Plain decoding and every stack take turns,
prompt by prompt; a ratio is that of two neighbouring runs. Says where a text differs from the plain one, which in
bitwise verification it never may.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import held_out
from llmlab.cli.output import report, say, write
from llmlab.errors import Refused
from llmlab.lab.experiment import Lab
from llmlab.lab.records import record
from llmlab.lab.settings import Settings, within
from llmlab.measure.benchmark import busy_warning
from llmlab.measure.statistics import mean, quartiles
from llmlab.runtime.stack import Stack
from llmlab.studies.support.sweep.prompts import Use, known_prompts

STACKS = ("prompt-lookup", "suffix-matching", "eagle", "draft-heads")


def measure(settings: Settings, stacks: dict[str, Stack], rounds: int, use: Use) -> dict[str, Any]:
    """Per stack and kind: tokens per pass, speed against plain (the median of the pairs), and which texts differ.

    The row of all kinds has the mean of all pairs instead. Both have the quartiles, and the standard errors of both
    figures' means over the prompts.
    """
    lab = Lab()
    prompts = known_prompts(use)
    ratios: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    passes: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    differ: dict[str, list[str]] = defaultdict(list)
    for number, item in enumerate(prompts):
        plain = replace(settings, prompt=item["prompt"])
        for turn in range(rounds):
            report("Measuring", number * rounds + turn, len(prompts) * rounds)
            base = run(lab, plain)
            for name, stack in stacks.items():
                got = run(lab, replace(plain, stack=stack))
                m, b = got["metrics"], base["metrics"]
                if got["token_ids"] != base["token_ids"]:
                    differ[name] += [item["id"]] if item["id"] not in differ[name] else []
                ratios[name][item["kind"]].append(m["decode_tokens_per_second"] / b["decode_tokens_per_second"])
                if turn == 0:
                    passes[name][item["kind"]].append(m["tokens_per_pass"])
    rows = []
    for name in stacks:
        for kind in (*passes[name], "all"):
            kinds = list(passes[name]) if kind == "all" else [kind]
            r, p = ([x for k in kinds for x in table[name][k]] for table in (ratios, passes))
            low, high = quartiles(r)
            row = {"stack": name, "kind": kind, "tokens_per_pass": round(statistics.mean(p), 3)}
            speed = statistics.mean(r) if kind == "all" else statistics.median(r)
            row |= {"speed": round(speed, 3), "low": round(low, 3), "high": round(high, 3)}
            by_prompt = torch.tensor(r).view(-1, rounds).mean(1)
            row |= {"tokens_per_pass_error": error_of(torch.tensor(p)), "speed_error": error_of(by_prompt)}
            rows.append(row)
    return {
        "weights": settings.weights,
        "tokens": settings.max_new_tokens,
        "prompts": len(prompts),
        "use": use,
        "rounds": rounds,
        "rows": rows,
        "differing_texts": dict(differ),
    }


def error_of(values: Tensor) -> float | None:
    """The standard error of a mean over prompts (n,); None of a single one."""
    found = mean(values)
    return round(found.error, 4) if len(values) > 1 else None


def run(lab: Lab, settings: Settings) -> dict[str, Any]:
    prepared = lab.prepare(settings)
    return record(list(lab.run(prepared)), prepared.loaded.tokenizer)


def main(arguments: list[str] | None = None) -> int:
    p = held_out.parser("drafters", __doc__, 128)
    p.add_argument("--rounds", default=3)
    a = p.parse_args(arguments)
    try:
        settings, stacks = held_out.asked(a, STACKS)
        if load := busy_warning():
            say(load)
        value = measure(settings, stacks, within("rounds", a.rounds, 1, 100, int), a.prompts)
    except Refused as e:
        say(str(e))
        return 2
    for r in value["rows"]:
        spread = f"{r['low']:.2f} to {r['high']:.2f}"
        errors = [f" ± {r[k]:.2f}" if r[k] is not None else "" for k in ("tokens_per_pass_error", "speed_error")]
        pace = f"{r['tokens_per_pass']:5.2f}{errors[0]} a pass  {r['speed']:5.2f}×{errors[1]}"
        print(f"{r['stack']:40} {r['kind']:20} {pace}  ({spread})")
    for name, ids in value["differing_texts"].items():
        print(f"{name}: other texts than plain decoding for {', '.join(ids)}")
    write(value, a.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m llmlab compare`: the baseline and the stack on the same prompt, in pairs, and what the stack costs."""

from __future__ import annotations

import argparse
from typing import Any

from llmlab.cli.options import add_run, run_of
from llmlab.cli.output import keep_stopped, metrics_line, report, say, show_events, write_run
from llmlab.cli.words import read_prompt

HELP = "run the baseline, then the stack, and say what differs"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "--quality-text", metavar="FILE", help="a text to measure quality on, in place of the lab's own"
    )


def execute(a: argparse.Namespace) -> None:
    from llmlab.lab.experiment import Lab
    from llmlab.measure import trace

    own = None if a.quality_text is None else read_prompt(a.quality_text, "text")
    lab = Lab()
    prepared = lab.prepare(run_of(a), report)
    events = show_events(lab.compare(prepared, report=report, own_text=own), prepared, a, headings=True)
    keep_stopped(a, lab, prepared, events)
    lanes = trace.lanes(events)
    value = lab.record(prepared, lanes["stack"])
    value["baseline"] = lab.record(prepared, lanes["baseline"])
    say("baseline: " + metrics_line(value["baseline"]["metrics"]))
    say("stack:    " + metrics_line(value["metrics"]))
    for line in differences(value):
        say(line)
    write_run(value, events, a)


def differences(value: dict[str, Any]) -> list[str]:
    """Speed with its spread, quality with its error, and the verdict, of the record of a comparison."""
    from llmlab.measure.pairs import Pairs

    q, pairs, verdict = value["quality"], Pairs.from_json(value["pairs"]), value["verdict"]
    old, new = (v["metrics"]["decode_tokens_per_second"] for v in (value["baseline"], value))
    same = "the same text" if q["identical"] else f"another text from token {q['first_difference']} on"
    if pairs is None:
        lines = [f"{new / max(old, 1e-9):.2f}× the baseline's tokens/s in one pair of runs, {same}"]
    else:
        low, high = pairs.spread
        inside = f": no difference within the spread of {len(pairs)} pairs" if verdict["speed"] == "none" else ""
        told = f"{pairs.ratio:.2f}× the baseline's tokens/s, {low:.2f} to {high:.2f} in {len(pairs)} pairs"
        lines = [f"{told} of {pairs.tokens} tokens{inside}; {same}"]
    return [*lines, _quality(q), _verdict(verdict)]


def _quality(q: dict[str, Any]) -> str:
    if q["withheld"] == "lossless":
        return "quality: nothing to measure, no technique changes a probability"
    parts = [] if q["kl_mean"] is None else [f"KL {q['kl_mean']:.2g}{_error(q['kl_error'], '.1g')}"]
    if q["top1_agreement"] is not None:
        parts.append(f"top-1 agreement {q['top1_agreement']:.1%} on the text")
    if q["perplexity_ratio"] is not None:
        ratio = f"{q['perplexity_ratio']:.3f}{_error(q['perplexity_ratio_error'], '.3f')}"
        kl = f"KL {q['kl_text']:.2g}{_error(q['kl_text_error'], '.1g')}"
        parts.append(f"perplexity × {ratio}, {kl} on {q['scored_tokens']} tokens of {' and '.join(q['kinds'])}")
    elif q["withheld"]:
        parts.append(WITHHELD[q["withheld"]])
    return "quality: " + "; ".join(parts)


WITHHELD = {
    "acceptance": "no perplexity, as a rule of acceptance chooses among the tokens",
    "idle": "no perplexity, as the techniques do not act on texts as long as these",
    "unfinished": "stopped before it was measured",
}
"""Why there is no perplexity."""


def _error(error: float | None, form: str) -> str:
    return "" if error is None else f" ± {error:{form}}"


def _verdict(v: dict[str, Any]) -> str:
    speed = {"none": "no difference in speed", "undecided": "too few pairs to judge the speed"}.get(
        v["speed"], v["speed"]
    )
    memory = "as much memory" if v["memory"] == "none" else f"{v['memory']} memory"
    quality = "same here, lost on longer texts" if v["quality"] == "later" else v["quality"]
    return f"verdict: {v['verdict']} ({speed}, {memory}, quality {quality})"

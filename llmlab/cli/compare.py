"""`python -m llmlab compare`: the baseline and the stack on the same prompt, and what the stack costs."""

from __future__ import annotations

import argparse

from llmlab.cli.options import add_run, run_of
from llmlab.cli.output import keep_stopped, metrics_line, report, say, show_events, write_run

HELP = "run the baseline, then the stack, and say what differs"
add_options = add_run


def execute(a: argparse.Namespace) -> None:
    from llmlab.lab.experiment import Lab
    from llmlab.measure import trace

    lab = Lab()
    prepared = lab.prepare(run_of(a), report)
    events = show_events(lab.compare(prepared, report=report), prepared, a, headings=True)
    keep_stopped(a, lab, prepared, events)
    lanes = trace.lanes(events)
    value = lab.record(prepared, lanes["stack"])
    value["baseline"] = lab.record(prepared, lanes["baseline"])
    old, new, q = value["baseline"]["metrics"], value["metrics"], value["quality"]
    say("baseline: " + metrics_line(old))
    say("stack:    " + metrics_line(new))
    faster = new["decode_tokens_per_second"] / max(old["decode_tokens_per_second"], 1e-9)
    same = "the same text" if q["identical"] else f"another text from token {q['first_difference']} on"
    kl = "" if q["kl_mean"] is None else f"KL {q['kl_mean']:.2g}, "
    cost = f"{kl}top-1 agreement {q['top1_agreement']:.1%}"
    say(f"{faster:.2f}× the baseline's tokens/s, {same}; {cost}")
    write_run(value, events, a)

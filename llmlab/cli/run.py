"""`python -m llmlab run`: one run, its text, its figures, its record."""

from __future__ import annotations

import argparse

from llmlab.cli.interruption import held
from llmlab.cli.options import add_run, run_of
from llmlab.cli.output import keep_stopped, metrics_line, report, say, show_events, write
from llmlab.cli.places import save

HELP = "run one stack"
add_options = add_run


def execute(a: argparse.Namespace) -> None:
    from llmlab.lab.experiment import Lab
    from llmlab.measure import trace

    lab = Lab()
    prepared = lab.prepare(run_of(a), report)
    events = show_events(lab.route(prepared, report=report), prepared, a)
    keep_stopped(a, lab, prepared, events)
    value = lab.record(prepared, events)
    say(metrics_line(value["metrics"]))
    with held():
        write(value, a.json)
        if a.trace:
            save(a.trace, trace.dumps(events))

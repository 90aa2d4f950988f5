"""`python -m llmlab run`: one run, its text, its figures, its record."""

from __future__ import annotations

import argparse

from llmlab.cli.options import add_run, run_of
from llmlab.cli.output import keep_stopped, metrics_line, report, say, show_events, write_run

HELP = "run one stack"
add_options = add_run


def execute(a: argparse.Namespace) -> None:
    from llmlab.lab.experiment import Lab

    lab = Lab()
    prepared = lab.prepare(run_of(a), report)
    events = show_events(lab.route(prepared, report=report), prepared, a)
    keep_stopped(a, lab, prepared, events)
    value = lab.record(prepared, events)
    say(metrics_line(value["metrics"]))
    write_run(value, events, a)

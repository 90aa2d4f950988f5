"""`python -m llmlab replay`: the text and the figures of a recorded run."""

from __future__ import annotations

import argparse

from llmlab.cli.options import add_json
from llmlab.cli.output import metrics_line, say, show, write

HELP = "the figures of a recorded run"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", metavar="TRACE.jsonl")
    add_json(parser)


def execute(a: argparse.Namespace) -> None:
    from llmlab.lab.records import record
    from llmlab.measure import trace

    values = {}
    for lane, events in trace.lanes(trace.load(a.trace)).items():
        values[lane] = record(events)
        if a.json != "-":
            show(f"--- {lane}: {values[lane]['model']}\n{values[lane]['text']}")
        say(f"{lane}: {metrics_line(values[lane]['metrics'])}")
    write(values, a.json)

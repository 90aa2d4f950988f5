"""`python -m llmlab study NAME:knob=value,…`: an experiment of many runs, and what it says to the papers' claims."""

from __future__ import annotations

import argparse
from typing import Any

from llmlab.cli.interruption import held
from llmlab.cli.options import add_json, add_settings, settings_of
from llmlab.cli.output import report, show, write
from llmlab.lab.settings import STUDIED

HELP = "carry out a study: an experiment of many runs, and what it says to the papers"


def add_options(parser: argparse.ArgumentParser) -> None:
    quoted = "a value with commas in quotes: 'sweep:values=\"1,4\"'"
    parser.add_argument("study", metavar="NAME:knob=value,knob=value", help=quoted)
    add_settings(parser, STUDIED)
    add_json(parser)


def execute(a: argparse.Namespace) -> None:
    from llmlab.runtime.stack import parsed

    name, knobs = parsed(a.study)
    carry_out_and_show(name, knobs, a)


def carry_out_and_show(name: str, knobs: dict[str, Any], a: argparse.Namespace) -> None:
    """Carry out a study and say what it found: a table, then its word on each claim."""
    from llmlab.lab.experiment import Lab
    from llmlab.lab.findings import table, verdicts
    from llmlab.lab.study import Subject, carry_out, make_study, stopped_early

    chosen = make_study(name, **knobs)
    subject = Subject(Lab(), settings_of(a), report)
    try:
        value = carry_out(chosen, subject)
    except KeyboardInterrupt:
        found = stopped_early(chosen, subject)
        if found is None:
            raise
        value = found
    with held():
        write(value, a.json)
    if a.json != "-":
        show(table(value))
        for line in [*verdicts(value), *value["notes"]]:
            show(line)

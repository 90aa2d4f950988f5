"""`python -m llmlab study NAME:knob=value,…`: an experiment of many runs, and what it says to the papers' claims."""

from __future__ import annotations

import argparse
from typing import Any

from llmlab.cli.options import add_json, add_settings, settings_of
from llmlab.cli.output import report, show, write
from llmlab.lab.settings import STUDIED

HELP = "carry out a study: an experiment of many runs, and what it says to the papers"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="NAME:knob=value,knob=value")
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
    from llmlab.lab.study import Subject, carry_out, make_study

    chosen = make_study(name, **knobs)
    value = carry_out(chosen, Subject(Lab(), settings_of(a), report))
    write(value, a.json)
    if a.json != "-":
        show(table(value))
        for line in [*verdicts(value), *value["notes"]]:
            show(line)

"""`python -m llmlab bench`: this engine against transformers on this machine, side by side."""

from __future__ import annotations

import argparse

from llmlab.cli.interruption import held
from llmlab.cli.options import ENGINE, add_json, add_settings, settings_of
from llmlab.cli.output import say, show, write
from llmlab.lab.settings import within

HELP = "this engine against transformers on this machine, side by side"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_settings(parser, ENGINE, weights="int4")
    parser.add_argument("--cases", default="", help="decode,prefill-500,… (default: a small choice)")
    parser.add_argument("--rounds", default=5, help="how often each is timed")
    add_json(parser)


def execute(a: argparse.Namespace) -> None:
    from llmlab.lab.contestants.own_engine import Ours
    from llmlab.lab.contestants.side_by_side import against_transformers
    from llmlab.measure.benchmark import SMALL, text_table

    cases = [c for c in str(a.cases).split(",") if c] or SMALL
    s = settings_of(a)
    rounds = within("rounds", a.rounds, 1, 1000, int)
    value = against_transformers(s.model, s.weights, s.device, s.threads, cases, rounds, say)
    with held():
        write(value, a.json)
        if a.json != "-":
            show(text_table(value["cases"], Ours.name))

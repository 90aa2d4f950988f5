"""`python -m llmlab studies`: every study with its knobs."""

from __future__ import annotations

import argparse

from llmlab.cli.listing import row, show_knobs
from llmlab.cli.output import show, write

HELP = "every study with its knobs"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as a list of objects on standard output")


def execute(a: argparse.Namespace) -> None:
    from llmlab.lab.study import studies

    # A study plays no role in a stack: its kind of experiment is given for one, and exactness is no question of it.
    rows = [row(name, s, role=s.bench, bench=s.bench, exact=None) for name, s in studies().items()]
    if a.json:
        write(rows, "-")
        return
    for r in rows:
        show(f"{r['id']:22} {r['bench']:14} {r['title']}: {r['claim']}")
        show_knobs(r["knobs"])

"""`python -m llmlab techniques`: every technique with its knobs."""

from __future__ import annotations

import argparse

from llmlab.cli.listing import row, show_knobs
from llmlab.cli.output import show, write

HELP = "every technique with its knobs"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as a list of objects on standard output")


def execute(a: argparse.Namespace) -> None:
    """In JSON, `door` stays beside `role`, whose first published name it is."""
    from llmlab.runtime.technique import registry

    rows = [row(n, t, role=t.role, door=t.role, exact=t.exact, main_knob=t.main_knob) for n, t in registry().items()]
    if a.json:
        write(rows, "-")
        return
    for r in rows:
        show(f"{r['id']:18} {r['role']:16} {'exact' if r['exact'] else 'lossy':6} {r['speed']:10} {r['title']}")
        show_knobs(r["knobs"])

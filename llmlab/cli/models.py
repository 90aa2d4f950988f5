"""`python -m llmlab models`: the catalogue, what is on this machine already and what fits its memory."""

from __future__ import annotations

import argparse
from typing import Any

from llmlab.cli.output import show, write

HELP = "the catalogue and what fits"
ROWS = 1024
"""Tokens of keys and values beside which a model must fit."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as a list of objects on standard output")


def execute(a: argparse.Namespace) -> None:
    from llmlab.measure.hardware import free_memory

    free = free_memory()
    rows = listed(free)
    if a.json:
        write(rows, "-")
        return
    show(f"{free / 1e9:.1f} GB of memory are free; a model fits with {ROWS} tokens of keys and values.")
    for r in rows:
        fits = ", ".join(w for w, ok in r["fits"].items() if ok) or "nothing fits"
        here = "here" if r["downloaded"] else "—"
        show(f"{r['id']:24} {r['parameters'] / 1e6:6.0f} M  {r['licence']:14} {here:5} {fits}")


def listed(free: int) -> list[dict[str, Any]]:
    """Every model of the catalogue as an object, with whether each format fits `free` bytes."""
    from llmlab.models.loading import catalog, fit
    from llmlab.models.loading.sources import locate

    return [
        {
            "id": name,
            "title": e.title,
            "repo": e.repo,
            "parameters": e.parameters,
            "licence": e.licence,
            "gated": e.gated,
            "runs_on": e.runs_on,
            "drafts": list(e.drafts),
            "downloaded": locate.downloaded(e),
            "fits": {w: fit.fit(e.size, w, ROWS, free).fits for w in e.formats},
        }
        for name, e in catalog.MODELS.items()
    ]

"""`python -m llmlab sweep`: short for `study sweep:…`, quality against cost."""

from __future__ import annotations

import argparse

from llmlab.cli.options import add_json, add_settings
from llmlab.cli.study import carry_out_and_show
from llmlab.lab.settings import STUDIED

HELP = "quality against cost: turn the knobs of one technique or of all"


def add_options(parser: argparse.ArgumentParser) -> None:
    whose = "whose knob is turned, or all (default: draft-model)"
    parser.add_argument("--technique", metavar="NAME", help=whose)
    parser.add_argument("--knob", dest="turn", help="the knob to turn (default: the technique's main one)")
    parser.add_argument("--values", metavar="V,V,…", help="what to try (default: three or four values)")
    parser.add_argument("--kind", help="of held-out prompts (default: all)")
    parser.add_argument("--each", help="prompts of each kind")
    parser.add_argument("--tokens", help="new tokens per prompt")
    add_settings(parser, STUDIED)
    add_json(parser)


def execute(a: argparse.Namespace) -> None:
    given = {name: getattr(a, name) for name in ("technique", "turn", "values", "kind", "each", "tokens")}
    carry_out_and_show("sweep", {k: v for k, v in given.items() if v is not None}, a)

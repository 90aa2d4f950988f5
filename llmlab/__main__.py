"""The command line. Status 2 and one sentence on standard error for input that cannot work."""

from __future__ import annotations

import argparse
import os
import sys

from llmlab.cli import interruption

if __name__ == "__main__":
    interruption.leave_early()

from collections.abc import Sequence
from typing import Protocol

from llmlab.cli import bench, compare, models, replay, run, studies, study, surroundings, sweep, techniques, train
from llmlab.cli.options import OneSentenceParser
from llmlab.cli.output import carried_out
from llmlab.cli.places import require_places
from llmlab.cli.words import read_arguments
from llmlab.errors import unknown_name

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


class Command(Protocol):
    """A module of `llmlab.cli`; whatever is slow to import, it imports in `execute`."""

    HELP: str

    def add_options(self, parser: argparse.ArgumentParser, /) -> None: ...

    def execute(self, a: argparse.Namespace, /) -> None: ...


COMMANDS: dict[str, Command] = {
    "run": run,
    "compare": compare,
    "techniques": techniques,
    "studies": studies,
    "models": models,
    "study": study,
    "sweep": sweep,
    "train": train,
    "bench": bench,
    "replay": replay,
}


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command and its options. Raises Refused for what it does not know."""
    top = OneSentenceParser(prog="python -m llmlab", description="A laboratory for efficient LLM inference.")
    sub = top.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        command.add_options(sub.add_parser(name, help=command.HELP))
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise unknown_name("command", words[0], COMMANDS)
    a, rest = top.parse_known_args(words)
    sub.choices[a.command].refuse_unknown(rest)
    return a


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command; its exit status."""
    surroundings.prepare()

    def act() -> None:
        surroundings.require_folder()
        a = parse(sys.argv[1:] if arguments is None else arguments)
        read_arguments(a)
        require_places(a)
        COMMANDS[a.command].execute(a)

    return carried_out(act)


if __name__ == "__main__":
    interruption.leave(main())

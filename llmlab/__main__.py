"""The command line. Status 2 and one sentence on standard error for input that cannot work."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Protocol

from llmlab.cli import bench, compare, models, replay, run, studies, study, sweep, techniques, train
from llmlab.cli.options import OneSentenceParser
from llmlab.cli.output import say
from llmlab.errors import Refused, unknown_name

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
    try:
        a = parse(sys.argv[1:] if arguments is None else arguments)
        COMMANDS[a.command].execute(a)
    except Refused as e:
        say(str(e))
        return 2
    except KeyboardInterrupt:
        return 130
    except (MemoryError, RuntimeError) as e:  # PyTorch's own out-of-memory errors are RuntimeErrors
        from llmlab.lab.experiment import out_of_memory

        message = out_of_memory(e)
        if message is None:
            raise
        say(message)
        return 2
    except BrokenPipeError:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())

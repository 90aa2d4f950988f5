"""The options of the command line: those of a run's settings are drawn from their knobs."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from llmlab.cli.output import show
from llmlab.cli.words import read_prompt
from llmlab.errors import Refused, unknown_name
from llmlab.lab.settings import STUDIED, Settings

ENGINE = tuple(n for n in STUDIED if n != "seed")
"""The settings that choose a model and how it is computed."""


class OneSentenceParser(argparse.ArgumentParser):
    """Refuses in one sentence, as everything here does, and knows its options for a hint at what was meant."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self.flags: list[str] = []
        super().__init__(*given, **named)

    def add_argument(self, *names: Any, **rest: Any) -> argparse.Action:
        action = super().add_argument(*names, **rest)
        self.flags += action.option_strings
        return action

    def error(self, message: str) -> NoReturn:
        raise Refused("The command", f"cannot be understood ({message})", f"See {self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help; argparse would pass over a standard output that takes nothing."""
        if message:
            show(message, end="")

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """Raises Refused for words of the command line that no option took."""
        for word in words:
            if word.startswith("--"):
                raise unknown_name("option", word.partition("=")[0], self.flags)
        if words:
            raise Refused("The command", f"has no place for {words[0][:40]!r}", f"See {self.prog} --help")


def add_settings(parser: argparse.ArgumentParser, names: Iterable[str] = (), **defaults: Any) -> None:
    """An option for each of these settings, or for all of them; `defaults` replace the settings' own."""
    for k in Settings.knobs():
        if names and k.name not in names:
            continue
        default = defaults.get(k.name, k.default)
        if k.kind == "bool":
            parser.add_argument(k.option, action=argparse.BooleanOptionalAction, default=default, help=k.help)
        else:
            parser.add_argument(k.option, default=default, help=k.help)


def add_run(parser: argparse.ArgumentParser) -> None:
    """The options of a run: its settings, its techniques, and where the record goes."""
    add_settings(parser, prompt=None)
    parser.add_argument("--prompt-file", metavar="F", help="a file that holds the prompt")
    quoted = "may be given again; a value with commas in quotes: 'draft-model:model=\"a,b\"'"
    parser.add_argument("--technique", action="append", default=[], metavar="NAME:knob=value,knob=value", help=quoted)
    add_json(parser)
    parser.add_argument("--trace", metavar="OUT.jsonl", help="the run's events, one a line")
    parser.set_defaults(places=("json", "trace"))


def add_json(parser: argparse.ArgumentParser, help: str = "a file, or - for standard output") -> None:
    """`places` names the options that say where a result goes; see `places.require_places`."""
    parser.add_argument("--json", metavar="OUT|-", help=help)
    parser.set_defaults(places=("json",))


def settings_of(a: argparse.Namespace, **more: Any) -> Settings:
    """The settings that a command was given, and `more`; the others are as by default. Raises Refused."""
    given = {k.name: getattr(a, k.name) for k in Settings.knobs() if hasattr(a, k.name)}
    return Settings(**given | more)


def run_of(a: argparse.Namespace) -> Settings:
    """The settings, prompt and stack of the commands that generate. Raises Refused."""
    from llmlab.runtime.stack import Stack

    return settings_of(a, prompt=_prompt(a), stack=Stack.from_arguments(a.technique))


def _prompt(a: argparse.Namespace) -> str:
    if a.prompt_file is None:
        return a.prompt or ""
    if a.prompt is not None:
        raise Refused("The command", "gives both --prompt and --prompt-file", "Give one of them")
    return read_prompt(a.prompt_file)

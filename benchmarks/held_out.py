"""What the commands that measure on held-out prompts share: their options."""

from __future__ import annotations

import argparse

from llmlab.lab.settings import Settings
from llmlab.runtime.stack import Stack


def parser(name: str, about: str | None, tokens: int) -> argparse.ArgumentParser:
    """Options of `python -m benchmarks.<name>`: stacks, model, weights, tokens per prompt, where the JSON goes."""
    p = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=(about or "").splitlines()[0])
    p.add_argument("--technique", action="append", default=[])
    p.add_argument("--model", default="smollm2-135m")
    p.add_argument("--weights", default="int4")
    p.add_argument("--tokens", default=tokens)
    p.add_argument(
        "--prompts",
        choices=("judging", "choosing"),
        default="judging",
        help="defaults were chosen on some of the latter",
    )
    p.add_argument("--json", default=None, metavar="OUT|-")
    return p


def asked(a: argparse.Namespace, otherwise: tuple[str, ...]) -> tuple[Settings, dict[str, Stack]]:
    """The settings, and the stacks by their text, in which & joins techniques. Raises Refused."""
    stacks = {text: Stack.from_arguments(text.split("&")) for text in a.technique or otherwise}
    return Settings(model=a.model, weights=a.weights, max_new_tokens=a.tokens), stacks

"""`python -m llmlab train PART --model …`: the model writes text, the part learns from it, and the lab finds it."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from llmlab.cli.options import ENGINE, add_json, add_settings, settings_of
from llmlab.cli.output import report, say, write
from llmlab.cli.places import require_folder, require_writable, save
from llmlab.errors import Refused, unknown_name
from llmlab.lab.settings import within

HELP = "train a small part for a model, on text that the model writes itself"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("part", help="eagle: a drafter; heads: draft heads; exits: exit heads")
    add_settings(parser, ENGINE, weights="int4")
    parser.add_argument("--tokens", default=1_000_000, help="of text to write and learn from")
    parser.add_argument("--steps", default=2000)
    parser.add_argument("--batch", default=4096, help="tokens of a step")
    parser.add_argument("--rate", default=1e-3)
    parser.add_argument("--minutes", default=0, help="end the training after so many; 0: when the steps are done")
    folder = "where text and checkpoints are kept (default: the lab's cache)"
    parser.add_argument("--folder", default=None, help=folder)
    out = "where the part goes (default: the cache)"
    parser.add_argument("--out", default=None, metavar="FILE.safetensors", help=out)
    mean = "train nothing: write the mean of two trained files of this part to --out"
    parser.add_argument("--average", nargs=2, default=None, metavar="FILE", help=mean)
    add_json(parser, "the card")
    parser.set_defaults(places=("json", "out"))


def parts() -> dict[str, Any]:
    """What can be trained. Each has `taps(model)`, the layers that it looks at, and `run(…)`."""
    from llmlab.training import eagle, exits, heads

    return {"eagle": eagle, "exits": exits, "heads": heads}


def execute(a: argparse.Namespace) -> None:
    if a.average:
        write(mean_of(a), a.json)
        return
    card = train(a)
    held_out = ", ".join(
        f"{name} {f'{value:.1%}' if value <= 1 else f'{value:.1f}'}" for name, value in card["held_out"].items()
    )
    text = f"{card['steps']} steps on {card['tokens_of_text']} tokens; on texts kept back {held_out}"
    say(f"{card['file']}: {text}")
    write(card, a.json)


def mean_of(a: argparse.Namespace) -> dict[str, Any]:
    """Write the mean of two trained files; returns its card."""
    from llmlab.training.averaged import average

    if not a.out:
        raise Refused("The mean of two parts", "has no place to go", "Name a file with --out")
    one, two = map(Path, a.average)
    card = average(one, two, Path(a.out))
    say(f"{a.out}: the mean of {' and '.join(a.average)}")
    return card


def train(a: argparse.Namespace) -> dict[str, Any]:
    """Write, train, save; returns the card. Goes on where an earlier call with the same folder was interrupted."""
    from llmlab.lab.experiment import Lab
    from llmlab.measure.hardware import use_threads
    from llmlab.models.auxiliary import store
    from llmlab.models.decoder import Decoder
    from llmlab.training import corpus
    from llmlab.training.parts import Plan

    known = parts()
    if a.part not in known:
        raise unknown_name("part", a.part, known)
    settings = settings_of(a)
    tokens = within("tokens", a.tokens, 1_000, 100_000_000, int)
    plan = Plan(
        within("steps", a.steps, 1, 1_000_000, int),
        within("batch", a.batch, 64, 1_000_000, int),
        within("rate", a.rate, 1e-6, 1.0, float),
    )
    minutes = within("minutes", a.minutes, 0, 100_000, float)
    if a.folder:
        require_folder(a.folder)
    use_threads(settings.threads)
    loaded = Lab().model_cache.load(settings.model, settings.weights, settings.device, 1024, report)
    if not isinstance(loaded.model, Decoder):
        raise Refused(loaded.name, "runs through transformers, whose layers are not at hand", "Choose another model")
    name = loaded.name.split("/")[-1].lower()
    layers = tuple(sorted({layer for p in known.values() for layer in p.taps(loaded.model)}))
    folder = Path(a.folder) if a.folder else store.own() / "text" / name
    out = Path(a.out) if a.out else store.own() / f"{a.part}-{name}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    require_writable(out)
    corpus.write(loaded, folder, tokens, layers, report)
    tensors, result = known[a.part].run(loaded.model, folder, folder, plan, report, minutes * 60 or math.inf)
    card = {"model": loaded.name, "weights": settings.weights, "plan": vars(plan), **result}
    store.save(out, a.part, loaded.model, tensors, card)
    save(str(out.with_suffix(".json")), json.dumps(card, indent=1) + "\n")
    return card | {"file": str(out)}

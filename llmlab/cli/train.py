"""`python -m llmlab train PART --model …`: the model writes text, the part learns from it, and the lab finds it."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from llmlab.errors import Refused
from llmlab.lab.experiment import Lab
from llmlab.lab.settings import Settings, within
from llmlab.measure.hardware import use_threads
from llmlab.models.auxiliary import store
from llmlab.models.decoder import Decoder
from llmlab.models.loading.progress import Report
from llmlab.training import corpus, eagle, exits, heads
from llmlab.training.parts import Plan

PARTS: dict[str, Any] = {"eagle": eagle, "exits": exits, "heads": heads}
"""Each has `taps(model)`, the layers that it looks at, and `run(…)`."""


def main(a: argparse.Namespace, report: Report) -> dict[str, Any]:
    """Write, train, save; returns the card. Goes on where an earlier call with the same folder was interrupted."""
    if a.part not in PARTS:
        raise Refused(f"No part is called {str(a.part)[:40]!r};", "it is unknown", f"Choose {', '.join(PARTS)}")
    settings = Settings(model=a.model, weights=a.weights, device=a.device, threads=a.threads)
    tokens = within("tokens", a.tokens, 1_000, 100_000_000, int)
    plan = Plan(
        within("steps", a.steps, 1, 1_000_000, int),
        within("batch", a.batch, 64, 1_000_000, int),
        within("rate", a.rate, 1e-6, 1.0, float),
    )
    minutes = within("minutes", a.minutes, 0, 100_000, float)
    use_threads(settings.threads)
    loaded = Lab().model_cache.load(settings.model, settings.weights, settings.device, 1024, report)
    if not isinstance(loaded.model, Decoder):
        raise Refused(loaded.name, "runs through transformers, whose layers are not at hand", "Choose another model")
    name = loaded.name.split("/")[-1].lower()
    part = PARTS[a.part]
    layers = tuple(sorted({layer for p in PARTS.values() for layer in p.taps(loaded.model)}))
    folder = Path(a.folder) if a.folder else store.own() / "text" / name
    corpus.write(loaded, folder, tokens, layers, report)
    tensors, result = part.run(loaded.model, folder, folder, plan, report, minutes * 60 or math.inf)
    card = {"model": loaded.name, "weights": settings.weights, "plan": vars(plan), **result}
    out = Path(a.out) if a.out else store.own() / f"{a.part}-{name}.safetensors"
    store.save(out, a.part, loaded.model, tensors, card)
    out.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return card | {"file": str(out)}

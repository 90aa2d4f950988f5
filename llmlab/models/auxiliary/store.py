"""Small parts trained for one model: found by what they were trained for, never by a file's name alone.

A part is a safetensors file whose metadata is its card: what it is, for which model, on what data, with what result.
Parts that ship with the lab lie in `assets/trained`; those that a user trains go to the cache, and win.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmlab.assets import ASSETS
from llmlab.errors import Refused
from llmlab.models.loading.environment import cache_folder
from llmlab.models.loading.whole import whole_file

SHIPPED = ASSETS / "trained"
ALIKE = 0.98
"""Least cosine between fingerprints of one model in two weight formats; those of two models are near 0."""


def own() -> Path:
    """Where parts go that a user trains."""
    return cache_folder() / "trained"


def fingerprint(model: Any) -> Tensor:
    """(256,) float32: a few numbers of the embedding, which no technique and hardly any format changes."""
    vocabulary, width = model.shape.vocab, model.shape.width
    tokens = torch.arange(16) * max(1, vocabulary // 17) % vocabulary
    rows: Tensor = model.embedding.lookup(tokens.to(model.device)).float().cpu()
    return rows[:, : min(16, width)].flatten()


def save(path: Path, kind: str, model: Any, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Write a part with its card. What is written can be found by `load` for this model."""
    shape = [model.shape.vocab, model.shape.width, len(model.layers)]
    card = {**card, "kind": kind, "shape": shape, "fingerprint": [round(float(x), 5) for x in fingerprint(model)]}
    write(path, tensors, card)


def write(path: Path, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Write a part as a file, all of it or nothing."""
    with whole_file(path) as part:
        save_file({k: v.contiguous() for k, v in tensors.items()}, part, {"card": json.dumps(card)})


def read(path: Path) -> dict[str, Tensor]:
    """A part's tensors, in the names that its trainer gave them."""
    with safe_open(path, "pt") as f:
        return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118


def card_of(path: Path) -> dict[str, Any]:
    """A part's card. Raises Refused for a file that is none."""
    try:
        with safe_open(path, "pt") as f:
            card: dict[str, Any] = json.loads((f.metadata() or {})["card"])
            return card
    except (OSError, SafetensorError, KeyError, ValueError) as e:
        raise Refused(f"The file {path.name}", "is no trained part of this lab", "Train it again") from e


def find(kind: str, model: Any) -> Path | None:
    """The file of the part of this kind that was trained for `model`; a user's own before one that ships."""
    if not hasattr(model, "embedding"):
        return None
    mine = fingerprint(model)
    for folder in (own(), SHIPPED):
        for path in sorted(folder.glob(f"{kind}-*.safetensors")):
            card = card_of(path)
            theirs = torch.tensor(card["fingerprint"])
            if card["shape"][:2] != [model.shape.vocab, model.shape.width] or theirs.shape != mine.shape:
                continue
            if torch.cosine_similarity(mine, theirs, 0) > ALIKE:
                return path
    return None


def load(kind: str, model: Any, who: str) -> dict[str, Tensor]:
    """The part's tensors, in the names that its trainer gave them. Raises Refused where none was trained."""
    path = find(kind, model)
    if path is None:
        now = f"Train one with `python -m llmlab train {kind} --model …`, or choose smollm2-135m"
        raise Refused(who, "needs a part trained for this very model, and there is none", now)
    return read(path)

"""The models of a cascade, and what a pass through one costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmlab.errors import Refused
from llmlab.lab.study import Subject
from llmlab.models.decoder import Decoder
from llmlab.runtime.stack import Stack

VARIANTS = "variants"


def decoders(
    subject: Subject, models: str, variants: Sequence[tuple[str, Sequence[str]]]
) -> list[tuple[str, Any, Any]]:
    """The models of a cascade, cheapest first, as (name, model, tokenizer).

    `models` is "variants", for the study's own model under each of the named stacks, or names joined with +. Raises
    Refused, in the loader's words, for a model that cannot be had, and for one that is no decoder of ours.
    """
    found = []
    if models == VARIANTS:
        for name, arguments in variants:
            stack = Stack.from_arguments(arguments)
            changed = subject.lab.model_cache.transformed(subject.loaded, stack, subject.tools, subject.report)
            found.append((name, changed.model, subject.tokenizer))
    else:
        s = subject.settings
        names = [n.strip() for n in models.split("+")]
        if not all(names) or len(set(names)) < len(names) or len(names) < 2:
            raise Refused("A cascade", f"cannot be made of {models[:60]!r}", "Name two or more models, joined with +")
        for name in names:
            loaded = subject.lab.model_cache.load(name, s.weights, s.device, 2048, subject.report, s.copies == "auto")
            found.append((loaded.name, loaded.model, loaded.tokenizer))
    for name, model, _ in found:
        if not isinstance(model, Decoder):
            raise Refused(name, "runs on transformers, where many texts cannot go through one pass", "Leave it out")
    return found


def flops(model: Decoder, past: int, tokens: int, scored: int) -> float:
    """Multiplications and additions of `tokens` after `past` others, of which `scored` get logits.

    From the matrices as they stand, pruned or not; attention reads every row before and at each token itself.
    """
    s = model.shape
    inner = s.heads * s.head_size
    rows = tokens * past + tokens * (tokens + 1) / 2
    total = 2.0 * scored * s.vocab * s.width
    for block in model.layers:
        matrices = {name: linear.outputs for name, linear in block.linears().items()}
        gate_up = matrices["gate_up"]
        weights = s.width * (matrices["qkv"] + gate_up) + s.width * (inner + gate_up // 2)
        total += 2.0 * tokens * weights + 4.0 * rows * inner
    return total

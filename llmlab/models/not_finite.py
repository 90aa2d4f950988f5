"""Where a model that computes NaN or infinity begins to, and why: what its refusal names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from llmlab.errors import Refused
from llmlab.models.batch import Batch, Span

PIECE = 256
"""Tokens of the text that are looked at in one pass."""
DAMAGED = "Load another file of this model, and switch off what changes its weights"
OVERFLOWS = "Choose dense-fp32 weights, and switch off what changes its weights"
KEPT = "Switch off what changes its cache, and report it if it stays"


def no_numbers(model: Any, tokens: Sequence[int]) -> Refused:
    """The refusal of a model whose logits after `tokens` are NaN or infinite, with the layer and the likely cause.

    The text is read once more from the start, by a fresh memory, so that what the run had kept cannot mislead.
    """
    with torch.inference_mode():
        where, why, now = model.not_finite(tokens)
    return Refused("The model", f"computes what is no number (NaN or infinity): {where} {why}", now)


def in_decoder(model: Any, tokens: Sequence[int]) -> tuple[str, str, str]:
    """The first layer of our decoder whose output is not finite: (where, why, what now)."""
    memory, L = model.memory(), len(model.layers)
    for batch in _pieces(tokens, memory, model.device):
        h = model.embedding.lookup(batch.tokens)
        if not h.isfinite().all():
            return "its embedding", "holds such values, so its file is damaged", DAMAGED
        model.prepare(batch, few=False)
        for i, block in enumerate(model.layers):
            before = float(h.abs().max())
            h = model.run_layers(h, batch, i, i + 1)
            if not h.isfinite().all():
                return f"layer {i + 1} of {L} is the first,", *_cause(_damaged(block), before)
        if not below_infinity(model.head(h)):
            parts = {"final norm": model.norm.weight, "head": model.embedding.head.dense()}
            damaged = next((name for name, w in parts.items() if not w.isfinite().all()), "")
            return f"the head, behind layer {L} of {L}, is the first,", *_cause(damaged, float(h.abs().max()))
        memory.settle(len(batch.tokens))
    return _kept()


def in_modules(model: Any, tokens: Sequence[int]) -> tuple[str, str, str]:
    """As `in_decoder`, for a wrapped model: the first of its modules, as they finish, whose output is not finite."""
    found: list[tuple[str, str, float]] = []

    def look(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_: Any, given: tuple[Any, ...], out: Any) -> None:
            shown = out[0] if isinstance(out, tuple) and out else out
            if not found and isinstance(shown, Tensor) and shown.is_floating_point() and not below_infinity(shown):
                inputs = [x for x in given if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]
                most = max((float(x.abs().max()) for x in inputs), default=0.0)
                found.append((name or "the whole", _damaged(module), most))

        return hook

    with ExitStack() as undo:
        for name, module in model.hf.named_modules():
            undo.callback(module.register_forward_hook(look(name, module)).remove)
        memory = model.memory()
        for batch in _pieces(tokens, memory, model.device):
            model.forward(batch)
            memory.settle(len(batch.tokens))
    if not found:
        return _kept()
    name, damaged, most = found[0]
    return f"its part {name} is the first,", *_cause(damaged, most)


def _cause(damaged: str, before: float) -> tuple[str, str]:
    if damaged:
        return f"because its {damaged} holds such values: the weights are damaged", DAMAGED
    return f"because numbers as large as {before:.2g} go in and more comes out than its format holds", OVERFLOWS


def _kept() -> tuple[str, str, str]:
    return "every layer", "is finite when the text is read anew, so what the cache kept is not", KEPT


def _pieces(tokens: Sequence[int], memory: Any, device: torch.device) -> Any:
    memory.whole = len(tokens)
    for at in range(0, len(tokens), PIECE):
        ids = torch.tensor(list(tokens[at : at + PIECE]), device=device)
        positions = torch.arange(at, at + len(ids), device=device)
        yield Batch(ids, positions, [Span(0, len(ids), memory, first=at)])


def below_infinity(x: Tensor) -> bool:
    """Whether x holds neither NaN nor +∞; a head may rule words out by −∞."""
    return bool((x < torch.inf).all())


def _damaged(module: nn.Module) -> str:
    """The name of the first of a module's own weights that is not finite; "" where all are, or cannot be looked at."""
    matrices: dict[str, Any] = getattr(module, "linears", dict)()
    for name, linear in matrices.items():
        bias = linear.bias if linear.bias is not None else linear.dense()[:1]
        if not bool(linear.dense().isfinite().all() and bias.isfinite().all()):
            return f"matrix {name}"
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return name
    return ""

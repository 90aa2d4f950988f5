"""Whether a model fits: its size in a weight format beside what is free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from llmlab.errors import Refused
from llmlab.kv.storage import MIRROR_FROM
from llmlab.models import activations
from llmlab.models.config import figure, inner_width, text_of
from llmlab.models.embedding import PIECE as UNPACKED
from llmlab.models.empty import empty_model
from llmlab.models.formats.int4 import int4_kernel
from llmlab.models.formats.onednn import onednn
from llmlab.models.formats.quantized_groups import GROUP
from llmlab.models.formats.registry import FORMATS
from llmlab.models.rope import context_of

BITS = {"dense-fp32": 32.0, "dense-bf16": 16.0, "int8": 8.1, "int4": 5.0, "nf4": 4.5, "bnb-int8": 8.1}
"""Bits that a weight takes in the matrices; the low-bit formats keep embedding and head at 8 bits."""
PIECE = 512
"""Tokens of a prompt that are read in one pass."""
SPARE = 0.4e9
"""Bytes left free for activations, the tokenizer and the page."""


@dataclass(frozen=True)
class Size:
    """What memory depends on. `embeddings`: parameters of the embedding and, untied, of the head. `row`: numbers that
    one token adds to the memory of one layer, keys and values together. The rest is what activations depend on."""

    parameters: int
    embeddings: int
    layers: int
    row: int
    context: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocab: int

    @property
    def head_size(self) -> int:
        return self.row // (2 * self.kv_heads)


def size_of(config: Any) -> Size:
    """The size of any architecture that transformers can build, from its config.

    Raises Refused for a config with absurd figures, before anything is built from it, and for one that cannot be built.
    """
    text = text_of(config)
    limits = {"num_hidden_layers": 256, "hidden_size": 65536, "vocab_size": 2_000_000, "num_attention_heads": 1024}
    for name, most in limits.items():
        value = figure(text, name)
        if not isinstance(value, int) or not 1 <= value <= most:
            raise Refused(
                "The model's config", f"gives {name} as {str(value)[:20]}, not 1 to {most}", "Choose another model"
            )
    try:
        model = empty_model(config)
    except Exception as e:  # a stranger's config can fail in as many ways as there are architectures
        raise Refused(
            f"The architecture {config.model_type}", "cannot be built from this config", "Choose another model"
        ) from e
    embeddings = {
        id(t.weight): t.weight.numel() for t in (model.get_input_embeddings(), model.get_output_embeddings()) if t
    }
    heads = figure(text, "num_key_value_heads") or figure(text, "num_attention_heads")
    head_size = figure(text, "head_dim") or text.hidden_size // figure(text, "num_attention_heads")
    return Size(
        sum(p.numel() for p in model.parameters()),
        sum(embeddings.values()),
        text.num_hidden_layers,
        2 * heads * head_size,
        context_of(text),
        text.hidden_size,
        figure(text, "num_attention_heads"),
        heads,
        inner_width(text),
        text.vocab_size,
    )


def weight_bytes(size: Size, weights: str) -> int:
    """Bytes of the weights in a format, to within a few percent."""
    each = {"dense-fp32": 4, "dense-bf16": 2}.get(weights, 8.5 / 8)
    return int((size.parameters - size.embeddings) * BITS[weights] / 8 + size.embeddings * each)


def copy_bytes(size: Size, weights: str, device: str = "cpu") -> int:
    """Bytes of what `build` keeps beside the weights of a format on this machine where copies are wanted."""
    if weights == "dense-fp32" or device != "cpu":
        return 0
    head, bf16 = size.vocab * size.width, onednn(torch.bfloat16)
    if weights == "dense-bf16":
        return 2 * head if bf16 else 0
    candidates = head * 5 // 8 if int4_kernel("cpu", size.vocab, -(-size.width // GROUP) * GROUP) else 0
    if not bf16:
        return candidates
    return 2 * (size.parameters - size.embeddings) + candidates + (2 * head if candidates else 0)


def kept_copies(size: Size, weights: str, free: int, device: str = "cpu") -> int:
    """Bytes of the copies that will be kept where they are wanted and `free` bytes are free: none that take half."""
    copies = copy_bytes(size, weights, device)
    return copies if copies < free / 2 else 0


def kv_bytes(size: Size, rows: int, weights: str) -> int:
    """Bytes of float32 keys and values for `rows` tokens, and of their bfloat16 mirror where there are many."""
    return size.layers * size.row * rows * (6 if rows > MIRROR_FROM and weights != "dense-fp32" else 4)


def activation_bytes(size: Size, rows: int, weights: str, copies: bool) -> int:
    """Bytes of what passes over `rows` tokens hold beside weights and memory, rotations included."""
    takes = 4 if weights == "dense-fp32" else 2
    reading = activations.prompt_bytes(size, min(rows, PIECE), rows, takes, copies)
    # A row of logits; where an 8-bit head has no copy, it is unpacked piece by piece.
    low_bit = not weights.startswith("dense")
    saying = 12 * size.vocab + (min(UNPACKED, size.vocab) * size.width * 21 // 4 if low_bit and not copies else 0)
    return max(reading, saying) + min(max(1024, 2 * rows), size.context) * size.head_size * 4


@dataclass(frozen=True)
class Fit:
    """The breakdown of a model's memory against what is free, in bytes: the parts that a run reports, by their names.

    Copies are not needed, so they do not count where it is asked whether a model fits.
    """

    weights: int
    copies: int
    kv: int
    activations: int
    free: int

    @property
    def fits(self) -> bool:
        return self.weights + self.kv + max(SPARE, self.activations) <= self.free

    @property
    def parts(self) -> dict[str, int]:
        """What will be held, by the names that a run's memory has."""
        return {"weights": self.weights, "copies": self.copies, "kv": self.kv, "activations": self.activations}


def fit(size: Size, weights: str, rows: int, free: int, copies: bool = False, device: str = "cpu") -> Fit:
    """`rows` tokens of context are counted at most as many as the model reads. `copies`: where they are wanted."""
    rows = min(rows, size.context)
    own, kv = weight_bytes(size, weights), kv_bytes(size, rows, weights)
    kept = kept_copies(size, weights, free, device) if copies else 0
    return Fit(own, kept, kv, activation_bytes(size, rows, weights, kept > 0), free)


def require_fit(
    size: Size,
    weights: str,
    rows: int,
    free: int,
    who: str,
    formats: Iterable[str] = FORMATS,
    others: Mapping[str, Size] | None = None,
    copies: bool = False,
    device: str = "cpu",
) -> Fit:
    """The breakdown. Raises Refused, with it and with what would fit in one of `formats`, for what does not fit.

    `others`: models to choose instead, by title.
    """
    f = fit(size, weights, rows, free, copies, device)
    if f.fits:
        return f
    advice = [f"{w} weights ({size_text(weight_bytes(size, w))})" for w in formats if fit(size, w, rows, free).fits]
    short = next((n for n in (4096, 2048, 1024, 512, 256) if n < rows and fit(size, weights, n, free).fits), None)
    if short:
        advice.append(f"a context of {short} tokens")
    smaller = [title for title, s in (others or {}).items() if fit(s, weights, 1024, free).fits]
    if not advice and smaller:
        advice.append(smaller[-1] if len(smaller) == 1 else f"{smaller[0]} or another small model")
    raise Refused(
        who,
        f"needs {size_text(f.weights)} for its weights ({weights}), {size_text(f.kv)} for keys and values of {rows}"
        f" tokens and {size_text(SPARE)} to work, and {size_text(free)} is free",
        "Choose " + ", or ".join(advice) if advice else "Free some memory first",
    )


def size_text(n: float) -> str:
    """A number of bytes, with three digits or more: a change of one percent shows."""
    if n >= 1e10:
        return f"{n / 1e9:.1f} GB"
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB" if n >= 1e7 else f"{n / 1e6:.1f} MB"


def change_text(before: float, after: float) -> tuple[str, str]:
    """Two numbers of bytes that are set beside each other: in megabytes where both would read the same otherwise."""
    texts = size_text(before), size_text(after)
    if texts[0] != texts[1] or before == after:
        return texts
    return f"{before / 1e6:.1f} MB", f"{after / 1e6:.1f} MB"

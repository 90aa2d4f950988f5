"""Whether a model fits: its size in a weight format beside what is free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmlab.errors import Refused
from llmlab.kv.storage import MIRROR_FROM
from llmlab.models.config import figure, text_of
from llmlab.models.formats.registry import FORMATS
from llmlab.models.rope import context_of

BITS = {"dense-fp32": 32.0, "dense-bf16": 16.0, "int8": 8.1, "int4": 5.0, "nf4": 4.5, "bnb-int8": 8.1}
"""Bits that a weight takes in the matrices; the low-bit formats keep embedding and head at 8 bits."""
SPARE = 0.4e9
"""Bytes left free for activations, the tokenizer and the page."""


@dataclass(frozen=True)
class Size:
    """What memory depends on. `embeddings`: parameters of the embedding and, untied, of the head. `row`: numbers that
    one token adds to the memory of one layer, keys and values together."""

    parameters: int
    embeddings: int
    layers: int
    row: int
    context: int


def size_of(config: Any) -> Size:
    """The size of any architecture that transformers can build, from its config, with accelerate's empty weights.

    Raises Refused for a config with absurd figures, before anything is built from it, and for one that cannot be built.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    text = text_of(config)
    limits = {"num_hidden_layers": 256, "hidden_size": 65536, "vocab_size": 2_000_000, "num_attention_heads": 1024}
    for name, most in limits.items():
        value = figure(text, name)
        if not isinstance(value, int) or not 1 <= value <= most:
            raise Refused(
                "The model's config", f"gives {name} as {str(value)[:20]}, not 1 to {most}", "Choose another model"
            )
    try:
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model.tie_weights()  # emptying gave the head a tensor of its own
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
    )


def weight_bytes(size: Size, weights: str) -> int:
    """Bytes of the weights in a format, to within a few percent."""
    each = {"dense-fp32": 4, "dense-bf16": 2}.get(weights, 8.5 / 8)
    return int((size.parameters - size.embeddings) * BITS[weights] / 8 + size.embeddings * each)


def copy_bytes(size: Size, weights: str) -> int:
    """Bytes of what `Decoder.keep_prefill_copies` keeps beside the weights of a format."""
    if weights == "dense-fp32":
        return 0
    if weights == "dense-bf16":
        return 2 * size.embeddings
    return 2 * (size.parameters - size.embeddings) + size.embeddings * 5 // 8


def kv_bytes(size: Size, rows: int, weights: str) -> int:
    """Bytes of float32 keys and values for `rows` tokens, and of their bfloat16 mirror where there are many."""
    return size.layers * size.row * rows * (6 if rows > MIRROR_FROM and weights != "dense-fp32" else 4)


@dataclass(frozen=True)
class Fit:
    """The breakdown of a model's memory against what is free, in bytes."""

    weights: int
    kv: int
    free: int

    @property
    def fits(self) -> bool:
        return self.weights + self.kv + SPARE <= self.free


def fit(size: Size, weights: str, rows: int, free: int) -> Fit:
    """`rows` tokens of context are counted at most as many as the model reads."""
    return Fit(weight_bytes(size, weights), kv_bytes(size, min(rows, size.context), weights), free)


def require_fit(
    size: Size,
    weights: str,
    rows: int,
    free: int,
    who: str,
    formats: Iterable[str] = FORMATS,
    others: Mapping[str, Size] | None = None,
) -> Fit:
    """The breakdown. Raises Refused, with it and with what would fit in one of `formats`, for what does not fit.

    `others`: models to choose instead, by title.
    """
    f = fit(size, weights, rows, free)
    if f.fits:
        return f
    advice = [f"{w} weights ({gigabytes(weight_bytes(size, w))})" for w in formats if fit(size, w, rows, free).fits]
    short = next((n for n in (4096, 2048, 1024, 512, 256) if n < rows and fit(size, weights, n, free).fits), None)
    if short:
        advice.append(f"a context of {short} tokens")
    smaller = [title for title, s in (others or {}).items() if fit(s, weights, 1024, free).fits]
    if not advice and smaller:
        advice.append(smaller[-1] if len(smaller) == 1 else f"{smaller[0]} or another small model")
    raise Refused(
        who,
        f"needs {gigabytes(f.weights)} for its weights ({weights}), {gigabytes(f.kv)} for keys and values of {rows}"
        f" tokens and {gigabytes(SPARE)} to work, and {gigabytes(free)} is free",
        "Choose " + ", or ".join(advice) if advice else "Free some memory first",
    )


def gigabytes(n: float) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e8 else f"{n / 1e6:.0f} MB"

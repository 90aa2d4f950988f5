"""Scaled rotations, on our decoder and through transformers, on both sides of their limits."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Phi3Config, Qwen2Config, Qwen3Config, StableLmConfig

from llmlab.models.building import build
from llmlab.models.capabilities import Capability
from llmlab.models.decoder import Decoder
from llmlab.models.loading.sources.folder import config_of
from llmlab.models.rope import interleave
from llmlab.models.wrapped.admission import sibling_model
from llmlab.models.wrapped.loading import build as build_wrapped
from llmlab.runtime.piece import forward_pieces
from llmlab.runtime.session import Session
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make
from tests import tiny
from tests.laws import laws
from tests.models.test_families import generated

LIMIT = 32
BASE = {"rope_theta": 10000.0}
ROPE = {
    "default": BASE,
    "linear": BASE | {"factor": 2.0},
    "dynamic": BASE | {"factor": 4.0},
    "yarn": BASE | {"factor": 4.0, "original_max_position_embeddings": LIMIT},
    "llama3": BASE
    | {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": LIMIT,
    },
    "longrope": BASE | {"factor": 4.0, "original_max_position_embeddings": LIMIT},
}
FAMILIES: dict[str, Any] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "phi3": Phi3Config,
    "stablelm": StableLmConfig,
}
PARTIAL = {"phi3": 0.5, "stablelm": 0.25}
CASES = [(f, k, 1.0) for f in FAMILIES if f != "stablelm" for k in ROPE]
CASES += [(f, k, part) for f, part in PARTIAL.items() for k in ROPE]
# Phi-3's class reads a text anew at the limit whatever the rule, but its config forbids this one.
WRITING = [c for c in CASES if c[:2] != ("phi3", "dynamic")]


def config(family: str, kind: str, part: float) -> Any:
    rules = {"rope_type": kind, "partial_rotary_factor": part} | ROPE[kind]
    if kind == "longrope":
        pairs = int(tiny.SIZES["head_dim"] * part) // 2
        rules |= {"short_factor": [1.0 + 0.1 * i for i in range(pairs)], "long_factor": [2.0 + i for i in range(pairs)]}
    sizes = {**tiny.SIZES, "max_position_embeddings": LIMIT if kind == "dynamic" else 4 * LIMIT}
    more = {"original_max_position_embeddings": LIMIT} if family == "phi3" else {}
    made = FAMILIES[family](**sizes, rope_parameters=rules if family != "phi3" or kind == "longrope" else None, **more)
    made.rope_parameters = rules  # Phi-3's config forbids what its code computes
    if family == "mistral":
        made.sliding_window = None
    return made


def referee(family: str, kind: str, part: float) -> Any:
    """A fresh one each time: transformers keeps the angles of the longest text that a model has seen."""
    return sibling_model(config(family, kind, part))


@cache
def model(family: str, kind: str, part: float) -> Decoder:
    """Our decoder with the referee's weights."""
    return build(tiny.StateDict(referee(family, kind, part)), "dense-fp32")


@pytest.fixture(params=CASES, ids=lambda c: f"{c[0]}-{c[1]}-{c[2]}")
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any]:
    """Our model, and a function that makes a fresh referee."""
    family, kind, part = request.param
    fresh = lambda: referee(family, kind, part)  # noqa: E731
    if family != "stablelm":
        return model(family, kind, part), fresh
    fresh().save_pretrained(tmp_path)
    return build_wrapped(str(tmp_path), config_of(tmp_path, "stablelm"), "dense-fp32", "cpu"), fresh


@pytest.mark.parametrize("length", [LIMIT - 3, LIMIT, LIMIT + 1, 3 * LIMIT])
def test_logits_equal_transformers(case: tuple[Any, Any], length: int) -> None:
    ours, fresh = case
    tokens = tiny.prompts(1, length + 5)[0][:length]
    assert laws.reference(ours, fresh(), tokens, [length]) < 1e-4


@pytest.mark.parametrize("case", WRITING, ids=lambda c: f"{c[0]}-{c[1]}-{c[2]}", indirect=True)
@pytest.mark.parametrize("length", [LIMIT - 12, LIMIT - 1, LIMIT, LIMIT + 1, LIMIT + 20])
def test_text_equals_transformers(case: tuple[Any, Any], length: int) -> None:
    """Also where it crosses the limit: at once, soon after the prompt, or in the middle."""
    ours, fresh = case
    prompt = tiny.prompts(1, length + 5, seed=7)[0][:length]
    new = min(30, ours.context - length)
    assert laws.text(ours, prompt, new) == generated(fresh(), prompt, new)


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("policy", [None, "streaming-llm", "h2o"])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_drafts_across_the_limit_change_nothing(family: str, kind: str, policy: str | None, tree: bool) -> None:
    free = {"reposition": False} if policy == "streaming-llm" else {}
    lossy = Stack([make(policy, budget=20, every=5, **free)] if policy else [])
    prompts = [p[: LIMIT - 8] for p in tiny.prompts(2, LIMIT)]
    wrong, seen = laws.scripted(model(family, kind, 1.0), lossy, prompts, 40, tree)
    assert wrong == []
    assert max(accepted for _, accepted in seen) >= 3


def test_positions_cannot_be_moved_where_they_go_by_the_length() -> None:
    assert Capability.ROTARY not in model("llama", "dynamic", 1.0).capabilities
    assert Capability.ROTARY in model("llama", "yarn", 1.0).capabilities


@pytest.mark.parametrize("part", [0.25, 0.5, 0.75])
def test_a_part_of_a_head_keeps_its_order(part: float) -> None:
    order = interleave(32, 16, int(16 * part))
    assert sorted(order.tolist()) == list(range(32))
    assert order[int(16 * part) : 16].tolist() == list(range(int(16 * part), 16))
    made = model("phi3", "default", 0.5)
    assert int((made.rotary.angles == 0).sum()) == 4
    assert torch.equal(made.rotary.scale[made.rotary.angles == 0], torch.ones(4))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_prefix_of_a_shorter_text_is_not_used_again(kind: str) -> None:
    """Its rows were turned for its own length."""
    ours, text = model("llama", kind, 1.0), tiny.prompts(1, 60, seed=9)[0][:48]
    first = Session(ours)
    list(first.prefill(text[:20]))
    second = Session(ours)
    second.memory.copy_from(first.memory)
    second.begin(text, cached=len(first.tokens) - first.uncached)
    while second.unread:
        piece = second.prefill_piece()
        second.prefilled(piece, forward_pieces(ours, [piece], None)[0])
    plain = Session(ours)
    list(plain.prefill(text))
    assert torch.allclose(second.forward().logits, plain.forward().logits, atol=1e-4)

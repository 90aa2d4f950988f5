"""What a pass is said to hold at once, against what is alive when every operation is watched."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from llmlab.kv.attention import scratch
from llmlab.models.building import build
from llmlab.models.decoder import Decoder
from llmlab.models.formats.onednn import onednn
from llmlab.models.kernels.cpu_decode import DecodeWorkspace
from llmlab.runtime.draft import Draft
from llmlab.runtime.events import Committed, Prefilled
from llmlab.runtime.piece import forward_pieces
from llmlab.runtime.session import Session
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make
from tests import tiny
from tests.allocated import Allocated
from tests.laws import laws

CASES = [("dense-fp32", False), ("dense-bf16", False), ("int4", False), ("int4", True), ("int8", False), ("int8", True)]


@cache
def model(weights: str, copies: bool) -> Decoder:
    """Large enough that what passes make stands out: 2 layers, E = 192, F = 512, V = 4096."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes, vocab_size=4096, num_hidden_layers=2, max_position_embeddings=2048)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    decoder = build(tiny.StateDict(made), weights)
    if copies:
        decoder.keep_prefill_copies()
    decoder.rotary.table(2048)
    return decoder


def against(decoder: Any, session: Session, act: Callable[[], Any]) -> float:
    """What the model says that it held, over what tensors were alive, its memory's growth apart."""
    decoder.work.held, before = 0, session.memory.nbytes
    scratch._held.clear()
    with Allocated() as watched:
        act()
    return float(decoder.work.held / (watched.peak - session.memory.nbytes + before))


@pytest.mark.parametrize(("weights", "copies"), CASES)
@pytest.mark.parametrize("rows", [100, 500])
def test_a_piece_of_a_prompt(weights: str, copies: bool, rows: int) -> None:
    if weights != "dense-fp32" and not onednn(torch.bfloat16):
        pytest.skip("this processor has no products in bfloat16")
    decoder = model(weights, copies)
    session = Session(decoder)
    session.begin([5, 7, 9, 11] * (rows // 4) + [5])
    piece = session.prefill_piece()
    assert 0.8 < against(decoder, session, lambda: forward_pieces(decoder, [piece], None)) < 1.25


@pytest.mark.parametrize(("weights", "copies"), CASES)
@pytest.mark.parametrize("nodes", [0, 3, 7])
def test_a_pass_of_a_few_rows(weights: str, copies: bool, nodes: int) -> None:
    if weights != "dense-fp32" and not onednn(torch.bfloat16):
        pytest.skip("this processor has no products in bfloat16")
    decoder = model(weights, copies)
    session = Session(decoder)
    list(session.prefill([5, 7, 9, 11] * 20))
    draft = Draft.chain(list(range(3, 3 + nodes)), [None] * nodes)
    session.forward(draft)  # its buffers are made once
    session.take_back()
    assert 0.7 < against(decoder, session, lambda: session.forward(draft)) < 1.3


def test_a_long_memory_counts(llama: Decoder) -> None:
    """Scores grow with the rows that are looked at."""
    held = []
    for rows in (40, 200):
        session = Session(llama)
        list(session.prefill(tiny.text(rows)))
        llama.work.held = 0
        session.forward(Draft.chain([3] * 7, [None] * 7))
        held.append(llama.work.held)
        session.take_back()
    assert held[1] > held[0]


def test_buffers_of_passes_are_counted_to_the_byte(llama: Decoder) -> None:
    decoder = llama.private_copy()
    session = Session(decoder)
    list(session.prefill(tiny.text(30)))
    for nodes in (0, 2, 5):
        session.forward(Draft.chain([3] * nodes, [None] * nodes))
        session.take_back()
    kept = [decoder.rotary.table(1), *decoder._workspaces.values()]
    assert len(decoder._workspaces) == 3
    assert decoder.buffer_bytes == sum(map(_bytes, kept))


def _bytes(thing: Any) -> int:
    """Of the tensors that a workspace holds, each memory once, its model's own apart."""
    if isinstance(thing, torch.Tensor):
        return thing.untyped_storage().nbytes()
    assert isinstance(thing, DecodeWorkspace)
    found: dict[int, int] = {}
    waiting = [v for k, v in vars(thing).items() if k not in ("blocks", "shape")]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict | list | tuple):
            waiting += value.values() if isinstance(value, dict) else value
    return sum(found.values())


@pytest.mark.parametrize("id", [None, "draft-model", "eagle", "layer-skip", "early-exit"])
def test_every_event_says_what_was_held(llama: Decoder, id: str | None) -> None:
    decoder, tools = llama.private_copy(), tiny.tools()
    stack = Stack([make(id)] if id else [])
    held = 0
    for e in laws.run(decoder, tiny.prompts(1, 30)[0], 10, stack, tools=tools):
        if isinstance(e, Prefilled | Committed):
            assert e.activation_bytes > 0
            held = e.activation_bytes
    assert held > decoder.buffer_bytes

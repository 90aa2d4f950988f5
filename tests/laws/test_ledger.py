"""Every byte is on the meter, once: the model's, those of drafters and parts beside it, and what each remembers."""

from __future__ import annotations

import gc
from types import BuiltinFunctionType, FrameType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from llmlab.models.building import build
from llmlab.models.decoder import Decoder
from llmlab.models.formats.linear import MANY
from llmlab.models.formats.onednn import OneDnnWeight, onednn
from llmlab.runtime.events import Committed, Drafted, Started
from llmlab.runtime.generate import generate
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make, registry
from llmlab.runtime.tools import Tools
from tests import tiny
from tests.laws import laws

PROMPT = tiny.prompts(1, 30)[0]
CODE = (ModuleType, FunctionType, BuiltinFunctionType, MethodType, FrameType, GeneratorType, type)
EXITS = {"early-exit": {"head": "trained", "threshold": 0.5}, "hash-exit": {"head": "trained"}}


def found(*roots: Any) -> dict[int, int]:
    """Bytes by address of all tensors that the interpreter's own references lead to; code and its globals apart."""
    seen: set[int] = set()
    sizes: dict[int, int] = {}
    waiting = list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, CODE):
            continue
        seen.add(id(thing))
        if isinstance(thing, OneDnnWeight):
            sizes[id(thing.weight)] = thing.nbytes
        elif isinstance(thing, Tensor):
            if thing.layout == torch._mkldnn:
                sizes[id(thing)] = thing.numel() * thing.element_size()
            elif thing.numel():
                sizes[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        else:
            waiting += gc.get_referents(thing)
    return sizes


def balance(stack: Stack, weights: str = "dense-fp32") -> tuple[int, int]:
    """(bytes reported, bytes found) beside the model after a run's tenth pass, which is still under way."""
    base = tiny.decoder("llama", weights)
    tools = Tools(None, lambda name: tiny.decoder("llama", name).private_copy(), tiny.text(300), tiny.parts)
    model = laws.changed(base, stack, tools) if stack.with_role("WeightTransform") else base.private_copy()
    run = generate(model, PROMPT, 40, stack, tools=tools)
    passes = 0
    for e in run:
        if isinstance(e, Started):
            weight_bytes, auxiliary = e.weight_bytes, e.auxiliary_bytes
        if isinstance(e, Committed):
            passes += 1
            if passes == 10:
                break
    assert weight_bytes == model.nbytes + auxiliary
    known = found(model.embedding, model.layers, model.norm, model.rotary, model.rotary._kept, model._bound)
    beside = {at: n for at, n in found(tools._partners, tools._held).items() if at not in known}
    for decoder in laws.decoders(tools._partners, tools._held):  # buffers of passes belong to no run
        own = found(decoder.layers, decoder.embedding, decoder.norm, decoder.rotary.angles, decoder.rotary.scale)
        for at in (
            found(decoder._workspaces, decoder.rotary._kept, decoder._bound, model._workspaces).keys() - own.keys()
        ):
            beside.pop(at, None)
    run.close()
    return auxiliary, sum(beside.values())


@pytest.mark.parametrize("weights", ["dense-fp32", "int4"])
@pytest.mark.parametrize("id", [id for id, cls in registry().items() if cls.role in ("Drafter", "LayerPlan")])
def test_every_weight_beside_the_model_is_counted_once(id: str, weights: str) -> None:
    technique = make(id, **EXITS[id]) if id in EXITS else laws.sharp(id)
    reported, there = balance(Stack([technique]), weights)
    assert reported == there
    if id in ("draft-model", "eagle", "draft-heads", *EXITS):
        assert reported > 0


def test_a_draft_model_adds_its_own_bytes(llama: Any) -> None:
    """What the report of a run says beside the baseline's, and that two drafters of one model are counted once."""
    half = tiny.decoder("llama", "int8")
    reported, _ = balance(Stack([make("draft-model", model="int8")]))
    shared = half.nbytes - sum(t.nbytes for t in ())
    assert reported == shared


def wide_head(weights: str, seed: int) -> Decoder:
    """A tiny model whose vocabulary, 128 words, suits the kernels that quick forms of the head are for."""
    torch.manual_seed(seed)
    config = LlamaConfig(**{**tiny.SIZES, "vocab_size": 128}, tie_word_embeddings=True)
    return build(tiny.StateDict(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()), weights)


@pytest.mark.parametrize("weights", ["dense-bf16", "int8", "int4"])
def test_copies_are_counted_from_the_start_the_drafters_too(weights: str) -> None:
    """Whatever widths its passes then have: nothing is made on the way that was not told of at the beginning."""
    model, partner = wide_head(weights, 0), wide_head(weights, 1)
    lean = model.nbytes
    for decoder in (model, partner):
        decoder.keep_prefill_copies()
    tools = Tools(None, lambda name: partner, tiny.text(300), tiny.parts)
    stack = Stack([make("draft-model", model="int8", length=16, confidence=0.0)])
    started = None
    widest = 0
    for e in generate(model, PROMPT, 40, stack, tools=tools):
        if isinstance(e, Started):
            started = e
        if isinstance(e, Drafted):
            widest = max(widest, len(e.tokens))
    assert started is not None
    assert widest >= MANY, "a pass as wide as those that would make a copy"
    own = found(model.embedding, model.layers, model.norm, model.rotary.angles, model.rotary.scale)
    theirs = found(partner.embedding, partner.layers, partner.norm, partner.rotary.angles, partner.rotary.scale)
    assert started.weight_bytes == sum((own | theirs).values())
    assert started.auxiliary_bytes == sum(n for at, n in theirs.items() if at not in own)
    if onednn(torch.bfloat16):
        assert started.copies_bytes == model.copied_bytes > 0
        assert started.weight_bytes - started.auxiliary_bytes - started.copies_bytes == lean


def test_a_matrix_that_was_replaced_is_used_at_once() -> None:
    """Both ways of replacing one, and in every kind of pass that the engine has a kernel for."""
    for weights in ("dense-fp32", "int4"):
        model, tokens = tiny.decoder("llama", weights).private_copy(), tiny.text(40)
        for pieces in ([1] * 40, [40], [30, 5, 5]):
            before = laws.logits(model, tokens, pieces)
            for block in model.layers:
                zero = torch.zeros_like(block.linears()["qkv"].dense())
                block.replace("qkv", type(block.linears()["qkv"])(zero, *args_of(weights)))
            assert not torch.allclose(laws.logits(model, tokens, pieces), before, atol=1e-3)
            model = tiny.decoder("llama", weights).private_copy()
            laws.logits(model, tokens, pieces)
            for block in model.layers:
                block.store("out", torch.zeros_like(block.linears()["out"].dense()))
            after = laws.logits(model, tokens, pieces)
            assert torch.allclose(after, laws.logits(model.reference_copy(), tokens, pieces), atol=0.05)
            assert not torch.allclose(after, before, atol=1e-3)
            model = tiny.decoder("llama", weights).private_copy()


def args_of(weights: str) -> tuple[Any, ...]:
    return (torch.float32,) if weights == "dense-fp32" else ()


def test_an_unknown_matrix_is_not_replaced_in_silence() -> None:
    block = tiny.decoder("llama").private_copy().layers[0]
    with pytest.raises(KeyError, match="no matrix called 'qvk'; it has qkv, out, gate_up, down"):
        block.replace("qvk", block.linears()["qkv"])

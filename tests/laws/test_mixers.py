"""Every mixer: read at once, in pieces or token by token it says the same, sees no future, and can be taken back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmlab.models.decoder import Decoder
from llmlab.models.mixers.attention import Attention
from llmlab.models.mixers.linear_attention import LinearAttention
from llmlab.models.mixers.mixer import Mixer
from llmlab.runtime.draft import Draft
from llmlab.runtime.session import Session
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make
from tests import tiny
from tests.laws import laws
from tests.laws.test_fast import CHAINS, TREES, passes

TOKENS = tiny.prompts(1, 60, seed=3)[0]
MIXERS = ("attention", "linear-attention")


def model_of(mixer: str, weights: str = "dense-fp32", layers: int = 2) -> Decoder:
    """A tiny model of which some layers have the mixer."""
    model = tiny.decoder("llama", weights).private_copy()
    if mixer == "linear-attention":
        make("linear-attention", layers=layers).apply(model, tiny.tools())
    return model


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def spread(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.std())


@pytest.mark.parametrize("mixer", MIXERS)
def test_at_once_in_pieces_and_token_by_token_are_the_same(mixer: str) -> None:
    model = model_of(mixer)
    whole = laws.logits(model, TOKENS, [len(TOKENS)])
    for pieces in ([1] * len(TOKENS), [20, 1, 1, 17, 3, len(TOKENS) - 42]):
        assert spread(laws.logits(model, TOKENS, pieces), whole) < 1e-4


@pytest.mark.parametrize("mixer", MIXERS)
def test_nobody_sees_the_future(mixer: str) -> None:
    model = model_of(mixer)
    other = [*TOKENS[:30], *[(t + 1) % tiny.VOCAB for t in TOKENS[30:]]]
    same, changed = (laws.logits(model, tokens, [len(tokens)]) for tokens in (TOKENS, other))
    assert torch.allclose(same[:30], changed[:30], atol=1e-5)
    assert not torch.allclose(same[30:], changed[30:], atol=1e-2)


@pytest.mark.parametrize("weights", ["dense-fp32", "dense-bf16", "int4"])
@pytest.mark.parametrize("drafts", [CHAINS, TREES], ids=["chain", "tree"])
def test_passes_with_drafts_leave_a_state_as_passes_without(weights: str, drafts: list[Draft]) -> None:
    """Rejected tokens leave no trace in a sum, and accepted ones are added in the same order: below float32 to the bit,
    as everything else is there."""
    same = torch.equal if weights != "dense-fp32" else close
    model = model_of("linear-attention", weights, layers=4)
    want, alone = passes(model, Stack(), TOKENS[:50], [Draft()])
    got, together = passes(model, Stack(), TOKENS[:50], drafts)
    assert [i for i, (a, b) in enumerate(zip(got, want, strict=True)) if not same(a, b)] == []
    for a, b in zip(alone.memory.layers, together.memory.layers, strict=True):
        assert same(a.S, b.S)
        assert same(a.z, b.z)


@pytest.mark.parametrize("drafter", ["prompt-lookup", "self-speculation", "layer-skip", "eagle", "suffix-matching"])
def test_speculation_over_a_state_is_lossless(drafter: str) -> None:
    prompts = tiny.prompts(3, 21)
    linear = make("linear-attention", layers=2)
    want = laws.texts(tiny.decoder("llama"), Stack([linear]), prompts, 24, tiny.tools)
    assert laws.texts(tiny.decoder("llama"), Stack([linear, laws.sharp(drafter)]), prompts, 24, tiny.tools) == want


def test_a_state_takes_the_same_memory_whatever_the_text(llama: Decoder) -> None:
    model = model_of("linear-attention", layers=4)
    sizes = []
    for n in (10, 200):
        session = Session(model)
        list(session.prefill(tiny.text(n)))
        sizes.append(session.memory.nbytes)
        assert session.memory.rows() == [0] * 4
        assert session.memory.nbytes == laws.tensor_bytes(session.memory)
    assert sizes[0] == sizes[1]


def test_a_model_can_do_what_all_its_layers_can() -> None:
    assert model_of("attention").capabilities == Attention.capabilities
    assert model_of("linear-attention", layers=1).capabilities == LinearAttention.capabilities
    assert LinearAttention.capabilities < Attention.capabilities


def test_mixers_are_mixers() -> None:
    s = tiny.decoder("llama").shape
    parts = tiny.decoder("llama").layers[0].linears()
    for mixer in (Attention(s, None, parts["qkv"], parts["out"]), LinearAttention(s, parts["qkv"], parts["out"])):
        checked: Mixer = mixer
        assert set(checked.linears()) == {"qkv", "out"}
        assert checked.flops(7) > 0

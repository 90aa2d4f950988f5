"""Widths that suit no kernel: every format and both tables give the product of their own dense matrix, or something
near it, at any size; nothing is read past its end, and what is no number stays in its row."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, Qwen3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from llmlab.errors import Refused
from llmlab.models.building import build
from llmlab.models.decoder import Decoder
from llmlab.models.embedding import EmbeddingAndHead, Int8Table
from llmlab.models.formats.linear import Linear
from llmlab.models.formats.quantized_groups import QuantizedGroups
from llmlab.models.formats.registry import FORMATS, make_linear
from llmlab.runtime.sampling import Sampler
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make
from tests import tiny
from tests.laws import laws

ROWS = (1, 2, 3, 4, 5, 17, 40)
WIDTHS = (72, 100, 104, 172, 3, 1, 33, 15, 17)
OUTPUTS = (64, 72, 100, 3, 1)
LOW = [w for w in FORMATS if w != "dense-fp32"]


def matrix(M: int, K: int, seed: int = 0) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    return torch.randn(M, K, generator=dice) * torch.rand(M, 1, generator=dice).add(0.1) + 0.3


def inputs(N: int, K: int) -> Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(N))


def off(got: Tensor, x: Tensor, module: Linear, weights: str) -> float:
    """By how many times what rounding the inputs and the product may cost `got` differs from the dense product."""
    W = module.dense()
    bound = {"dense-fp32": 2**-16}.get(weights, 2**-6) * F.linear(x.abs(), W.abs()) + 1e-5
    if weights == "bnb-int8":  # the inputs too are rounded to 8 bits, in steps of a 127th of their row's largest
        bound += F.linear(x.abs().amax(1, keepdim=True).expand_as(x) / 127, W.abs())
    return float(((got - F.linear(x, W)).abs() / bound).max())


# Matrices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("K", WIDTHS)
def test_a_product_of_any_width(weights: str, K: int) -> None:
    for M in OUTPUTS:
        W = matrix(M, K)
        module = make_linear(W, weights)
        assert (module.inputs, module.outputs) == (K, M) == tuple(module.dense().shape)[::-1]
        assert (module.dense() - W).abs().max() < 0.3 * W.abs().max()
        for copies in (False, True):
            if copies:
                module.keep_copy(2)
            for N in ROWS:
                x = inputs(N, K)
                for got in (module(x), module.rowwise(x)):
                    assert got.shape == (N, M)
                    assert off(got, x, module, weights) < 1, (M, N, copies)


@pytest.mark.parametrize("weights", LOW)
@pytest.mark.parametrize("size", [(72, 100), (100, 72), (3, 104), (64, 172), (1, 33), (97, 1)])
def test_a_row_of_any_width_gets_the_same_bits_in_any_company(weights: str, size: tuple[int, int]) -> None:
    module = make_linear(matrix(*size), weights)
    x = inputs(40, size[1])
    alone = torch.cat([module.rowwise(row) for row in x.split(1)])
    for N in ROWS:
        assert torch.equal(module.rowwise(x[:N]), alone[:N]), N


@pytest.mark.parametrize("weights", FORMATS)
def test_what_is_stored_later_may_have_another_width(weights: str) -> None:
    module = make_linear(matrix(72, 64), weights)
    module.keep_copy()
    for K in (100, 72, 96):
        W = matrix(72, K, seed=K)
        module.store(W)
        x = inputs(17, K)
        assert module.inputs == K
        assert off(module(x), x, module, weights) < 1
        assert off(copy.deepcopy(module)(x), x, module, weights) < 1


@pytest.mark.parametrize("group", [16, 32, 64])
def test_codes_of_any_group_go_into_int4(group: int) -> None:
    codes = QuantizedGroups.of(matrix(64, 3 * group), 4, group)
    module, x = make_linear(codes, "int4"), inputs(5, 3 * group)
    assert (module.dense() - codes.dense()).abs().max() < 0.1 * codes.dense().abs().max()
    assert off(module(x), x, module, "int4") < 1


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("K", [64, 72])
def test_matrices_of_nothing_of_giants_and_of_no_numbers(weights: str, K: int) -> None:
    x = inputs(5, K)
    zero = make_linear(torch.zeros(8, K), weights)
    assert not zero.dense().any()
    assert not zero(x).any()
    large = make_linear(matrix(8, K) * 1e9, weights)
    assert off(large(x), x, large, weights) < 1
    broken = matrix(8, K)
    broken[3, 5], broken[6] = torch.nan, torch.inf
    got = make_linear(broken, weights)(x)
    assert not got[:, [3, 6]].isfinite().any()
    assert got[:, [0, 1, 2, 4, 5, 7]].isfinite().all()


# Tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("E", [72, 100, 172, 3, 1])
@pytest.mark.parametrize("V", [97, 5, 1000, 64, 4096])
def test_tables_of_any_size(weights: str, E: int, V: int) -> None:
    W = matrix(V, E)
    tables = EmbeddingAndHead(W, None, weights)
    tables.keep_candidate_head()
    stored, h = tables.head.dense(), inputs(40, E)
    assert torch.equal(tables.lookup(torch.tensor([0, V - 1])), stored[[0, V - 1]])
    for N in ROWS:
        want = F.linear(h[:N], stored)
        assert torch.allclose(tables.logits(h[:N]), want, atol=1e-4, rtol=1e-4)
        got = tables.logits(h[:N], 32)
        assert got.shape == (N, V)
        assert (got.gather(1, want.argmax(1, True)) - want.amax(1, keepdim=True)).abs().max() < 1e-3 * want.abs().max()
        near = 0.1 * h[:N].abs().sum(1, keepdim=True) * stored.abs().amax(1)  # 4 bits
        assert ((got - want).abs() <= near + 1e-4).all()


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1.0, 1e6, 1e12])
def test_a_table_of_8_bits_holds_numbers_of_any_size(size: float) -> None:
    W = matrix(64, 72) * size
    assert ((Int8Table(W).dense() - W).abs() <= W.abs().amax(1, keepdim=True) / 250).all()
    W[5] = torch.nan
    table = Int8Table(W).dense()
    assert table[5].isnan().all()
    assert table[[4, 6]].isfinite().all()


def test_a_table_of_nothing() -> None:
    for weights in FORMATS:
        tables = EmbeddingAndHead(torch.zeros(64, 72), None, weights)
        tables.keep_candidate_head()
        assert not tables.logits(inputs(2, 72), 8).any()


# Models ---------------------------------------------------------------------------------------------------------

MODELS = {
    "72 and 144": {"hidden_size": 72, "intermediate_size": 144, "head_dim": 16},
    "64 and 100": {"hidden_size": 64, "intermediate_size": 100, "head_dim": 16},
    "104 and 128": {"hidden_size": 104, "intermediate_size": 128, "head_dim": 26, "vocab_size": 1000},
    "heads of 6": {"hidden_size": 24, "intermediate_size": 40, "head_dim": 6, "vocab_size": 5},
    "heads of 2": {"hidden_size": 36, "intermediate_size": 7, "head_dim": 2},
}
TOLERANCE = {"dense-fp32": 1e-3, "dense-bf16": 0.06, "int8": 0.08, "bnb-int8": 0.15, "int4": 0.6, "nf4": 0.7}


def reference(name: str, kind: type = LlamaConfig) -> AutoModelForCausalLM:
    config = kind(**{**tiny.SIZES, "num_hidden_layers": 2, **MODELS[name]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    dice = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for path, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=dice)
            p.copy_(noise if "embed" in path else noise * 1.2 / p.shape[-1] ** 0.5 if p.dim() > 1 else 1 + 0.1 * noise)
    return model


def decoder(name: str, weights: str, copies: bool = False, kind: type = LlamaConfig) -> Decoder:
    return build(tiny.StateDict(reference(name, kind)), weights, copies=copies)


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("copies", [False, True], ids=["lean", "copies"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_odd_sizes(name: str, weights: str, copies: bool) -> None:
    """One token after the other, a few at once and many, against transformers, and each other."""
    model, vocab = decoder(name, weights, copies), MODELS[name].get("vocab_size", tiny.VOCAB)
    ids = torch.randint(0, int(vocab), (45,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        want = reference(name)(torch.tensor([ids])).logits[0, -1]
    for pieces in ([1] * 45, [40, 5], [45], [5] * 9, [28, 17]):
        y = laws.logits(model, ids, pieces)[-1]
        error = (y - want).norm() / want.norm()
        assert error < TOLERANCE[weights], (pieces, float(error))


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config])
@pytest.mark.parametrize("name", ["72 and 144", "104 and 128"])
def test_speculation_on_odd_sizes_changes_no_token(name: str, weights: str, kind: type) -> None:
    """Below float32 as well: a row's bits are what they would be alone."""
    model = decoder(name, weights, True, kind)
    prompts = [[t % 97 for t in p] for p in tiny.prompts(5, 17)]
    for tree in (False, True):
        wrong, _ = laws.scripted(model, Stack(), prompts, 20, tree, most=6)
        assert wrong == []


@pytest.mark.parametrize("ratio", [0.37, 0.9])
@pytest.mark.parametrize("weights", FORMATS)
def test_neurons_are_removed_from_odd_sizes(weights: str, ratio: float) -> None:
    stack = Stack([make("neuron-drop", ratio=ratio)])
    model = laws.changed(decoder("64 and 100", weights), stack, tiny.tools())
    assert len(laws.text(model, tiny.prompts(1, 9)[0], 6)) == 6


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("sampler", [Sampler(), Sampler(1.0)], ids=["greedy", "sampled"])
def test_a_model_of_no_numbers_is_refused_in_a_sentence(weights: str, sampler: Sampler) -> None:
    model = decoder("72 and 144", weights)
    model.layers[1].store("down", torch.full((72, 144), torch.nan))
    with pytest.raises(Refused, match=r"no number.*layer 2 of \d is the first, because its matrix down"):
        laws.text(model, [1, 2, 3], 4, sampler=sampler)

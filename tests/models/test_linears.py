"""Weight formats: each against the dense matrix that its own codes stand for, and its bytes against its tensors."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.models.embedding import EmbeddingAndHead, Int8Table
from llmlab.models.formats import dense, linear, nf4, onednn
from llmlab.models.formats.dense import Dense
from llmlab.models.formats.int4 import Int4
from llmlab.models.formats.int8 import Int8
from llmlab.models.formats.linear import nbytes
from llmlab.models.formats.nf4 import Nf4
from llmlab.models.formats.quantized_groups import GROUP, QuantizedGroups, Zero, stacked
from llmlab.models.formats.registry import FORMATS, make_linear
from llmlab.models.kernels import topk
from tests import tiny
from tests.laws import laws

ROWS = (1, 2, 4, 5, 16, 17, 40)


def matrix(M: int, K: int, seed: int = 0) -> torch.Tensor:
    dice = torch.Generator().manual_seed(seed)
    return torch.randn(M, K, generator=dice) * torch.rand(M, 1, generator=dice).add(0.1) + 0.3


def inputs(N: int, K: int) -> torch.Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(N))


# Codes ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.floats(-3, 3), st.floats(-4, 2))
def test_a_code_is_within_half_a_step(seed: int, shift: float, scale: float) -> None:
    W = matrix(3, 2 * GROUP, seed) * 10**scale + shift
    codes = QuantizedGroups.of(W)
    assert codes.q.dtype == torch.uint8
    assert codes.q.max() <= 15
    step = (codes.d / 2).repeat_interleave(GROUP, 1)
    assert ((codes.dense() - W).abs() <= step * 1.001 + W.abs().max() * 1e-5).all()


def test_codes_hold_the_ends_of_each_group_and_constant_groups() -> None:
    W = matrix(4, 64)
    W[0, :GROUP] = 0.7
    W[1] = 0
    back, groups = QuantizedGroups.of(W).dense(), W.view(4, 2, GROUP)
    assert torch.allclose(back.view(4, 2, GROUP).amin(-1), groups.amin(-1), atol=1e-6)
    assert torch.allclose(back.view(4, 2, GROUP).amax(-1), groups.amax(-1), atol=1e-6)
    assert torch.equal(back[0, :GROUP], W[0, :GROUP])
    assert torch.equal(back[1], W[1])


def test_coding_twice_changes_nothing() -> None:
    once = QuantizedGroups.of(matrix(5, 96))
    assert torch.equal(QuantizedGroups.of(once.dense()).q, once.q)


def test_a_hand_made_code() -> None:
    codes = QuantizedGroups(
        torch.arange(GROUP, dtype=torch.uint8)[None] % 16, torch.tensor([[0.5]]), torch.tensor([[-2.0]])
    )
    assert codes.dense()[0, :4].tolist() == [-2.0, -1.5, -1.0, -0.5]
    assert codes.shape == (1, GROUP)


# Formats --------------------------------------------------------------------------------------------------------

SHAPES = {"kernel": (128, 64), "plain": (96, 64), "wide": (64, 160), "odd rows": (7, 32)}


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
def test_a_product_is_that_of_its_dense_matrix(weights: str, size: tuple[int, int]) -> None:
    W = matrix(*size)
    bias = torch.randn(size[0])
    module = make_linear(W, weights, bias)
    for N in ROWS:
        x = inputs(N, size[1])
        got, want = module(x), F.linear(x, module.dense(), bias)
        assert got.shape == want.shape
        assert got.dtype == torch.float32
        # The products take their inputs in bfloat16: 8 bits of mantissa, on each term.
        bound = 1e-5 if weights == "dense-fp32" else 2**-6 * F.linear(x.abs(), W.abs())
        assert ((got - want).abs() <= bound + 1e-5).all()


@pytest.mark.parametrize(
    ("weights", "worst"), [("dense-fp32", 0), ("dense-bf16", 2**-8), ("int8", 1 / 127), ("int4", 1 / 14)]
)
@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
def test_dense_is_near_what_was_stored(weights: str, worst: float, size: tuple[int, int]) -> None:
    W = matrix(*size)
    module = make_linear(W, weights)
    assert ((module.dense() - W).abs() <= worst * W.abs().amax(1, keepdim=True) + 1e-7).all()
    other = matrix(*size, seed=1)
    module.store(other)
    assert ((module.dense() - other).abs() <= worst * other.abs().amax(1, keepdim=True) + 1e-7).all()


def test_nf4_is_near_what_was_stored() -> None:
    W = matrix(64, 128)
    error = (Nf4(W).dense() - W).norm() / W.norm()
    assert 0.01 < error < 0.12


@pytest.mark.parametrize("size", [(64, 128), (96, 64), (576, 1536)])
def test_nf4_in_the_order_of_its_kernel_is_nf4(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    """The codes stay what they are and the blocks' maxima are rounded to bfloat16; the products differ by no more."""
    W, x = matrix(*size), inputs(5, size[1])
    if not nf4._nf4_kernel(*size):
        pytest.skip("this processor has no such kernel")
    fast = Nf4(W)
    with monkeypatch.context() as patch:
        patch.setattr(nf4, "_nf4_kernel", lambda M, K: False)
        plain = Nf4(W)
    assert (fast.blocked, plain.blocked) == (True, False)
    codes, state = fast._plain()
    assert torch.equal(codes, plain.packed)
    assert torch.equal(state.absmax, plain.state.absmax.bfloat16().float())
    assert ((fast.dense() - plain.dense()).abs() <= 2**-7 * plain.dense().abs()).all()
    assert ((fast(x) - plain(x)).abs() <= 2**-6 * F.linear(x.abs(), W.abs())).all()
    assert nbytes(fast) == size[0] * size[1] // 2 + size[0] * size[1] // 64 * 2 + 16 * 4
    assert torch.equal(copy.deepcopy(fast)(x), fast(x))


def test_nf4_that_leaves_the_processor_is_in_the_usual_order() -> None:
    module = Nf4(matrix(64, 128))
    module._apply(lambda t: t.to("meta"))
    assert not module.blocked
    assert module.packed.is_meta
    assert module.packed.shape == (64 * 128 // 2, 1)
    assert module.state.absmax.shape == (64 * 128 // 64,)


@pytest.mark.parametrize("M", [64, 96, 7], ids=["kernel", "plain", "odd"])
def test_int4_keeps_the_codes_of_a_file(M: int) -> None:
    """Scale and minimum go to bfloat16; the codes themselves stay as they are."""
    codes = QuantizedGroups.of(matrix(M, 96))
    module = Int4(codes)
    assert module.kernel == ("cpu" if M % 64 == 0 else "")
    bound = 2**-7 * (codes.d.abs() * 15 + codes.m.abs()).repeat_interleave(GROUP, 1)
    assert ((module.dense() - codes.dense()).abs() <= bound).all()
    scale = codes.d.bfloat16().float().repeat_interleave(GROUP, 1)
    zero = (codes.m + 8 * codes.d).bfloat16().float().repeat_interleave(GROUP, 1)
    exact = scale * (codes.q.float() - 8) + zero
    assert torch.allclose(module.dense(), exact, atol=float(2**-8 * exact.abs().max()))


def test_both_paths_of_int4_agree() -> None:
    W = matrix(128, 64)
    fast, plain = Int4(W), Int4(W[:96])
    x = inputs(5, 64)
    assert fast.kernel
    assert not plain.kernel
    assert torch.allclose(fast(x)[:, :96], plain(x), atol=0.05, rtol=0.02)


def test_int8_holds_a_row_of_nothing() -> None:
    W = matrix(8, 64)
    W[3] = 0
    module = Int8(W)
    assert torch.equal(module.dense()[3], torch.zeros(64))
    assert module(inputs(2, 64)).isfinite().all()


# Bytes ----------------------------------------------------------------------------------------------------------


def existing(module: torch.nn.Module) -> int:
    """Bytes of the storages, found by looking; of a matrix in oneDNN's opaque layout, of its numbers."""
    kept = list(module.modules())
    states = [m.state for m in kept if hasattr(m, "state")]
    opaque = [r for m in kept for r in (*getattr(m, "copy", ()), getattr(m, "reordered", None)) if r]
    sizes = {id(r): r.weight.numel() * r.weight.element_size() for r in opaque}
    return laws.tensor_bytes(*module.buffers(), *((s.absmax, s.code) for s in states)) + sum(sizes.values())


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
def test_bytes_reported_are_bytes_that_exist(weights: str, size: tuple[int, int]) -> None:
    module = make_linear(matrix(*size), weights, torch.zeros(size[0]))
    assert nbytes(module) == existing(module) > size[0] * 4
    module.keep_copy()
    assert nbytes(module) == existing(module)


def test_bytes_by_hand() -> None:
    W = matrix(64, 64)
    assert nbytes(Dense(W, torch.float32)) == 64 * 64 * 4
    assert nbytes(Dense(W, torch.bfloat16)) == 64 * 64 * 2
    assert nbytes(Int8(W)) == 64 * 64 + 64 * 2
    assert nbytes(Int4(W)) == 64 * 64 // 2 + 64 * 2 * 2 * 2  # a scale and a minimum of 2 bytes for each of 2 groups
    assert nbytes(Int4(W[:32])) == 32 * 64 // 2 + 32 * 2 * 2 * 2


@pytest.mark.parametrize("weights", FORMATS)
def test_a_models_bytes(weights: str) -> None:
    model = copy.deepcopy(tiny.decoder("llama-plain", weights))
    lean = model.nbytes
    assert lean == existing(model)
    assert model.copied_bytes == 0
    model.keep_prefill_copies()
    assert model.nbytes == existing(model)
    assert model.copied_bytes == model.nbytes - lean


def test_a_tied_table_is_counted_once() -> None:
    tied, free = tiny.decoder("llama-plain"), tiny.decoder("llama")
    assert free.nbytes - tied.nbytes == tiny.VOCAB * 64 * 4


# A few rows, and many ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [w for w in FORMATS if w != "dense-fp32"])
@pytest.mark.parametrize("size", [(128, 64), (64, 1536), (576, 1536)])
def test_a_row_gets_the_same_bits_in_any_company(weights: str, size: tuple[int, int]) -> None:
    product = make_linear(matrix(*size), weights).few()
    x = inputs(40, size[1]).bfloat16()
    alone = torch.cat([product(row) for row in x.split(1)])
    for N in (2, 3, 4, 5, 8, 9, 17, 40):
        assert torch.equal(product(x[:N]), alone[:N]), N


@pytest.mark.parametrize("weights", ["int8", "int4", "nf4"])
def test_a_copy_multiplies_many_rows_and_follows_what_is_stored(weights: str) -> None:
    if not onednn.onednn(torch.bfloat16):
        pytest.skip("oneDNN does not multiply bfloat16 on this processor, and no copy is kept")
    W, x = matrix(128, 64), inputs(40, 64)
    module = make_linear(W, weights)
    before = nbytes(module)
    module.keep_copy(2)
    assert [part.weight.shape for part in module.copy] == [(64, 64)] * 2
    assert nbytes(module) == before + 128 * 64 * 2
    want = F.linear(x, module.dense())
    assert torch.allclose(module(x), want, atol=0.1, rtol=0.05)
    module.store(matrix(128, 64, seed=3))
    assert len(module.copy) == 2
    assert torch.allclose(module(x), F.linear(x, module.dense()), atol=0.1, rtol=0.05)
    assert not torch.allclose(module(x), want, atol=0.1, rtol=0.05)


def test_what_a_product_is_bound_to_is_noticed_when_it_changes() -> None:
    module = make_linear(matrix(64, 64), "int4")
    before = module.version.count
    module.store(matrix(64, 64, seed=1))
    assert module.version.count == before + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_onednn_the_products_are_the_same(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    if not onednn.onednn(dtype):
        pytest.skip("oneDNN does not multiply this type on this processor, and there is nothing to compare")
    W, x = matrix(96, 64), inputs(5, 64)
    fast = Dense(W, dtype)
    for module in (dense, linear):
        monkeypatch.setattr(module, "onednn", lambda dtype: False)
    plain = Dense(W, dtype)
    assert fast.reordered is not None
    assert plain.reordered is None
    assert torch.equal(fast.dense(), plain.dense())
    assert torch.allclose(fast(x), plain(x), atol=1e-5 if dtype == torch.float32 else 0.1)
    packed = make_linear(W, "int4")
    packed.keep_copy()
    assert packed.copy == ()


# Tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("look", [True, False])
def test_tables(weights: str, tied: bool, look: bool) -> None:
    embed, head = matrix(192, 64), matrix(192, 64, seed=1)
    tables = EmbeddingAndHead(embed, None if tied else head, weights)
    if look:
        tables.keep_candidate_head()
    assert (tables.head is tables.embed) == tied
    worst = {"dense-fp32": 0, "dense-bf16": 2**-8}.get(weights, 1 / 127)
    tokens = torch.tensor([5, 191, 0])
    assert ((tables.lookup(tokens) - embed[tokens]).abs() <= worst * embed.abs().amax() + 1e-7).all()
    h = inputs(3, 64)
    want = F.linear(h, (embed if tied else head))
    assert (tables.logits(h) - want).abs().max() < 40 * worst * want.std() + 1e-4
    for n in range(1, 4):  # whatever the company
        if weights != "dense-fp32":
            assert torch.equal(tables.logits(h[:n], 8), tables.logits(h, 8)[:n])


def test_a_table_of_8_bits_keeps_what_a_q8_0_file_holds() -> None:
    import gguf

    kind = gguf.GGMLQuantizationType.Q8_0
    stored = torch.from_numpy(gguf.dequantize(gguf.quantize(matrix(50, 96).numpy(), kind), kind))
    table = Int8Table(stored)
    assert torch.equal(table.dense(), stored)
    assert torch.equal(table.rows(torch.tensor([[3, 0], [9, 3]])), stored[torch.tensor([[3, 0], [9, 3]])])


def test_a_table_of_8_bits_holds_rows_of_nothing_and_odd_widths() -> None:
    W = matrix(8, 70)
    W[3] = 0
    table = Int8Table(W)
    assert torch.equal(table.dense()[3], torch.zeros(70))
    assert ((table.dense() - W).abs() <= W.abs().amax() / 127).all()
    assert table.logits(inputs(2, 70)).shape == (2, 8)


def test_the_best_candidates_are_scored_in_float32() -> None:
    """The first look's bfloat16 logits tie; among its best the order must be that of the rows in full."""
    tables = EmbeddingAndHead(matrix(4096, 64), None, "int8")
    tables.keep_candidate_head()
    assert tables.candidate_head is not None
    h = inputs(6, 64)
    exact = F.linear(h, tables.head.dense())
    got = tables.logits(h, 32)
    assert torch.equal(got.argmax(-1), exact.argmax(-1))
    best = exact.topk(5).indices
    assert torch.allclose(got.gather(1, best), exact.gather(1, best), atol=1e-4)
    assert torch.allclose(tables.logits(h), exact, atol=1e-4)
    assert (tables.logits(h, 32) - exact).abs().max() > 1e-3, "the others are near, not exact"


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from([97, 4096, 8192]), st.sampled_from([1, 7, 16, 32]), st.booleans())
def test_buckets_find_the_highest(seed: int, V: int, count: int, ties: bool) -> None:
    y = torch.randn(3, V, generator=torch.Generator().manual_seed(seed))
    y = y.round(decimals=1) if ties else y
    found = y.gather(1, topk.top_indices(y, count)).sort(-1, descending=True).values
    assert torch.equal(found, y.topk(count).values)
    assert topk.top_indices(y, count).sort(-1).values.diff().gt(0).all() or count == 1
    at = torch.tensor(topk.argmax(y))
    assert torch.equal(y[torch.arange(3), at], y.amax(-1))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [16, 32, 64])
@pytest.mark.parametrize("zero", ["minimum", "symmetric"])
def test_groups_of_any_bits_round_to_the_nearest_level(bits: int, group: int, zero: Zero) -> None:
    W = matrix(8, 128)
    codes = QuantizedGroups.of(W, bits, group, zero)
    assert int(codes.q.max()) < 2**bits
    assert codes.d.shape == codes.m.shape == (8, 128 // group)
    step = codes.d.repeat_interleave(group, 1)
    assert ((codes.dense() - W).abs() <= step / 2 + 1e-6).all()
    picked, twice = codes.rows(torch.tensor([3, 1])), stacked([codes, codes])
    assert torch.equal(picked.dense(), codes.dense()[[3, 1]])
    assert isinstance(twice, QuantizedGroups)
    assert torch.equal(twice.dense(), codes.dense().repeat(2, 1))


def test_int4_takes_other_codes_by_way_of_their_numbers() -> None:
    codes = QuantizedGroups.of(matrix(64, 128), 3, 64)
    assert torch.equal(Int4(codes).dense(), Int4(codes.dense()).dense())

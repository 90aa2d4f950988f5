"""Weight formats: each against the dense matrix that its own codes stand for, and its bytes against its tensors."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.abilities import Refused
from llmlab.models import linears
from llmlab.models.codes import GROUP, Codes
from llmlab.models.linears import FORMATS, Dense, Int4, Int8, Nf4, Tables, make_linear, nbytes
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
    codes = Codes.of(W)
    assert codes.q.dtype == torch.uint8
    assert codes.q.max() <= 15
    step = (codes.d / 2).repeat_interleave(GROUP, 1)
    assert ((codes.dense() - W).abs() <= step * 1.001 + W.abs().max() * 1e-5).all()


def test_codes_hold_the_ends_of_each_group_and_constant_groups() -> None:
    W = matrix(4, 64)
    W[0, :GROUP] = 0.7
    W[1] = 0
    back, groups = Codes.of(W).dense(), W.view(4, 2, GROUP)
    assert torch.allclose(back.view(4, 2, GROUP).amin(-1), groups.amin(-1), atol=1e-6)
    assert torch.allclose(back.view(4, 2, GROUP).amax(-1), groups.amax(-1), atol=1e-6)
    assert torch.equal(back[0, :GROUP], W[0, :GROUP])
    assert torch.equal(back[1], W[1])


def test_coding_twice_changes_nothing() -> None:
    once = Codes.of(matrix(5, 96))
    assert torch.equal(Codes.of(once.dense()).q, once.q)


def test_a_hand_made_code() -> None:
    codes = Codes(torch.arange(GROUP, dtype=torch.uint8)[None] % 16, torch.tensor([[0.5]]), torch.tensor([[-2.0]]))
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


@pytest.mark.parametrize("M", [64, 96, 7], ids=["kernel", "plain", "odd"])
def test_int4_keeps_the_codes_of_a_file(M: int) -> None:
    """Scale and minimum go to bfloat16; the codes themselves stay as they are."""
    codes = Codes.of(matrix(M, 96))
    module = Int4(codes)
    assert module.kernel == (M % 64 == 0)
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


def test_int8_rows() -> None:
    module = Int8(matrix(10, 64))
    index = torch.tensor([[3, 0], [9, 3]])
    assert torch.equal(module.rows(index), module.dense()[index])


def test_int8_holds_a_row_of_nothing() -> None:
    W = matrix(8, 64)
    W[3] = 0
    module = Int8(W)
    assert torch.equal(module.dense()[3], torch.zeros(64))
    assert module(inputs(2, 64)).isfinite().all()


@pytest.mark.parametrize("weights", ["int4", "nf4"])
def test_a_size_that_does_not_fit_the_groups_is_refused(weights: str) -> None:
    with pytest.raises(Refused, match="48 is no multiple"):
        make_linear(matrix(64, 48), weights)


# Bytes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
def test_bytes_reported_are_bytes_that_exist(weights: str, size: tuple[int, int]) -> None:
    module = make_linear(matrix(*size), weights, torch.zeros(size[0]))
    state = getattr(module, "state", None)
    extra = (state.absmax, state.code) if state else ()
    assert nbytes(module) == laws.tensor_bytes(*module.buffers(), *extra)


def test_bytes_by_hand() -> None:
    W = matrix(64, 64)
    assert nbytes(Dense(W, torch.float32)) == 64 * 64 * 4
    assert nbytes(Dense(W, torch.bfloat16)) == 64 * 64 * 2
    assert nbytes(Int8(W)) == 64 * 64 + 64 * 2
    assert nbytes(Int4(W)) == 64 * 64 // 2 + 64 * 2 * 2 * 2  # a scale and a minimum of 2 bytes for each of 2 groups
    assert nbytes(Int4(W[:32])) == 32 * 64 // 2 + 32 * 2 * 2 * 2


@pytest.mark.parametrize("weights", FORMATS)
def test_a_models_bytes(weights: str) -> None:
    model = tiny.decoder("llama-plain", weights)
    states = [m.state for m in model.modules() if hasattr(m, "state")]
    assert model.nbytes == laws.tensor_bytes(*model.buffers(), *((s.absmax, s.code) for s in states))


def test_a_tied_table_is_counted_once() -> None:
    tied, free = tiny.decoder("llama-plain"), tiny.decoder("llama")
    assert free.nbytes - tied.nbytes == tiny.VOCAB * 64 * 4


# Ways to multiply -----------------------------------------------------------------------------------------------

WAYS = (F.linear, linears._across, linears._padded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_way_gives_the_same_product(dtype: torch.dtype) -> None:
    W, x = matrix(96, 64).to(dtype), inputs(1, 64).to(dtype)
    products = [way(x, W).float() for way in WAYS]
    for a, b in itertools.combinations(products, 2):
        assert torch.allclose(a, b, atol=1e-5 if dtype == torch.float32 else 0.1)
        assert a.is_contiguous()


@pytest.mark.parametrize("way", WAYS[:2])
def test_the_way_does_not_change_the_text(monkeypatch: pytest.MonkeyPatch, way) -> None:
    prompt = tiny.prompts(1, 21)[0]
    want = laws.text(tiny.decoder("llama"), prompt, 30)
    monkeypatch.setattr(
        linears, "fastest", lambda dtype, rows: linears._padded if rows == 1 and way is WAYS[1] else way
    )
    assert laws.text(tiny.decoder("llama"), prompt, 30) == want


@pytest.mark.parametrize("rows", [1, 4])
def test_the_fastest_way_is_one_of_them(rows: int) -> None:
    assert linears.fastest(torch.float32, rows) in (WAYS if rows == 1 else WAYS[:2])


# Tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("tied", [True, False])
def test_tables(weights: str, tied: bool) -> None:
    embed, head = matrix(200, 64), matrix(200, 64, seed=1)
    tables = Tables(embed, None if tied else head, weights)
    assert (tables.head is tables.embed) == tied
    worst = {"dense-fp32": 0, "dense-bf16": 2**-8}.get(weights, 1 / 127)
    tokens = torch.tensor([5, 199, 0])
    assert ((tables.look_up(tokens) - embed[tokens]).abs() <= worst * embed.abs().amax() + 1e-7).all()
    h = inputs(3, 64)
    want = F.linear(h, (embed if tied else head))
    assert (tables.logits(h) - want).abs().max() < 40 * worst * want.std() + 1e-4


@pytest.mark.parametrize("V", [20, 200])
def test_the_best_candidates_are_scored_in_float32(V: int) -> None:
    """The kernel's bfloat16 logits tie; among its best the order must be that of the rows in full."""
    tables = Tables(matrix(V, 64), None, "int8")
    h = inputs(6, 64)
    exact = F.linear(h, tables.head.dense())
    got = tables.logits(h)
    assert torch.equal(got.argmax(-1), exact.argmax(-1))
    best = exact.topk(5).indices
    assert torch.allclose(got.gather(1, best), exact.gather(1, best), atol=1e-4)

"""The fast ways are held to the plain layer: the same logits, and below float32 the same bits whatever the company."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from llmlab.kv import storage
from llmlab.kv.memory import Memory
from llmlab.kv.rows import Rows, Tail
from llmlab.kv.storage import MirroredStorage
from llmlab.models.batch import Batch, Span
from llmlab.models.decoder import Decoder
from llmlab.models.formats.onednn import bfloat16_instructions
from llmlab.models.kernels.topk import argmax
from llmlab.runtime.draft import Draft
from llmlab.runtime.session import Session
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make
from tests import tiny
from tests.laws import laws

PIECES = [(40, *[1] * 12), (30, 4, 1, 8, 2, 7), (52,), (3, 5, 44)]
TOKENS = tiny.prompts(1, 56, seed=3)[0][:52]


def spread(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.std())


def kl(got: Tensor, want: Tensor) -> float:
    """Mean KL divergence of the fast logits from the plain ones, in nats."""
    p, q = torch.log_softmax(want, -1), torch.log_softmax(got, -1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("pieces", PIECES, ids=str)
@pytest.mark.parametrize("family", tiny.OURS)
def test_fast_and_plain_give_the_same_logits(family: str, pieces: Sequence[int]) -> None:
    model = tiny.decoder(family)
    assert spread(laws.logits(model, TOKENS, pieces), laws.logits(model.reference_copy(), TOKENS, pieces)) < 1e-4


@pytest.mark.parametrize("pieces", PIECES, ids=str)
@pytest.mark.parametrize("weights", ["dense-bf16", "int8", "int4", "nf4"])
@pytest.mark.parametrize("copies", [False, True])
def test_fast_and_plain_are_near_in_low_precision(weights: str, pieces: Sequence[int], copies: bool) -> None:
    plain = tiny.decoder("llama", weights).reference_copy()
    model = tiny.decoder("llama", weights).private_copy()
    if copies:
        model.keep_prefill_copies()
    assert kl(laws.logits(model, TOKENS, pieces), laws.logits(plain, TOKENS, pieces)) < 1e-3


@torch.inference_mode()
def passes(
    model: Decoder, stack: Stack, tokens: Sequence[int], drafts: Sequence[Draft]
) -> tuple[list[Tensor], Session]:
    """The logits that follow each of `tokens` after the first ten, in passes that carry `drafts` in turn."""
    session = stack.session(model)
    for _ in session.prefill(tokens[:10]):
        pass
    out, ahead = [], itertools.cycle(drafts)
    at = 10
    while at < len(tokens):
        draft = next(ahead).clipped(session.max_draft_depth())
        # The drafts' first nodes are given their true tokens as far as a chain of them goes, the rest are wrong.
        right = [i for i in range(len(draft)) if draft.parents[i] == (i - 1)]
        path = []
        guesses = list(draft.tokens)
        for i in right:
            if i != len(path) or at + i >= len(tokens) - 1 or i >= 2:
                break
            guesses[i] = tokens[at + i]
            path.append(i)
        draft = Draft(tuple(guesses), draft.parents, draft.q)
        logits = session.forward(draft).logits
        out += [logits[0], *(logits[1 + i] for i in path)]
        session.commit(path, tokens[at + len(path)], draft)
        at += len(path) + 1
    return out, session


CHAINS = [Draft.chain([5, 6, 7]), Draft(), Draft.chain([9] * 7), Draft.chain([1, 2, 3, 4])]
TREES = [
    Draft((3, 4, 5, 6, 7), (-1, 0, -1, 2, 0), (None,) * 5),
    Draft((1, 2, 3), (-1, -1, -1), (None,) * 3),
    Draft((1, 2, 3, 4, 5, 6, 7), (-1, 0, 1, 0, 3, -1, 5), (None,) * 7),
]


@pytest.mark.parametrize("weights", ["dense-bf16", "int8", "int4", "nf4"])
@pytest.mark.parametrize("family", ["llama", "qwen2-window", "qwen3"])
@pytest.mark.parametrize("policy", ["", "streaming-llm", "h2o"])
@pytest.mark.parametrize("drafts", [CHAINS, TREES], ids=["chain", "tree"])
def test_a_pass_over_several_tokens_is_bitwise(weights: str, family: str, policy: str, drafts: list[Draft]) -> None:
    bitwise(tiny.decoder(family, weights), policy, drafts)


def bitwise(model: Decoder, policy: str, drafts: list[Draft]) -> None:
    """Passes with drafts leave the logits and the memory of passes without, to the bit."""
    stack = Stack([make(policy, budget=16, every=6)] if policy else [])
    tokens = tiny.prompts(1, 50, seed=6)[0]
    want, alone = passes(model, stack, tokens, [Draft()])
    got, together = passes(model, stack, tokens, drafts)
    differ = [i for i, (a, b) in enumerate(zip(got, want, strict=True)) if not torch.equal(a, b)]
    assert differ == []
    for a, b in zip(alone.memory.layers, together.memory.layers, strict=True):
        assert torch.equal(a.k, b.k)
        assert torch.equal(a.v, b.v)
        assert torch.equal(a.positions, b.positions)


def test_the_law_sees_a_single_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether sharing products changes a bit depends on the processor, so here one is changed by hand."""
    append = Rows.append

    def broken(self: Rows, kv: Tensor, positions: Sequence[int]) -> None:
        kv = kv.clone()
        if kv.shape[2] > 1 and self.count > 9:  # a pass of several rows, after the prompt
            kv[0, 0, 0, 0] = torch.nextafter(kv[0, 0, 0, 0], torch.tensor(9.0))
        append(self, kv, positions)

    model = tiny.decoder("llama", "int4")
    bitwise(model, "", CHAINS)
    monkeypatch.setattr(Rows, "append", broken)
    with pytest.raises(AssertionError):
        bitwise(model, "", CHAINS)


@pytest.fixture
def mirrored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bfloat16 mirror is read from 24 rows on; the list has a number for every time that it is."""
    if not bfloat16_instructions():
        pytest.skip("this processor does not multiply bfloat16, and no memory has a mirror")
    reads: list[int] = []
    mirror = MirroredStorage.bf16_mirror

    def seen(storage: MirroredStorage, n: int) -> tuple[Tensor, Tensor]:
        reads.append(n)
        return mirror(storage, n)

    monkeypatch.setattr(storage, "MIRROR_FROM", 24)
    monkeypatch.setattr(MirroredStorage, "bf16_mirror", seen)
    return reads


@pytest.mark.parametrize("weights", ["dense-bf16", "int4"])
@pytest.mark.parametrize("policy", ["", "streaming-llm"])
@pytest.mark.parametrize("drafts", [CHAINS, TREES], ids=["chain", "tree"])
def test_so_is_one_that_looks_far_back(mirrored: list[int], weights: str, policy: str, drafts: list[Draft]) -> None:
    bitwise(tiny.decoder("llama", weights).private_copy(), policy, drafts)
    assert bool(mirrored) == (not policy), "a memory of 16 rows is never deep"


@pytest.mark.parametrize("weights", ["dense-fp32", "dense-bf16", "int4"])
def test_looking_far_back_in_bfloat16_is_near(mirrored: list[int], weights: str) -> None:
    model, pieces = tiny.decoder("llama", weights).private_copy(), (10, *[1] * 30, 4, 1, 1, 6)
    got = laws.logits(model, TOKENS, pieces)
    assert kl(got, laws.logits(model.reference_copy(), TOKENS, pieces)) < 1e-3
    assert bool(mirrored) == (weights != "dense-fp32"), "float32 stays float32"


def test_the_mirror_follows_its_rows() -> None:
    """Whatever happens to the rows, their bfloat16 mirror is theirs."""
    dice = torch.Generator().manual_seed(1)
    cpu = torch.device("cpu")
    mirror = MirroredStorage(2, 8, torch.float32, cpu)
    rows = Rows(mirror, cpu)

    def some(n: int) -> Tensor:
        return torch.randn(2, 2, n, 8, generator=dice)

    def alike() -> bool:
        keys, values = mirror.bf16_mirror(rows.count)
        keys, values = keys[:, :, : rows.count], values[:, : rows.count]
        return torch.equal(keys, rows.k.bfloat16().transpose(1, 2)) and torch.equal(values, rows.v.bfloat16())

    rows.append(some(70), range(70))
    before = rows.nbytes
    assert alike()
    assert rows.nbytes > before, "its bytes count"
    rows.append_one(some(1)[:, :, 0], 70)
    assert alike()
    rows.write(40, some(3))
    assert alike()
    rows.keep(range(50))
    rows.append(some(200), range(50, 250))
    assert alike()
    rows.keep(Tail(245, torch.tensor([246, 249]), 245))
    assert alike()
    rows.reposition(torch.arange(247), torch.polar(torch.ones(2, 247, 4), torch.rand(2, 247, 4, generator=dice)))
    assert alike()
    rows.keep(torch.arange(0, 240, 3))
    assert alike()


@pytest.mark.parametrize("lengths", [(5, 5, 5, 5), (3, 70, 9, 64, 65, 1), (7, 2, 4)], ids=str)
@pytest.mark.parametrize("weights", ["dense-fp32", "int4"])
@torch.inference_mode()
def test_rows_of_many_sequences_are_those_of_each_alone(lengths: tuple[int, ...], weights: str) -> None:
    model = tiny.decoder("llama", weights)
    prompts = [tiny.text(n, seed=n + i) for i, n in enumerate(lengths)]

    def memories(pooled: bool = False) -> list[Memory]:
        made: list[Memory] = []
        for prompt in prompts:
            memory = model.memory()
            ids = torch.tensor(prompt)
            model.forward(Batch(ids, torch.arange(len(ids)), [Span(0, len(ids), memory, first=0)]), last=0)
            made.append(memory)
        if pooled:
            Memory.pooled(made)
        return made

    nexts = torch.tensor([i + 2 for i in range(len(lengths))])
    alone = []
    for memory, token, n in zip(memories(), nexts, lengths, strict=True):
        alone.append(model.forward(Batch(token[None], torch.tensor([n]), [Span(0, 1, memory, first=n)])).logits[0])
    tolerance = 1e-4 if weights == "dense-fp32" else 0.05
    for pooled in (False, True):
        held = memories(pooled)
        spans = [Span(i, i + 1, m, first=n) for i, (m, n) in enumerate(zip(held, lengths, strict=True))]
        got = model.forward(Batch(nexts, torch.tensor(lengths), spans)).logits
        assert spread(got, torch.stack(alone)) < tolerance
        assert [m.longest for m in held] == [n + 1 for n in lengths]


@torch.inference_mode()
def test_prefill_and_decode_rows_mix_in_one_forward() -> None:
    model = tiny.decoder("llama")
    a, b = tiny.text(30, seed=1), tiny.text(12, seed=2)
    first, second = model.memory(), model.memory()
    model.forward(Batch(torch.tensor(a[:-1]), torch.arange(29), [Span(0, 29, first, first=0)]), last=0)
    both = [Span(0, 1, first, first=29), Span(1, 13, second, first=0)]
    got = model.forward(Batch(torch.tensor([a[-1], *b]), torch.tensor([29, *range(12)]), both)).logits
    want = torch.cat([laws.logits(model, a, [30])[-1:], laws.logits(model, b, [12])])
    assert spread(got, want) < 1e-4


def test_what_a_layer_is_bound_to_follows_its_weights() -> None:
    model, tokens = tiny.decoder("llama").private_copy(), TOKENS[:6]
    before = laws.logits(model, tokens, [1] * 6)
    model.layers[1].linears()["down"].store(model.layers[1].linears()["down"].dense() * 2)
    after = laws.logits(model, tokens, [1] * 6)
    assert not torch.allclose(before, after)
    assert spread(after, laws.logits(model.reference_copy(), tokens, [1] * 6)) < 1e-4


def test_the_last_layer_of_a_prompt_makes_only_keys_and_values() -> None:
    model = tiny.decoder("llama")
    one, two = Session(model), Session(model)
    for _ in one.prefill([*TOKENS[:20], 1]):
        pass
    for piece in range(20):
        two.tokens, two.uncached = TOKENS[: piece + 1], 1
        two.forward()
        two.commit((), TOKENS[piece + 1])
    for a, b in zip(one.memory.layers, two.memory.layers, strict=True):
        assert torch.allclose(a.k, b.k, atol=1e-4)
        assert torch.allclose(a.v, b.v, atol=1e-4)
    assert argmax(one.forward().logits) != []


@pytest.mark.parametrize("family", ["llama", "llama-plain", "qwen2", "qwen3", "llama-yarn"])
@pytest.mark.parametrize("weights", ["dense-fp32", "int4", "nf4"])
def test_the_step_that_a_gpu_replays_gives_the_plain_logits(family: str, weights: str) -> None:
    """Uncaptured, as it runs without a GPU: over buffers that grow twice, after rollbacks, and in a second memory."""
    model = tiny.decoder(family, weights).private_copy()
    model.graphs = True
    tokens = tiny.text(150, seed=4)
    plain = tiny.decoder(family, weights).reference_copy()
    close = 1e-4 if weights == "dense-fp32" else 0.1
    for _ in range(2):
        got, want = (laws.stepwise(m, tokens) for m in (model, plain))
        assert spread(got, want) < close
    assert model._graph_step is not None


def test_speculation_through_the_replayed_step_keeps_the_text() -> None:
    model = tiny.decoder("llama").private_copy()
    prompts = tiny.prompts(4, 21)
    want = laws.texts(model, Stack(), prompts, 24, tiny.tools)
    model.graphs = True
    assert laws.texts(model, Stack(), prompts, 24, tiny.tools) == want
    assert laws.texts(model, Stack([laws.sharp("prompt-lookup")]), prompts, 24, tiny.tools) == want
    evicting = Stack([make("streaming-llm", budget=12, every=5)])
    model.graphs = False
    want = laws.texts(model, evicting, prompts, 24, tiny.tools)
    model.graphs = True
    assert laws.texts(model, evicting, prompts, 24, tiny.tools) == want

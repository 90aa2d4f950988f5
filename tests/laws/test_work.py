"""What a run says it computed is what went through the layers, whoever put it there; and a saving is a saving."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llmlab.measure import trace
from llmlab.models.block import Block
from llmlab.models.decoder import Decoder
from llmlab.models.kernels.cpu_decode import DecodeWorkspace
from llmlab.models.kernels.cpu_prefill import CpuPrefill
from llmlab.models.kernels.reference import Reference
from llmlab.runtime.events import Committed, Drafted, Prefilled, Started
from llmlab.runtime.generate import generate
from llmlab.runtime.session import Session
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make, registry
from llmlab.runtime.tools import Tools
from tests import tiny
from tests.laws import laws

PROMPT = tiny.prompts(1, 21)[0]
KERNELS = (DecodeWorkspace, CpuPrefill, Reference)


class Counter:
    """Rows of states that kernels were given, by the model whose block it was; asks nobody else."""

    def __init__(self) -> None:
        self.whole: dict[int, int] = {}
        self.kv_only: dict[int, int] = {}

    def of(self, model: Decoder) -> tuple[int, int]:
        blocks = {id(b) for b in model.layers}
        return tuple(sum(n for at, n in rows.items() if at in blocks) for rows in (self.whole, self.kv_only))  # type: ignore[return-value]


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Counts the rows that enter each block in whichever kernel computes it."""
    found = Counter()

    def counted(kernel: type) -> Any:
        original = kernel.layer

        def layer(self: Any, block: Block, h: Tensor, batch: Any, kv_only: bool) -> Tensor:
            rows = found.kv_only if kv_only else found.whole
            rows[id(block)] = rows.get(id(block), 0) + len(h)
            return original(self, block, h, batch, kv_only)

        return layer

    for kernel in KERNELS:
        monkeypatch.setattr(kernel, "layer", counted(kernel))
    return found


def deep(id: str) -> list[Stack]:
    """A technique as the laws sharpen it and, where what is skipped may be made up for later, in that way too."""
    stacks = [laws.alone(id)]
    if "fill" in {k.name for k in registry()[id].knobs()}:
        knobs = {"threshold": 0.15, "step": 1} if id == "early-exit" else {}
        stacks.append(Stack([make(id, first=1, fill="later", **knobs)]))
    return stacks


@contextmanager
def fresh(base: Decoder, stack: Stack) -> Iterator[tuple[Decoder, Tools]]:
    tools = tiny.tools()
    model = laws.changed(base, stack, tools)
    yield (model.private_copy() if model is base else model), tools


STACKS = [Stack(), *(stack for id in registry() for stack in deep(id))]


@pytest.mark.parametrize("stack", STACKS, ids=repr)
def test_layer_rows_are_the_rows_that_entered_the_layers(llama: Decoder, stack: Stack, counter: Counter) -> None:
    with fresh(llama, stack) as (model, tools):
        events = generate(model, PROMPT, 30, stack, tools=tools)
        seen = next(events)
        assert isinstance(seen, Started)
        before, read = counter.of(model), (0, 0)
        whole = kv_only = 0
        for e in events:
            if isinstance(e, Prefilled):
                read = e.layer_rows, e.kv_only_rows
            if isinstance(e, Committed):
                whole, kv_only = whole + e.layer_rows, kv_only + e.kv_only_rows
        now = counter.of(model)
        assert (whole + read[0], kv_only + read[1]) == (now[0] - before[0], now[1] - before[1])
        assert whole > 0


@pytest.mark.parametrize("id", ["early-exit", "hash-exit"])
def test_what_is_made_up_for_later_is_not_saved(llama: Decoder, id: str) -> None:
    """Deferring keys and values lets tokens leave early; but for those that wait at the end, all is computed."""
    knobs = {"threshold": 0.15, "step": 1} if id == "early-exit" else {"assign": "random"}
    m = trace.ledger(laws.run(llama, PROMPT, 60, Stack([make(id, first=1, fill="later", **knobs)])))
    copied = trace.ledger(laws.run(llama, PROMPT, 60, Stack([make(id, first=1, fill="copy", **knobs)])))
    assert m["layers_run_mean"] < 3.6
    assert m["layer_rows_per_token"] > 3.75
    assert copied["layer_rows_per_token"] == pytest.approx(copied["layers_run_mean"])
    assert copied["kv_only_rows"] == 4 * 60 - copied["layer_rows"]


def test_drafting_passes_over_the_models_layers_count(llama: Decoder) -> None:
    """LayerSkip: k + 1 rows through the lower layers, k + 1 through the upper ones, for a + 1 tokens."""
    stack = Stack([make("layer-skip", layer=3, length=5, confidence=0.0)])
    events = laws.run(llama, PROMPT, 30, stack)
    m = trace.ledger(events)
    assert m["layers_run_mean"] == 4
    assert m["layer_rows_per_token"] > 6
    rows = [e.layer_rows for e in events if isinstance(e, Committed)]
    drafts = [len(e.tokens) for e in events if isinstance(e, Drafted)]
    assert rows[:9] == [4 * (k + 1) for k in drafts[:9]]  # the last drafts are clipped at the end of the run


def test_another_models_layers_are_told_apart(llama: Decoder) -> None:
    """They are of another size: they count as operations, and not among the model's own layer-rows."""
    plain = trace.ledger(laws.run(llama, PROMPT, 20, Stack()))
    stack = Stack([make("draft-model", model="llama-small", length=3, confidence=0.0)])
    small = tiny.decoder("llama-small", seed=9)
    tools = Tools(None, lambda name: small, tiny.text(300), tiny.parts)
    m = trace.ledger(list(generate(llama, PROMPT, 20, stack, tools=tools)))
    assert m["layer_rows"] == 4 * (m["drafted"] + m["passes"])
    assert m["drafter_layer_rows"] >= 3 * m["drafted"]
    own = plain["flops_per_token"] * (m["drafted"] + m["passes"])
    assert m["flops"] > own
    assert plain["drafter_layer_rows"] == 0


def test_a_model_that_drafts_for_itself_counts_its_own_rows(llama: Decoder) -> None:
    twin = Tools(None, lambda name: llama, tiny.text(300), tiny.parts)
    stack = Stack([make("draft-model", model="int4", length=3, confidence=0.0)])
    m = trace.ledger(list(generate(llama, PROMPT, 20, stack, tools=twin)))
    assert m["drafter_layer_rows"] == 0
    assert m["layer_rows"] > 4 * (m["drafted"] + m["passes"])


def test_operations_of_a_plain_pass_by_hand(llama: Decoder) -> None:
    s = llama.shape
    session = Session(llama)
    list(session.prefill(PROMPT))
    before = llama.work.flops
    session.forward()
    matrices = 2 * s.width * s.head_size * (s.heads + s.kv_heads) + 3 * s.width * s.feed_forward
    attention = 2 * 2 * len(PROMPT) * s.heads * s.head_size
    want = s.layers * (2 * matrices + attention) + 2 * s.vocab * s.width
    assert llama.work.flops - before == want


def test_a_pass_as_a_graph_counts_what_a_pass_counts(llama: Decoder) -> None:
    counted = []
    for graphs in (False, True):
        model = tiny.decoder("llama-plain").private_copy()
        model.graphs = graphs
        session = Session(model)
        list(session.prefill(PROMPT))
        before = replace(model.work)
        session.forward()
        counted.append(replace(model.work.since(before), held=0))
    assert counted[0] == counted[1]
    assert counted[0].layer_rows == 4


def test_several_rows_see_one_row_more_each(llama: Decoder) -> None:
    session = Session(llama)
    before = llama.work.flops
    list(session.prefill([*range(2, 7), 2]))
    five = llama.work.flops - before
    s = llama.shape
    matrices = 2 * (2 * s.width * s.head_size * (s.heads + s.kv_heads) + 3 * s.width * s.feed_forward)
    kv = 2 * s.width * s.head_size * (s.heads + 2 * s.kv_heads)
    assert five == 3 * (5 * matrices + 15 * 4 * s.heads * s.head_size) + 5 * kv


def test_a_window_saves_operations(llama: Decoder) -> None:
    long = tiny.prompts(1, 120)[0]
    wide = trace.ledger(laws.run(llama, long, 10, Stack()))
    narrow = trace.ledger(laws.run(llama, long, 10, Stack([make("sliding-window", width=9, sinks=1)])))
    s = llama.shape
    per_row = s.layers * 4 * s.heads * s.head_size
    rows = sum(range(len(long), len(long) + 10))
    assert wide["flops"] - narrow["flops"] == per_row * (rows - 10 * 10)


def test_a_pass_reads_its_weights_once_in_the_form_that_it_multiplies_with() -> None:
    """Not the copies for prompts, not an untied embedding table, not the layers that an exit leaves out."""
    for weights in ("dense-fp32", "int4"):
        for copies in (False, True):
            model = copy.deepcopy(tiny.decoder("llama", weights))
            if copies:
                model.keep_prefill_copies()
            reads = trace_reads(model, Stack())
            assert reads == pytest.approx(model.pass_bytes + kv_of(model), rel=0.05)
            bare = model.nbytes - model.copied_bytes - embed_bytes(model)
            assert reads < 1.15 * bare + kv_of(model)
    model = tiny.decoder("llama").private_copy()
    early = Stack([make("early-exit", threshold=0.0, first=1, step=8, fill="copy", words=0)])
    assert trace_reads(model, early) < 0.75 * trace_reads(model, Stack())


def trace_reads(model: Decoder, stack: Stack) -> int:
    commits = [e for e in laws.run(model, PROMPT, 3, stack) if isinstance(e, Committed)]
    return commits[0].read_bytes


def kv_of(model: Decoder) -> int:
    s = model.shape
    return s.layers * len(PROMPT) * 2 * s.kv_heads * s.head_size * 4


def embed_bytes(model: Decoder) -> int:
    return sum(t.nbytes for t in model.embedding.embed.buffers())


def test_rows_of_a_long_memory_are_read_in_the_form_that_is_attended_to() -> None:
    from llmlab.kv.storage import MIRROR_FROM, MirroredStorage, PlainStorage

    device = torch.device("cpu")
    plain, mirrored = (kind(2, 16, torch.float32, device) for kind in (PlainStorage, MirroredStorage))
    for storage in (plain, mirrored):
        assert storage.read_bytes(100) == 2 * 2 * 100 * 16 * 4
    n = MIRROR_FROM + 1
    assert plain.read_bytes(n) == 2 * mirrored.read_bytes(n)

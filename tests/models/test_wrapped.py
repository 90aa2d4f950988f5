"""Other architectures through transformers' seam: the same logits, with keys and values in our memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from llmlab.errors import Refused
from llmlab.models.batch import Batch, Span
from llmlab.models.capabilities import THROUGH_ATTENTION, Capability
from llmlab.models.loading.sources.folder import config_of
from llmlab.models.wrapped.loading import build
from llmlab.models.wrapped.model import Wrapped
from llmlab.runtime.piece import forward_pieces
from llmlab.runtime.session import Session
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make, registry
from llmlab.runtime.tools import Tools
from tests import tiny
from tests.laws import laws
from tests.models.test_activations import against
from tests.models.test_families import generated

TOKENS = tiny.prompts(1, 50)[0]
READINGS = {"at once": [len(TOKENS)], "step by step": [1] * len(TOKENS), "in pieces": [9, 1, 2, 20, 1, 17]}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wrapped")
    for family in (*tiny.WRAPPED, "llama"):
        tiny.reference(family).save_pretrained(root / family)
    return root


@pytest.fixture(scope="session")
def models(folders: Path) -> dict[str, Wrapped]:
    return {family: load(folders / family) for family in (*tiny.WRAPPED, "llama")}


def load(folder: Path, weights: str = "dense-fp32") -> Wrapped:
    return build(str(folder), config_of(folder, folder.name), weights, "cpu")


@pytest.fixture(params=tiny.WRAPPED)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("pieces", READINGS.values(), ids=READINGS)
def test_logits_equal_transformers(models: dict[str, Wrapped], family: str, pieces: list[int]) -> None:
    assert laws.reference(models[family], tiny.reference(family), TOKENS, pieces) < 1e-4


def test_text_equals_transformers(models: dict[str, Wrapped], family: str) -> None:
    for prompt in tiny.prompts(2, 24, seed=3):
        assert laws.text(models[family], prompt, 20) == generated(tiny.reference(family), prompt, 20)


def test_a_wrapped_model_equals_our_decoder(models: dict[str, Wrapped]) -> None:
    ours = laws.logits(tiny.decoder("llama"), TOKENS, [len(TOKENS)])
    assert torch.allclose(laws.logits(models["llama"], TOKENS, [len(TOKENS)]), ours, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
@pytest.mark.parametrize("policy", [None, "h2o", "streaming-llm"])
def test_speculation_is_exact_with_and_without_eviction(
    models: dict[str, Wrapped], family: str, policy: str | None, tree: bool
) -> None:
    lossy = Stack()
    if policy:
        free = {"reposition": False} if policy == "streaming-llm" else {}
        lossy = Stack([make(policy, budget=12, every=5, **free)])
    wrong, seen = laws.scripted(models[family], lossy, tiny.prompts(2, 21), 24, tree)
    assert wrong == []
    assert max(accepted for _, accepted in seen) >= 3


def test_drafting_with_another_model(models: dict[str, Wrapped], family: str) -> None:
    """The drafter may be a model of another kind, as long as it shares the vocabulary."""
    helper = lambda: Tools(None, lambda name: models[name] if name in models else tiny.decoder(name))  # noqa: E731
    for partner in (family, "llama"):
        stack = Stack([make("draft-model", model=partner, confidence=0.0)])
        for prompt in tiny.prompts(2, 21):
            want = laws.text(models[family], prompt, 16)
            assert laws.text(models[family], prompt, 16, stack, tools=helper()) == want


def test_bytes_and_shapes(models: dict[str, Wrapped], family: str) -> None:
    model = models[family]
    want = sum(t.numel() * t.element_size() for t in {id(p): p for p in model.hf.parameters()}.values())
    assert want <= model.nbytes < 1.2 * want
    memory = model.memory()
    assert len(memory.layers) == len(model.layers) == 4
    assert memory.nbytes == 0
    with torch.inference_mode():
        out = model.forward(
            Batch(torch.tensor(TOKENS), torch.arange(len(TOKENS)), [Span(0, len(TOKENS), memory)]), None, 0
        ).logits
    assert out.shape == (0, tiny.VOCAB)
    assert memory.rows() == [len(TOKENS)] * 4
    assert memory.nbytes == laws.tensor_bytes(memory)


def test_what_a_wrapped_pass_computes_and_reads(models: dict[str, Wrapped], family: str) -> None:
    """Layer-rows, and bytes and operations of at least its matrices; a table that is only looked up is not read."""
    model = models[family]
    session = Session(model)
    list(session.prefill(TOKENS))
    before = replace(model.work)
    session.forward()
    done = model.work.since(before)
    matrices = [m.weight for m in model.hf.modules() if isinstance(m, torch.nn.Linear | Conv1D)]
    assert done.layer_rows == 4
    assert done.flops == pytest.approx(2 * sum(w.numel() for w in matrices), rel=0.1)
    kv = sum(rows.k.nbytes + rows.v.nbytes for rows in session.memory.layers)
    assert done.read_bytes == pytest.approx(sum(w.nbytes for w in matrices) + kv, rel=0.1)
    assert model.pass_bytes <= model.nbytes


def test_a_wrapped_model_says_about_what_it_holds(models: dict[str, Wrapped], family: str) -> None:
    model = models[family]
    session = Session(model)
    session.begin(tiny.text(100))
    piece = session.prefill_piece()
    assert 0.5 < against(model, session, lambda: forward_pieces(model, [piece], None)) < 2


@pytest.mark.parametrize("id", registry())
def test_a_technique_runs_or_is_refused(models: dict[str, Wrapped], family: str, id: str) -> None:
    model, stack = models[family], laws.alone(id)
    tools = Tools(None, lambda name: model, tiny.text(100))
    refused = [a for t in stack for a in t.required() if a not in THROUGH_ATTENTION]
    if refused:
        with pytest.raises(Refused, match="needs"):
            laws.text(model, TOKENS[:20], 6, stack, tools=tools)
    else:
        assert len(laws.text(model, TOKENS[:20], 6, stack, tools=tools)) == 6


def test_abilities_are_what_they_say() -> None:
    assert {Capability.LAYERS, Capability.WEIGHTS, Capability.ROTARY}.isdisjoint(THROUGH_ATTENTION)


def test_a_format_that_only_our_decoder_has_is_refused(folders: Path) -> None:
    with pytest.raises(Refused, match="needs our own decoder"):
        load(folders / "gpt2", "int4")


def test_skipping_layers_is_refused(models: dict[str, Wrapped]) -> None:
    batch = Batch(torch.tensor([1]), torch.tensor([0]), [Span(0, 1, models["gpt2"].memory())])
    with pytest.raises(Refused, match="cannot skip layers"):
        models["gpt2"].forward(batch, lambda model, h, batch: (h, None))

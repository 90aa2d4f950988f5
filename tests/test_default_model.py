"""The default model itself: its text is that of transformers, lossless techniques leave it alone, and it answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmlab.lab.experiment import Lab
from llmlab.lab.settings import Settings
from llmlab.measure import trace
from llmlab.measure.benchmark import tokens_of
from llmlab.measure.hardware import cores
from llmlab.models.batch import Batch, Span
from llmlab.models.embedding import EmbeddingAndHead
from llmlab.models.formats.onednn import onednn
from llmlab.models.kernels.topk import argmax
from llmlab.models.loading import fit
from llmlab.models.loading.catalog import MODELS
from llmlab.models.loading.sources import locate
from llmlab.models.result import PlanResult
from llmlab.runtime.draft import Draft
from llmlab.runtime.events import Committed
from llmlab.runtime.generate import committed_tokens, generate
from llmlab.runtime.session import Session
from llmlab.runtime.stack import Stack
from tests.laws import laws

pytestmark = [pytest.mark.model, pytest.mark.timeout(1200)]  # not every processor multiplies bfloat16 by itself
PROMPTS = (
    "Why is the sky blue?",
    "Name the capital city of France.",
    "Repeat this line three times: the cat sat on the mat and the dog lay by the door.",
)


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab()


def run(lab: Lab, prompt: str, *techniques: str, limit: int = 40, **settings: Any) -> dict[str, Any]:
    stack = Stack.from_arguments(techniques)
    prepared = lab.prepare(Settings(prompt=prompt, max_new_tokens=limit, stack=stack, **settings))
    return lab.record(prepared, list(lab.run(prepared)))


def test_greedy_text_is_that_of_transformers(lab: Lab) -> None:
    from transformers import AutoModelForCausalLM

    loaded = lab.model_cache.load("smollm2-135m", "dense-fp32")
    path = locate.fetch(locate.find("smollm2-135m")).path
    assert path is not None
    at = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **at).eval()
    for prompt in PROMPTS:
        ours = run(lab, prompt, limit=32)
        ids = lab.tokens(loaded, Settings(prompt=prompt))
        theirs = reference.generate(
            torch.tensor([ids]), max_new_tokens=32, do_sample=False, eos_token_id=list(loaded.stop_tokens)
        )
        assert ours["token_ids"] == theirs[0, len(ids) :].tolist()


@pytest.mark.parametrize("technique", ["prompt-lookup", "self-speculation", "draft-model"])
def test_lossless_techniques_leave_the_text_alone(lab: Lab, technique: str) -> None:
    for prompt in PROMPTS:
        plain, drafted = run(lab, prompt), run(lab, prompt, technique)
        assert drafted["token_ids"] == plain["token_ids"]
        assert drafted["metrics"]["passes"] <= plain["metrics"]["passes"]
    assert drafted["metrics"]["accepted"] > 0


def test_speculation_over_eviction_leaves_the_evicting_text_alone(lab: Lab) -> None:
    evicting = run(lab, PROMPTS[2], "streaming-llm:budget=32,every=8")
    assert evicting["metrics"]["evicted_rows"] > 0
    both = run(lab, PROMPTS[2], "streaming-llm:budget=32,every=8", "prompt-lookup")
    assert both["token_ids"] == evicting["token_ids"]
    assert both["metrics"]["passes"] < evicting["metrics"]["passes"]


@pytest.mark.parametrize(
    "techniques",
    [
        (),
        ("prompt-lookup",),
        ("h2o:budget=64",),
        ("wanda:ratio=0.1",),
        ("early-exit:threshold=0.95,first=28,step=1",),
        ("prompt-lookup", "h2o:budget=64", "layer-drop:count=1"),
    ],
)
def test_it_answers_with_each_family_on_and_with_three_at_once(lab: Lab, techniques: tuple[str, ...]) -> None:
    value = run(lab, PROMPTS[1], *techniques, limit=24)
    assert "Paris" in value["text"]


def test_int4_is_a_quarter_of_the_size_and_answers(lab: Lab) -> None:
    small, large = run(lab, PROMPTS[1], weights="int4", copies="none", limit=24), run(lab, PROMPTS[1], limit=24)
    assert "Paris" in small["text"]
    assert small["metrics"]["weight_bytes"] < large["metrics"]["weight_bytes"] / 4


# Speed without a difference ------------------------------------------------------------------------------------


def loaded(lab: Lab, weights: str) -> Any:
    return lab.model_cache.load("smollm2-135m", weights)


def stretches(lab: Lab, count: int, length: int) -> list[list[int]]:
    """Pieces of the project's own texts, each from another place."""
    ids = tokens_of(loaded(lab, "int4").tokenizer, 4000)
    return [ids[i * 19 : i * 19 + length + i % 7] for i in range(count)]


@pytest.mark.parametrize("weights", ["int4", "dense-bf16"])
def test_verification_is_bitwise_sequential_decoding(lab: Lab, weights: str) -> None:
    """200 continuations under drafts that know the truth and corrupt it: no token and no bit of the memory differs.

    Most are computed on one thread and the first few on all there are, for products are cut up differently then.
    """
    model, limit = loaded(lab, weights).model, 7
    memories: list[Any] = []
    seen: set[tuple[int, int]] = set()
    original = model.memory
    model.memory = lambda: memories.append(original()) or memories[-1]
    try:
        for i, prompt in enumerate(stretches(lab, 200, 8)):
            torch.set_num_threads(cores() if i < 5 else 1)
            truth = committed_tokens(list(generate(model, prompt, limit + 4)))
            script = laws.Script(truth=(*prompt, *truth), seed=i, tree=bool(i % 2), most=4)
            events = list(generate(model, prompt, limit, Stack([script])))
            assert committed_tokens(events) == truth[:limit], f"continuation {i}"
            alone, drafted = memories
            rows = drafted.layers[0].count
            assert rows == len(prompt) + limit - 1
            for a, b in zip(alone.layers, drafted.layers, strict=True):
                assert torch.equal(a.k[:, :rows], b.k), f"continuation {i}"
                assert torch.equal(a.v[:, :rows], b.v), f"continuation {i}"
            seen |= {(len(e.path), len(e.tokens)) for e in events if isinstance(e, Committed)}
            memories.clear()
    finally:
        del model.memory
        torch.set_num_threads(1)
    assert {n for n, _ in seen} >= {0, 1, 2, 3, 4}


def test_the_faster_verification_is_near(lab: Lab) -> None:
    """Near, everywhere; whether some bit differs is the processor's affair."""
    model = loaded(lab, "int4").model
    prompt = stretches(lab, 1, 120)[0]
    found = {}
    for exact in (True, False):
        session = Session(model, exact=exact)
        for _ in session.prefill(prompt[:100]):
            pass
        found[exact] = session.forward(Draft.chain(prompt[100:104])).logits
    assert divergence(found[False], found[True]) < 1e-3


def divergence(got: torch.Tensor, want: torch.Tensor) -> float:
    p, q = torch.log_softmax(want, -1), torch.log_softmax(got, -1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("weights", ["int4", "dense-bf16"])
def test_fast_and_plain_paths_say_the_same(lab: Lab, weights: str) -> None:
    """KL under 1e-3 nats, over a prompt's last piece and over single tokens after it."""
    model = loaded(lab, weights).model
    tokens = stretches(lab, 1, 160)[0]
    pieces = [120, *[1] * 24, 4, 4]
    got, want = (
        laws.logits(m, tokens[:152], pieces, EmbeddingAndHead.REACHABLE) for m in (model, model.reference_copy())
    )
    assert divergence(got, want) < 1e-3


def test_candidates_of_the_first_look_hold_the_best_token(lab: Lab) -> None:
    """The 4-bit head's best tokens, scored again, must name the token that the whole 8-bit head names."""
    model = loaded(lab, "int4").model
    tokens = stretches(lab, 1, 400)[0]
    with torch.inference_mode():
        batch = Batch(torch.tensor(tokens), torch.arange(len(tokens)), [Span(0, len(tokens), model.memory(), first=0)])
        hidden: list[torch.Tensor] = []
        model.forward(batch, lambda m, h, b: hidden.append(m.run_layers(h, b)) or PlanResult(hidden[0], 0.0), last=1)
        h = model.norm(hidden[0])
        exact = model.embedding.logits(h)
        ranks = (
            model.embedding.candidate_head(h) > model.embedding.candidate_head(h).gather(1, exact.argmax(-1)[:, None])
        ).sum(-1)
    assert int(ranks.max()) < EmbeddingAndHead.CANDIDATES / 2
    assert argmax(model.embedding.logits(h, EmbeddingAndHead.CANDIDATES)) == exact.argmax(-1).tolist()


def test_copies_are_counted_and_can_be_left_out(lab: Lab) -> None:
    full, lean = (run(lab, PROMPTS[1], weights="int4", copies=c, limit=8) for c in ("auto", "none"))
    assert lean["metrics"]["weight_bytes"] < 100e6
    assert full["metrics"]["weight_bytes"] > (300e6 if onednn(torch.bfloat16) else 80e6), "where copies are of use"
    assert lean["text"] == full["text"]


@pytest.mark.parametrize("weights", ["dense-fp32", "dense-bf16", "int8", "int4"])
def test_the_sidebar_says_what_a_run_then_holds(lab: Lab, weights: str) -> None:
    """Part by part by the same names, and in all within a tenth; it once said 96 MB where a run took 389."""
    m = run(lab, PROMPTS[0], weights=weights, limit=32)["metrics"]
    ran, rows = trace.memory_parts(m), m["prompt_tokens"] + 32
    told = fit.fit(MODELS["smollm2-135m"].size, weights, rows, 1 << 40, copies=True).parts
    assert told["copies"] == pytest.approx(ran["copies"], rel=0.02)
    assert sum(told.values()) == pytest.approx(m["memory_bytes_peak"], rel=0.1)
    assert sum(ran.values()) == pytest.approx(m["memory_bytes_peak"], rel=0.02)


def test_a_run_replays_to_the_same_figures(lab: Lab) -> None:
    prepared = lab.prepare(
        Settings(prompt=PROMPTS[0], max_new_tokens=16, stack=Stack.from_arguments(["prompt-lookup"]))
    )
    events = list(lab.run(prepared))
    assert trace.ledger(trace.loads(trace.dumps(events))) == trace.ledger(events)

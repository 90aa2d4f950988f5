"""The default model itself: its text is that of transformers, lossless techniques leave it alone, and it answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from llmlab import trace
from llmlab.experiment import Lab, Settings
from llmlab.models import sources
from llmlab.stack import Stack

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]
PROMPTS = (
    "Why is the sky blue?",
    "Name the capital city of France.",
    "Repeat this line three times: the cat sat on the mat and the dog lay by the door.",
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab on all of the machine's threads: this model is not tiny."""
    import os

    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield Lab()
    torch.set_num_threads(before)


def run(lab: Lab, prompt: str, *techniques: str, limit: int = 40, **settings: Any) -> dict[str, Any]:
    stack = Stack.from_arguments(techniques)
    prepared = lab.prepare(Settings(prompt=prompt, max_new_tokens=limit, stack=stack, **settings))
    return lab.record(prepared, list(lab.run(prepared)))


def test_greedy_text_is_that_of_transformers(lab: Lab) -> None:
    from transformers import AutoModelForCausalLM

    loaded = lab.shelf.load("smollm2-135m", "dense-fp32")
    path = sources.fetch(sources.find("smollm2-135m")).path
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
    small, large = run(lab, PROMPTS[1], weights="int4", limit=24), run(lab, PROMPTS[1], limit=24)
    assert "Paris" in small["text"]
    assert small["metrics"]["weight_bytes"] < large["metrics"]["weight_bytes"] / 4


def test_a_run_replays_to_the_same_figures(lab: Lab) -> None:
    prepared = lab.prepare(
        Settings(prompt=PROMPTS[0], max_new_tokens=16, stack=Stack.from_arguments(["prompt-lookup"]))
    )
    events = list(lab.run(prepared))
    assert trace.ledger(trace.loads(trace.dumps(events))) == trace.ledger(events)

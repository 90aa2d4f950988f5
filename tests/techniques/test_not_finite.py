"""A model that computes NaN or infinity ends its run with a sentence that names the layer, whatever drafts for it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from llmlab.errors import Refused
from llmlab.models.loading.contents import read_config
from llmlab.models.loading.sources.locate import find
from llmlab.models.wrapped.admission import sibling_model
from llmlab.models.wrapped.loading import build as build_wrapped
from llmlab.runtime.events import Committed, Event
from llmlab.runtime.generate import generate
from llmlab.runtime.sampling import Sampler
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make
from tests import tiny
from tests.laws import laws

PROMPT = [5, 6, 7, 5, 6, 7, 5, 6]
SAMPLERS = pytest.mark.parametrize("sampler", [Sampler(), Sampler(1.0)], ids=["greedy", "sampled"])
STACKS = {
    "plain": (),
    "lookup": ("prompt-lookup",),
    "self": ("self-speculation",),
    "typical": ("prompt-lookup", "typical"),
    "exit": ("early-exit",),
    "sinks": ("streaming-llm",),
}


def stack(name: str) -> Stack:
    return Stack([make(t) for t in STACKS[name]])


@SAMPLERS
@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_layer_and_its_damaged_matrix_are_named(value: float, name: str, sampler: Sampler) -> None:
    model = tiny.decoder("llama").private_copy()
    dense = model.layers[2].linears()["out"].dense().clone()
    dense[3] = value
    model.layers[2].store("out", dense)
    with pytest.raises(Refused, match="layer 3 of 4 is the first, because its matrix out holds"):
        laws.run(model, PROMPT, 8, stack(name), sampler=sampler)


@SAMPLERS
def test_an_overflow_is_told_from_damage(sampler: Sampler) -> None:
    model = tiny.decoder("llama").private_copy()
    for name in ("gate_up", "down"):
        model.layers[1].store(name, torch.full_like(model.layers[1].linears()[name].dense(), 1e30))
    with pytest.raises(Refused, match=r"layer 2 of 4 is the first, because numbers as large as .* go in"):
        laws.run(model, PROMPT, 8, sampler=sampler)


@SAMPLERS
def test_no_draft_counts_as_accepted_and_no_text_is_written(sampler: Sampler) -> None:
    model = tiny.decoder("llama").private_copy()
    dense = model.layers[0].linears()["qkv"].dense().clone()
    dense[:] = torch.nan
    model.layers[0].store("qkv", dense)
    seen: list[Event] = []
    with pytest.raises(Refused):
        seen.extend(generate(model, PROMPT, 8, stack("lookup"), sampler, tools=tiny.tools()))
    assert seen
    assert not any(isinstance(e, Committed) for e in seen)


def test_a_draft_whose_fallen_words_are_no_numbers_ends_nothing() -> None:
    """Rows of nodes that the model rejects decide nothing, so the text is what it would be without a drafter."""
    model = copy.deepcopy(tiny.decoder("llama"))
    plain = laws.text(model, PROMPT, 6)
    never = next(t for t in range(model.vocab) if t not in {*PROMPT, *plain})
    model.embedding.embed.weight[never] = torch.nan
    script = laws.Script(truth=(*PROMPT, *([never] * 12)), seed=0, tree=False, most=3)
    assert laws.text(model, PROMPT, 6, Stack([script])) == plain


def test_wrapped_models_name_their_part(tmp_path: Path) -> None:
    sibling_model(tiny._config("gpt2")).save_pretrained(tmp_path)
    model = build_wrapped(str(tmp_path), read_config(find(str(tmp_path))), "dense-fp32", "cpu")
    with torch.no_grad():
        model.hf.transformer.h[1].mlp.c_fc.weight.fill_(torch.nan)
    with pytest.raises(Refused, match=r"its part transformer\.h\.1\.mlp\.c_fc is the first, because its weight holds"):
        laws.run(model, PROMPT, 8)

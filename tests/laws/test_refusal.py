"""Every technique, alone and in pairs, with every knob at its ends, either runs or says who, why and what now."""

from __future__ import annotations

import itertools
import re

import pytest

from llmlab.errors import Refusal, Refused
from llmlab.models.capabilities import THROUGH_ATTENTION as ABILITIES
from llmlab.models.decoder import Decoder
from llmlab.models.mixers.attention import Attention
from llmlab.runtime.generate import generate
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import Technique, make, registry
from tests import tiny
from tests.laws import laws

PROMPT = tiny.prompts(1, 21)[0]


def well_said(refusal: Refusal) -> list[str]:
    """What is missing from a refusal: who, why and what now, as sentences that read well."""
    wrong = []
    for part in ("who", "why", "now"):
        text = getattr(refusal, part)
        if not text.strip() or "\n" in text:
            wrong.append(f"{part} is {text!r}")
    sentence = str(refusal)
    if not re.fullmatch(r"[A-Z0-9«\"'].+[^.]\. [A-Z].+[^.]\.", sentence, re.DOTALL) or len(sentence) > 300:
        wrong.append(f"{sentence!r} does not read as a reason and a way out")
    return wrong


def runs(stack: Stack) -> None:
    model = laws.changed(tiny.decoder("llama"), stack, tiny.tools())
    assert len(laws.text(model, PROMPT, 8, stack)) == 8


@pytest.mark.parametrize("pair", list(itertools.combinations(registry(), 2)), ids="+".join)
def test_every_pair_runs_or_is_refused(llama: Decoder, pair: tuple[str, str]) -> None:
    stack = laws.accompanied(*map(laws.sharp, pair))
    refusals = stack.refusals(llama.capabilities)
    if not refusals:
        runs(stack)
        return
    for refusal in refusals:
        assert well_said(refusal) == []
        assert sum(t.title in str(refusal) for t in stack) >= 2, "a refusal names both"
    with pytest.raises(Refused, match=re.escape(str(refusals[0]))):
        next(generate(llama, PROMPT, 1, stack))


@pytest.mark.parametrize("technique", [t for id in registry() for t in laws.ends(id)], ids=lambda t: repr(Stack([t])))
def test_every_end_of_every_knob_runs_or_is_refused(technique: Technique) -> None:
    stack = laws.accompanied(technique)
    assert stack.refusals(Attention.capabilities) == []
    refusals = []
    try:
        runs(stack)
    except Refused as e:
        refusals.append(e.refusal)
    assert [wrong for r in refusals for wrong in well_said(r)] == []


@pytest.mark.parametrize("id", registry())
def test_a_model_without_an_ability_is_refused_before_anything_runs(id: str) -> None:
    technique = laws.sharp(id)
    for missing in sorted(technique.required(), key=lambda a: a.name):
        refusals = Stack([technique]).refusals(Attention.capabilities - {missing}, "Tiny")
        assert len(refusals) == 1
        assert well_said(refusals[0]) == []
        assert technique.title in str(refusals[0])
        assert "Tiny" in str(refusals[0])
        assert missing.value in str(refusals[0])


def test_what_a_wrapped_model_cannot_do_is_refused_with_a_way_out() -> None:
    refused = {id for id in registry() if Stack([laws.sharp(id)]).refusals(ABILITIES)}
    assert refused >= {"wanda", "early-exit", "self-speculation", "streaming-llm"}
    assert not refused & {"prompt-lookup", "draft-model", "h2o"}
    assert not Stack([make("streaming-llm", reposition=False)]).refusals(ABILITIES)


def test_two_of_a_kind() -> None:
    (refusal,) = Stack([make("h2o"), make("streaming-llm")]).refusals(Attention.capabilities)
    assert str(refusal).startswith("StreamingLLM does the same job as H2O, heavy hitters")
    with pytest.raises(Refused, match="twice"):
        Stack([make("h2o"), make("h2o", budget=8)])


@pytest.mark.parametrize("prompt", [[], [1] * 257], ids=["empty", "too long"])
def test_a_prompt_that_cannot_work(llama: Decoder, prompt: list[int]) -> None:
    with pytest.raises(Refused) as e:
        list(generate(llama, prompt, 1))
    assert well_said(e.value.refusal) == []


def test_a_run_without_a_second_model_says_so(llama: Decoder) -> None:
    with pytest.raises(Refused, match="second model"):
        list(generate(llama, PROMPT, 4, Stack([make("draft-model")])))

"""Exact techniques change no token, whatever lossy stack they are added to (float32, greedy)."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.models.decoder import Decoder
from llmlab.models.mixers.attention import Attention
from llmlab.runtime.generate import committed_tokens
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import Technique, make
from tests import tiny
from tests.laws import laws

LIMIT = 24
COMPOSED = [
    (lossy, laws.sharp(exact))
    for exact in laws.exact_ids()
    for lossy in laws.lossy_stacks()
    if not Stack([*lossy, laws.sharp(exact)]).refusals(Attention.capabilities)  # what is refused is in test_refusal.py
]


@cache
def without(lossy: Stack) -> tuple[Decoder, list[list[int]], list[list[int]]]:
    """The model with the transforms of a lossy stack, prompts, and what that stack writes after each of them."""
    prompts = tiny.prompts(20 if len(lossy.without("Drafter")) < 2 else 5, 21)
    model = laws.changed(tiny.decoder("llama"), lossy, tiny.tools())
    return model, prompts, laws.texts(model, lossy, prompts, LIMIT, tiny.tools)


@pytest.mark.parametrize(("lossy", "technique"), COMPOSED, ids=lambda x: x.id if isinstance(x, Technique) else repr(x))
def test_text_is_the_same_with_and_without(lossy: Stack, technique: Technique) -> None:
    model, prompts, want = without(lossy)
    got = laws.texts(model, Stack([*lossy, technique]), prompts, LIMIT, tiny.tools)
    assert laws.differences(want, got) == []


@pytest.mark.parametrize(
    "technique", [t for id in laws.exact_ids() for t in laws.ends(id)], ids=lambda t: repr(Stack([t]))
)
@pytest.mark.parametrize("lossy", [[], ["h2o"]], ids=["alone", "h2o"])
def test_at_the_ends_of_every_knob(technique: Technique, lossy: list[str]) -> None:
    stack = Stack([laws.sharp(id) for id in lossy])
    model, prompts, want = without(stack)
    got = laws.texts(model, Stack([*stack, technique]), prompts[:4], LIMIT, tiny.tools)
    assert laws.differences(want[:4], got) == []


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen2-window", "qwen3", "llama-yarn"])
@pytest.mark.parametrize("lossy", [[], ["streaming-llm"], ["h2o"]], ids=lambda ids: "+".join(ids) or "alone")
@pytest.mark.parametrize("exact", laws.exact_ids())
def test_in_every_family(family: str, lossy: list[str], exact: str) -> None:
    stack = Stack([laws.sharp(id) for id in lossy])
    model, prompts = tiny.decoder(family), tiny.prompts(3, 21, seed=2)
    assert laws.exactness(model, stack, laws.sharp(exact), prompts, LIMIT, lambda: tiny.tools(family)) == []


@pytest.mark.parametrize("exact", laws.exact_ids())
def test_an_eager_drafter_gets_guesses_accepted(llama: Decoder, exact: str) -> None:
    """Without this, the laws above could hold because nothing is ever drafted."""
    accepted = 0
    for prompt in tiny.prompts(8, 21):
        events = laws.run(llama, prompt, 40, Stack([laws.sharp(exact)]))
        accepted += sum(len(e.path) for e in events if isinstance(e, laws.Committed))
    assert accepted >= 5


def test_a_stranger_drafts_mostly_in_vain_and_changes_nothing(llama: Decoder) -> None:
    stranger = make("draft-model", model="llama-plain", confidence=0.0)
    assert laws.exactness(llama, Stack(), stranger, tiny.prompts(6, 21), LIMIT, tiny.tools) == []


@pytest.mark.parametrize("id", laws.lossy_ids())
def test_lossy_settings_bite(id: str) -> None:
    """The settings under which exactness is tested really change the text; else the law above would say nothing."""
    assert laws.differences(without(Stack())[2], without(laws.alone(id))[2]), (
        f"give {id} biting_settings at which it changes a tiny model's text"
    )


# Every accept length --------------------------------------------------------------------------------------------

EVICTING = [Stack(), *(Stack([laws.sharp(id)]) for id in laws.lossy_ids() if laws.sharp(id).role == "CachePolicy")]
MOST = 8


@pytest.mark.parametrize("lossy", EVICTING, ids=repr)
@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
def test_every_accept_length(llama: Decoder, lossy: Stack, tree: bool) -> None:
    wrong, seen = laws.scripted(llama, lossy, tiny.prompts(25, 21), 40, tree, most=MOST)
    assert wrong == []
    accepted = {a for _, a in seen}
    # Under eviction the line clips the longest drafts, which is the point of it.
    assert accepted >= set(range(MOST + 1 if not len(lossy) else 5))
    if not tree and not len(lossy):
        assert seen >= {(k, a) for k in range(MOST + 1) for a in range(k + 1)}


@pytest.mark.parametrize("family", ["mistral", "qwen2-window", "qwen3"])
@pytest.mark.parametrize("lossy", EVICTING, ids=repr)
def test_random_trees_in_every_family(family: str, lossy: Stack) -> None:
    wrong, _ = laws.scripted(tiny.decoder(family), lossy, tiny.prompts(8, 21), 30, tree=True, seed=100)
    assert wrong == []


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, tiny.VOCAB - 1), min_size=1, max_size=40),
    st.integers(0, 1 << 20),
    st.integers(4, 20),
    st.integers(1, 12),
    st.sampled_from(["streaming-llm", "h2o"]),
    st.booleans(),
)
def test_any_prompt_any_line(prompt: list[int], seed: int, budget: int, every: int, policy: str, tree: bool) -> None:
    stack = Stack([make(policy, budget=budget, every=every)])
    wrong, _ = laws.scripted(tiny.decoder("llama"), stack, [prompt], 24, tree, seed)
    assert wrong == []


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
def test_a_draft_of_more_than_a_hundred_tokens(llama: Decoder, tree: bool) -> None:
    """Attention that is watched comes in chunks of 128 queries; a draft may be longer than one."""
    wrong, seen = laws.scripted(
        llama, Stack([make("h2o", budget=12, every=150)]), tiny.prompts(6, 21), 180, tree, most=200
    )
    assert wrong == []
    assert max(drafted for drafted, _ in seen) > 128


def test_a_draft_never_outruns_the_limit_or_the_context(llama: Decoder) -> None:
    prompt = tiny.prompts(1, 21)[0]
    truth = laws.text(llama, prompt, 400)
    assert len(prompt) + len(truth) == llama.context + 1  # the last token is written, not read
    for limit in (1, 2, 7, 400):
        script = laws.Script(truth=(*prompt, *truth, *prompt), most=8)
        events = laws.run(llama, prompt, limit, Stack([script]))
        assert committed_tokens(events) == truth[:limit]
        assert events[-1].reason == ("limit" if limit < 400 else "context full")

"""What drafters guess, by hand."""

from __future__ import annotations

import pytest
import torch

from llmlab.models.batch import Batch, Span
from llmlab.models.decoder import Decoder
from llmlab.runtime.draft import Draft, Verdict
from llmlab.runtime.sampling import Sampler
from llmlab.runtime.session import Session
from llmlab.runtime.technique import make
from llmlab.runtime.tools import Tools
from llmlab.techniques.drafting.self_speculation import skipping
from tests import tiny
from tests.laws import laws

# Drafts ---------------------------------------------------------------------------------------------------------


def test_a_tree_by_hand() -> None:
    """0 and 1 follow the root, 2 and 3 follow node 0, 4 follows node 3."""
    draft = Draft((5, 6, 7, 8, 9), (-1, -1, 0, 0, 3), (None,) * 5)
    assert draft.depths() == [1, 1, 2, 2, 3]
    assert draft.children(-1) == [0, 1]
    assert draft.children(0) == [2, 3]
    assert not draft.is_chain
    assert draft.visible().int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]
    cut = draft.clipped(2)
    assert (cut.tokens, cut.parents) == ((5, 6, 7, 8), (-1, -1, 0, 0))
    assert draft.clipped(3) is draft
    assert len(draft.clipped(0)) == 0


def test_clipping_renumbers_the_parents() -> None:
    draft = Draft((1, 2, 3, 4), (-1, 0, 1, -1), (None,) * 4)
    cut = draft.clipped(1)
    assert (cut.tokens, cut.parents) == ((1, 4), (-1, -1))


def test_a_chain() -> None:
    draft = Draft.chain([4, 5, 6])
    assert draft.parents == (-1, 0, 1)
    assert draft.is_chain
    assert Draft().is_chain
    assert draft.visible().equal(torch.ones(4, 4, dtype=torch.bool).tril())


# Prompt lookup --------------------------------------------------------------------------------------------------


def look(tokens: list[int], later: tuple[list[int], ...] = (), **knobs: int) -> list[tuple[int, ...]]:
    """The drafts for `tokens`, and again after each of `later` has been committed."""
    session = Session(tiny.decoder("llama"))
    session.tokens = list(tokens)
    drafts = make("prompt-lookup", **knobs).drafts(session, Tools())
    found = [next(drafts).tokens]
    for more in later:
        session.tokens += more
        found.append(drafts.send(Verdict()).tokens)
    return found


def test_lookup_copies_what_followed_the_same_words() -> None:
    assert look([1, 2, 3, 4, 5, 9, 1, 2, 3], length=2) == [(4, 5)]
    assert look([1, 2, 3, 4, 5, 9, 1, 2, 3], length=10) == [(4, 5, 9, 1, 2, 3)]


def test_lookup_wants_the_longest_match() -> None:
    """7 8 follows 2 3 last, but 1 2 3 stands earlier and is longer."""
    assert look([1, 2, 3, 4, 0, 2, 3, 7, 8, 1, 2, 3], length=1) == [(4,)]
    assert look([1, 2, 3, 4, 0, 2, 3, 7, 8, 1, 2, 3], length=1, ngram=2) == [(7,)]


def test_lookup_wants_the_latest_occurrence() -> None:
    assert look([1, 2, 5, 1, 2, 6, 1, 2], length=1) == [(6,)]


def test_lookup_finds_nothing_where_nothing_repeats() -> None:
    assert look([1, 2, 3, 4, 5]) == [()]
    assert look([1]) == [()]
    assert look([1, 2, 1]) == [()], "one token is shorter than the shortest match that counts"
    assert look([1, 2, 1], least=1, length=1) == [(2,)]


def test_lookup_runs_into_its_own_end() -> None:
    assert look([1, 1, 1, 1], least=1, length=3) == [(1,)]


def test_lookup_learns_from_what_was_committed() -> None:
    assert look([1, 2, 3], ([7, 1, 2],), length=2) == [(), (3, 7)]
    assert look([1, 2, 3], ([7], [1], [2], [3]), length=1, ngram=2) == [(), (), (), (3,), (7,)]


# Drafting with models -------------------------------------------------------------------------------------------


def greedy(model: Decoder, tokens: list[int], n: int) -> list[int]:
    return laws.text(model, tokens, n)


def first_draft(technique, model: Decoder, prompt: list[int], sampler: Sampler | None = None) -> tuple[Draft, Session]:
    tools = tiny.tools()
    session = laws.Stack([technique]).session(model, tools, sampler=sampler)
    list(session.prefill(prompt))
    return next(technique.drafts(session, tools)), session


def test_a_draft_model_writes_ahead() -> None:
    prompt = tiny.prompts(1, 21)[0]
    draft, _ = first_draft(make("draft-model", length=5, confidence=0.0), tiny.decoder("llama"), prompt)
    assert list(draft.tokens) == greedy(tiny.decoder("llama", "int4"), prompt, 5)
    assert draft.q == (None,) * 5


def test_a_draft_model_keeps_its_distributions_when_sampling() -> None:
    prompt, sampler = tiny.prompts(1, 21)[0], Sampler(0.7, top_k=10)
    draft, _ = first_draft(make("draft-model", length=3), tiny.decoder("llama"), prompt, sampler)
    helper = tiny.decoder("llama", "int4")
    whole = [*prompt, *draft.tokens]
    want = sampler.distribution(laws.logits(helper, whole, [len(whole)]))
    for i, q in enumerate(draft.q):
        assert torch.allclose(q, want[len(prompt) - 1 + i], atol=0.05)
        assert q[draft.tokens[i]] > 0


@pytest.mark.parametrize("confidence", [0.0, 0.3, 0.6])
def test_a_draft_ends_where_the_draft_model_is_unsure(confidence: float) -> None:
    helper = tiny.decoder("llama", "int4")
    for prompt in tiny.prompts(4, 21):
        draft, _ = first_draft(make("draft-model", length=6, confidence=confidence), tiny.decoder("llama"), prompt)
        text = greedy(helper, prompt, 7)
        whole = [*prompt, *text]
        sure = torch.softmax(laws.logits(helper, whole, [1] * len(whole)), -1).amax(-1)[len(prompt) - 1 :]
        want = next((i for i in range(6) if sure[i] < confidence), 6)
        assert len(draft) == want


def test_a_draft_model_catches_up_after_a_rejection(llama: Decoder) -> None:
    """Its own memory must forget what was rejected: the next draft is as from a fresh model."""
    prompt = tiny.prompts(1, 21)[0]
    session = Session(llama)
    list(session.prefill(prompt))
    drafts = make("draft-model", length=4, confidence=0.0).drafts(session, tiny.tools())
    next(drafts)
    session.tokens += [3, 1, 4]
    again = drafts.send(Verdict())
    assert list(again.tokens) == greedy(tiny.decoder("llama", "int4"), [*prompt, 3, 1, 4], 4)


def test_drafting_leaves_the_session_as_it_was(llama: Decoder) -> None:
    prompt = tiny.prompts(1, 21)[0]
    for id in laws.exact_ids():
        _, session = first_draft(laws.sharp(id), llama, prompt)
        assert session.tokens == prompt
        assert session.memory.rows() == [len(prompt) - 1] * 4
        assert session.memory.next_position == len(prompt) - 1
        assert session.uncached == 1
        assert session.policy is None


def test_self_speculation_skips_the_layers_of_least_influence(llama: Decoder) -> None:
    """Of the inner layers, 1 and 2, the one that turns its input less is left out while drafting."""
    prompt, scores = tiny.prompts(1, 21)[0], make("self-speculation")._influence(llama, tiny.tools())
    least = min((1, 2), key=scores.__getitem__)
    draft, _ = first_draft(make("self-speculation", skip=0.25, length=4, confidence=0.0), llama, prompt)
    want = {}
    for layer in (1, 2):
        session = Session(llama)
        list(session.prefill(prompt))
        with session.speculative_scope() as ahead:
            text = []
            for _ in range(4):
                text.append(int(ahead.forward(plan=skipping(frozenset({layer}))).logits[0].argmax()))
                ahead.append_token(text[-1])
        want[layer] = text
    assert want[1] != want[2]
    assert list(draft.tokens) == want[least]


def test_skipping_is_running_the_other_layers(llama: Decoder) -> None:
    tokens = tiny.text(12)
    short = llama.private_copy()
    del short.layers[1]
    for i, block in enumerate(short.layers):
        block.index = i
    batch = Batch(torch.tensor(tokens), torch.arange(12), [Span(0, 12, llama.memory())])
    with torch.inference_mode():
        got = llama.forward(batch, skipping(frozenset({1}))).logits
    assert torch.allclose(got, laws.logits(short, tokens, [12]), atol=1e-5)
    assert batch.spans[0].memory.rows() == [12, 0, 12, 12]


@pytest.mark.parametrize("id", ["draft-model", "self-speculation"])
def test_drafting_stops_at_the_line(llama: Decoder, id: str) -> None:
    """A draft past the line would be clipped, so it is not computed in the first place."""
    policy = make("streaming-llm", budget=12, every=3)
    session = laws.Stack([policy]).session(llama)
    list(session.prefill(tiny.text(14)))  # thirteen rows, and the line is at fifteen
    draft = next(laws.sharp(id).drafts(session, tiny.tools()))
    assert session.max_draft_depth() == len(draft) == 1

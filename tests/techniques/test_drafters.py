"""Drafters that need no training: token trees, suffixes, Jacobi blocks, n-gram pools, teams of drafters, by hand."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmlab.errors import Refused
from llmlab.models.capabilities import Capability
from llmlab.models.decoder import Decoder
from llmlab.runtime.draft import Draft, Verdict
from llmlab.runtime.events import Committed, Drafted
from llmlab.runtime.sampling import Sampler, accept, accept_greedy
from llmlab.runtime.session import Session
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make
from llmlab.runtime.tools import Tools
from llmlab.techniques.drafting.draft_length import AdaptiveLength
from llmlab.techniques.drafting.draft_tree import MOST, Tree, branches, chain, grow, without
from llmlab.techniques.drafting.lookahead import Lookahead
from llmlab.techniques.drafting.self_speculation import skipping
from llmlab.techniques.drafting.suffixes import WALK, Suffixes
from tests import tiny
from tests.laws import laws

Says = Callable[[list[int]], int]
PROMPT = tiny.prompts(1, 21)[0]


def play(technique: Any, prompt: Sequence[int], says: Says, limit: int, room: int = 1000) -> list[tuple[Draft, int]]:
    """The loop without a model: `says(prefix)` is the next token. Every draft, with how many of it were right."""
    session = Session(tiny.decoder("llama"))
    session.tokens = list(prompt)
    session.max_draft_depth = lambda: room  # type: ignore[method-assign]
    drafts = technique.drafts(session, Tools())
    seen: list[tuple[Draft, int]] = []
    verdict = None
    while len(session.tokens) < len(prompt) + limit:
        draft = (next(drafts) if verdict is None else drafts.send(verdict)).clipped(room)
        paths: list[list[int]] = []
        for token, parent in zip(draft.tokens, draft.parents, strict=True):
            paths.append([*([] if parent < 0 else paths[parent]), token])
        best = [says([*session.tokens, *path]) for path in [[], *paths]]
        path, bonus = accept_greedy(draft, best)
        tokens = [*(draft.tokens[i] for i in path), bonus]
        session.tokens += tokens
        verdict = Verdict(path, tuple(tokens), draft, tuple(best))
        seen.append((draft, len(path)))
    text = list(prompt)
    while len(text) < len(session.tokens):
        text.append(says(text))
    assert session.tokens == text
    return seen


def first(technique: Any, prompt: Sequence[int]) -> Draft:
    return play(technique, prompt, lambda prefix: 0, 1)[0][0]


# Trees ----------------------------------------------------------------------------------------------------------


def test_a_tree_merges_common_beginnings() -> None:
    tree = Tree()
    end = tree.path([5, 6, 7])
    assert end == 2
    assert tree.path([5, 6, 8]) == 3
    assert tree.add(-1, 5) == 0
    assert tree.add(-1, 9) == 4
    draft = tree.draft()
    assert (draft.tokens, draft.parents) == ((5, 6, 7, 8, 9), (-1, 0, 1, 1, -1))


def test_a_drawn_node_carries_its_q_given_that_it_differs() -> None:
    q = torch.tensor([0.5, 0.3, 0.2])
    tree = Tree()
    tree.add(-1, 0)
    tree.add(-1, 2, q)
    tree.add(-1, 2, q)
    tree.add(-1, 1, q)
    draft = tree.draft()
    assert draft.tokens == (0, 2, 1)
    assert draft.q[0] is None
    assert draft.q[1].tolist() == pytest.approx([0, 0.6, 0.4])
    assert draft.q[2].tolist() == pytest.approx([0, 1, 0])
    assert q.tolist() == pytest.approx([0.5, 0.3, 0.2])
    assert without(q, [0, 1, 2]) is None


def test_merging_leaves_out_what_does_not_fit() -> None:
    tree = Tree()
    assert tree.merge(Draft.chain([1, 2, 3]), 4) == [0, 1, 2]
    assert tree.merge(Draft((1, 4, 5, 2, 6), (-1, 0, 1, 0, 3), (None,) * 5), 4) == [0, 3, None, 1, None]
    assert tree.draft().tokens == (1, 2, 3, 4)


@pytest.mark.parametrize("text", ["1", "2x2x1", "8x1x8"])
def test_branches(text: str) -> None:
    assert branches(text, "x") == tuple(int(b) for b in text.split("x"))


@pytest.mark.parametrize("id", ["draft-model", "self-speculation", "multi-draft"])
@pytest.mark.parametrize("text", ["", "0", "9", "2,2", "2x", "x2", "2x0", "x".join("1" * 17), "２"])
def test_branches_that_make_no_sense_are_refused(id: str, text: str) -> None:
    with pytest.raises(Refused, match="as children per step"):
        make(id, tree=text)


# The law of merged and grown trees ------------------------------------------------------------------------------

P, QA, QB = laws.conditional(1, 3), laws.conditional(2, 3, sharp=1.5), laws.conditional(3, 3, sharp=0.7)


def always(*p: float) -> laws.Conditional:
    return lambda prefix: torch.tensor(p)


def gap(make_draft: Callable[[laws.Fate], Draft], length: int, P: laws.Conditional = P) -> float:
    """How far the law of what `accept` makes of these drafts, continued by P, lies from P's own."""

    def act(fate: laws.Fate) -> tuple[int, ...]:
        draft = make_draft(fate)
        prefixes: list[tuple[int, ...]] = []
        for token, parent in zip(draft.tokens, draft.parents, strict=True):
            prefixes.append((*(() if parent < 0 else prefixes[parent]), token))
        path, bonus = accept(draft, torch.stack([P(()), *map(P, prefixes)]), fate)
        return (*(draft.tokens[i] for i in path), bonus)

    got: laws.Law = defaultdict(float)
    for weight, sequence in laws.outcomes(act):
        laws.extend(got, sequence, weight, P, length)
    want: laws.Law = defaultdict(float)
    laws.extend(want, (), 1.0, P, length)
    return max(abs(got[s] - want[s]) for s in {*got, *want})


def drawn(fate: laws.Fate, q: laws.Conditional, length: int) -> Draft:
    tokens: list[int] = []
    for _ in range(length):
        tokens.append(fate.categorical(q(tuple(tokens))))
    return Draft.chain(tokens, [q(tuple(tokens[:i])) for i in range(length)])


def grown(fate: laws.Fate, q: laws.Conditional, shape: tuple[int, ...], length: int) -> Draft:
    """`grow` with a model whose distributions are q."""
    session = Session(tiny.decoder("llama"), sampler=Sampler(1.0), random=fate)

    def score(draft: Draft) -> Tensor:
        prefixes: list[tuple[int, ...]] = []
        for token, parent in zip(draft.tokens, draft.parents, strict=True):
            prefixes.append((*(() if parent < 0 else prefixes[parent]), token))
        return torch.stack([q(()), *map(q, prefixes)]).log()

    return grow(session, score, shape, length, 0.9)


def merged(*drafts: Draft, most: int = 9) -> Draft:
    tree = Tree()
    for draft in drafts:
        tree.merge(draft, most)
    return tree.draft()


def naive(*drafts: Draft) -> Draft:
    """As `merged`, without asking what a q is given that the token differs: what must not be done."""
    tokens: list[int] = []
    qs = []
    for draft in drafts:
        if draft.tokens[0] not in tokens:
            tokens.append(draft.tokens[0])
            qs.append(draft.q[0])
    return Draft(tuple(tokens), (-1,) * len(tokens), tuple(qs))


MERGES: dict[str, tuple[Callable[[laws.Fate], Draft], int]] = {
    "two drawn": (lambda fate: merged(drawn(fate, QA, 1), drawn(fate, QB, 1)), 2),
    "two chains": (lambda fate: merged(drawn(fate, QA, 2), drawn(fate, QB, 2)), 3),
    "certain first": (lambda fate: merged(Draft.chain([1, 1]), drawn(fate, QA, 2)), 3),
    "certain last": (lambda fate: merged(drawn(fate, QA, 2), Draft.chain([1, 1]), Draft.chain([2])), 3),
    "cut": (lambda fate: merged(drawn(fate, QA, 2), drawn(fate, QB, 2), most=3), 3),
    "grown": (lambda fate: grown(fate, QA, (2, 1), 2), 3),
    "wider than the vocabulary": (lambda fate: grown(fate, QA, (8,), 1), 2),
    "grown and drawn": (lambda fate: merged(grown(fate, QA, (2,), 1), drawn(fate, QB, 2)), 3),
    "drawn and grown": (lambda fate: merged(drawn(fate, QB, 1), grown(fate, QA, (2,), 1), Draft.chain([0])), 2),
}


@pytest.mark.parametrize("name", MERGES)
def test_merged_trees_follow_the_model(name: str) -> None:
    assert gap(*MERGES[name]) < 1e-6


def test_merging_without_a_thought_does_not() -> None:
    """p = (.2, .4, .4). Token 0 from (.8, .1, .1) is rejected three times of four, which leaves (0, .5, .5). The second
    drafter, (.6, .3, .1), then says 1 or 2 in the ratio 3 : 1; compared with .3 and .1, both are always accepted:
    .8 · .75 · .4 · (.75 - .5) = .06 too much for token 1. Given that they are not 0 they have .75 and .25, and that is
    what they must be compared with.
    """
    p, a, b = always(0.2, 0.4, 0.4), always(0.8, 0.1, 0.1), always(0.6, 0.3, 0.1)
    assert gap(lambda fate: naive(drawn(fate, a, 1), drawn(fate, b, 1)), 1, p) == pytest.approx(0.06, abs=1e-6)
    assert gap(lambda fate: merged(drawn(fate, a, 1), drawn(fate, b, 1)), 1, p) < 1e-6


# The length that pays -------------------------------------------------------------------------------------------


def test_the_length_that_pays_by_hand() -> None:
    """α = 0.8, c = 0.5: 1.8 / 1.5 = 1.2, 2.44 / 2 = 1.22, 2.952 / 2.5 = 1.18 tokens per pass; so two."""
    pace = AdaptiveLength(9, 0.5)
    pace.accepted, pace.tried = 8.0, 10.0
    assert pace.length() == 2
    pace.accepted = 10.0
    assert pace.length() == 9
    pace.accepted = 0.0
    assert pace.length() == 1


def test_what_was_accepted_and_what_was_not() -> None:
    pace = AdaptiveLength(9, 0.5)
    pace.accepted, pace.tried = 10.0, 20.0
    pace.learn(Verdict((0, 1), (5, 6, 7), Draft.chain([5, 6, 8, 9])))
    assert (pace.accepted, pace.tried) == pytest.approx((11, 21))
    pace.learn(Verdict((0, 1), (5, 6, 7), Draft.chain([5, 6])))
    assert (pace.accepted, pace.tried) == pytest.approx((11.9, 20.9))
    pace.learn(Verdict((), (7,), Draft()))
    assert (pace.accepted, pace.tried) == pytest.approx((11.9, 20.9))


# Drafting with models -------------------------------------------------------------------------------------------


def lengths(model: Decoder, technique: Any) -> list[int]:
    return [len(e.tokens) for e in laws.run(model, PROMPT, 60, Stack([technique])) if isinstance(e, Drafted)]


def test_a_draft_gets_longer_while_it_is_right_and_shorter_while_it_is_wrong(llama: Decoder) -> None:
    knobs = {"length": 8, "confidence": 0.0, "adapt": True}
    kin = lengths(llama, make("draft-model", model="int8", **knobs))
    assert kin[0] < max(kin)
    shortened = lengths(llama, make("self-speculation", skip=0.8, **knobs))  # of four layers, the inner two
    assert set(shortened[10:]) == {1}


def level(y: Tensor, count: int) -> list[int]:
    return y.topk(count).indices.tolist()


@pytest.mark.parametrize("id", ["draft-model", "self-speculation"])
def test_a_grown_tree_holds_the_likeliest_children_of_every_node(llama: Decoder, id: str) -> None:
    session = Session(llama)
    list(session.prefill(PROMPT))
    draft = next(make(id, tree="3x2x1", length=4, confidence=0.0).drafts(session, tiny.tools()))
    assert [draft.depths().count(d) for d in (1, 2, 3, 4)] == [3, 6, 6, 6]
    scores = make("self-speculation")._influence(llama, tiny.tools())
    skipped = frozenset({min((1, 2), key=scores.__getitem__)} if id == "self-speculation" else ())

    def said(path: list[int]) -> Tensor:
        """What the drafter says after a path, read as a chain."""
        if id == "draft-model":
            whole = [*PROMPT, *path]
            return laws.logits(tiny.decoder("llama", "int4"), whole, [1] * len(whole))[-1]
        with session.speculative_scope() as ahead:
            return ahead.forward(Draft.chain(path), skipping(skipped)).logits[-1]

    paths: list[list[int]] = []
    for token, parent in zip(draft.tokens, draft.parents, strict=True):
        paths.append([*([] if parent < 0 else paths[parent]), token])
    for node, path in [(-1, []), *enumerate(paths)]:
        count = (3, 2, 1, 1, 0)[len(path)]
        assert [draft.tokens[c] for c in draft.children(node)] == level(said(path), count)


def test_an_unsure_node_gets_no_children() -> None:
    """After the root the two likeliest have 0.9 together, after token 0 only 0.5, after token 1 0.8."""
    p = {(): [0.6, 0.3, 0.05, 0.05], (0,): [0.25] * 4, (1,): [0.1, 0.1, 0.4, 0.4]}
    session = Session(tiny.decoder("llama"))

    def score(draft: Draft) -> Tensor:
        return torch.tensor([p[()], *(p[(t,)] for t in draft.tokens)]).log()

    draft = grow(session, score, (2,), 2, 0.7)
    assert (draft.tokens, draft.parents) == ((0, 1, 2, 3), (-1, -1, 1, 1))


def test_a_tree_stays_within_bounds() -> None:
    def score(draft: Draft) -> Tensor:
        return torch.arange(9.0).expand(len(draft) + 1, 9)

    draft = grow(Session(tiny.decoder("llama")), score, (8,), 16, 0.0)
    assert len(draft) == MOST
    assert max(draft.depths()) == 2


def test_a_draft_model_catches_up_after_a_tree(llama: Decoder) -> None:
    session = Session(llama)
    list(session.prefill(PROMPT))
    drafts = make("draft-model", tree="2x2", length=3, confidence=0.0).drafts(session, tiny.tools())
    one = next(drafts)
    session.tokens += [one.tokens[0], 4]
    again = drafts.send(Verdict((0,), (one.tokens[0], 4), one))
    fresh = Session(llama)
    list(fresh.prefill([*PROMPT, one.tokens[0], 4]))
    want = next(make("draft-model", tree="2x2", length=3, confidence=0.0).drafts(fresh, tiny.tools()))
    assert (again.tokens, again.parents) == (want.tokens, want.parents)


def test_a_chain_is_a_tree_without_branches(llama: Decoder) -> None:
    session, helper = Session(llama), Session(tiny.decoder("llama", "int4"))
    list(session.prefill(PROMPT))
    helper.sync_to(PROMPT)
    straight = chain(session, helper, 4, 0.0)

    def score(draft: Draft) -> Tensor:
        helper.sync_to(PROMPT)
        return helper.forward(draft).logits

    assert grow(session, score, (1,), 4, 0.0).tokens == straight.tokens


# Suffixes -------------------------------------------------------------------------------------------------------


def suffixes(text: Sequence[int]) -> Suffixes:
    made = Suffixes()
    for token in text:
        made.append(token)
    return made


def times(text: Sequence[int], pattern: Sequence[int]) -> int:
    n = len(pattern)
    return sum(list(text[i : i + n]) == list(pattern) for i in range(len(text) - n + 1))


@settings(max_examples=80)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=24))
def test_suffixes_know_every_pattern_and_how_often_it_occurs(text: list[int]) -> None:
    made = suffixes(text)
    assert len(made.length) <= 2 * len(text) + 1
    for a in range(len(text)):
        s = 0
        for b in range(a, len(text)):
            s = made.next[s][text[b]]
            assert made.count[s] == times(text, text[a : b + 1])
            ends = [i for i in range(b - a + 1, len(text) + 1) if text[i - (b - a + 1) : i] == text[a : b + 1]]
            assert made.seen[s] == ends[-1]
    repeated = [n for n in range(1, len(text)) if times(text, text[len(text) - n :]) > 1]
    found = made.patterns(1)
    assert [made.length[s] for s in found[:1]] == repeated[-1:]
    assert {made.count[s] for s in found} == {times(text, text[len(text) - n :]) for n in repeated}


def test_one_word_all_the_time_is_counted_in_bounded_time() -> None:
    made = suffixes([7] * 4000)
    assert [made.length[s] for s in made.patterns(1)] == list(range(3999, 3999 - WALK, -1))
    assert first(make("suffix-matching", nodes=32), [7] * 4000).tokens == (7,) * 32


TEXT = [1, 2, 3, 1, 2, 3, 1, 2, 4, 1, 2]


def suffix(text: Sequence[int] = TEXT, **knobs: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    draft = first(make("suffix-matching", **{"confidence": 0.0, "nodes": 64, **knobs}), text)
    return draft.tokens, draft.parents


def test_the_likeliest_continuations_by_hand() -> None:
    """1 2 was followed by 3 twice and by 4 once; 1 2 3 always by 1 2, and that once by 3 and once by 4."""
    assert suffix(factor=0.5) == ((3,), (-1,))
    assert suffix(factor=1.0) == ((3, 1), (-1, 0))
    assert suffix(factor=1.5) == ((3, 1, 2), (-1, 0, 1))
    # Of value 1/3 are now 4 after the root, and 3 and 4 after 3 1 2: the latest in the text comes first.
    assert suffix(factor=2.0) == ((3, 1, 2, 4), (-1, 0, 1, 2)) or suffix(factor=2.0) == ((3, 1, 2, 4), (-1, 0, 1, -1))
    assert suffix(factor=4.0, confidence=0.5) == ((3, 1, 2), (-1, 0, 1))
    assert suffix(factor=4.0, nodes=2) == ((3, 1), (-1, 0))
    assert suffix(least=3) == ((), ())
    tokens, parents = suffix(factor=4.0)
    assert len(tokens) == 8
    assert parents.count(-1) == 2
    tokens, parents = suffix(factor=4.0, tree=False)
    assert parents == tuple(range(-1, len(tokens) - 1))


def test_of_equally_frequent_words_the_latest_wins() -> None:
    assert suffix([1, 2, 5, 1, 2, 6, 1, 2], factor=0.5) == ((6,), (-1,))


def test_the_pattern_with_most_expected_tokens_wins() -> None:
    """2 3 was followed by 7 8 9 three times; 1 2 3 only once, by 4, but is longer: 3 right guesses against 2."""
    text = [1, 2, 3, 4, 5, 6, 0, *[2, 3, 7, 8, 9] * 3, 1, 2, 3]
    assert suffix(text, factor=1.0)[0] == (4, 5, 6)
    assert suffix(text, factor=1.0, nodes=1)[0] == (4,), "certain, against three times of four"


def test_a_longer_match_makes_a_longer_draft() -> None:
    text = list(range(2, 40))
    for n in (2, 5, 9):
        assert len(first(make("suffix-matching", nodes=64, factor=1.0), [*text, 1, *text[:n]])) == n


def test_quoting_goes_several_tokens_at_a_time() -> None:
    source = tiny.text(40, seed=3)
    seen = play(make("suffix-matching"), [*source, 96, *source[:2]], lambda p: source[(len(p) - 41) % 40], 36)
    assert len(seen) <= 9
    assert all(right == len(draft) for draft, right in seen)


def test_no_room_no_draft() -> None:
    source = [1, 2, 3, 4, 5, 6]
    for room, most in ((0, 0), (1, 1), (2, 2)):
        seen = play(make("suffix-matching"), [*source, *source[:4]], lambda p: 0, 1, room)
        assert len(seen[0][0]) == most


# Jacobi ---------------------------------------------------------------------------------------------------------


def jacobi_by_the_book(model: Decoder, tokens: list[int], y: list[int]) -> tuple[list[int], int]:
    """The fixed point of a whole block, every token computed anew in every pass; and the passes until it is reached.

    As in the loop, the pass that shows the last token right is the last one.
    """
    passes = 0
    while True:
        whole = [*tokens, *y[:-1]]
        y, before = laws.logits(model, whole, [len(whole)])[len(tokens) - 1 :].argmax(-1).tolist(), y
        passes += 1
        right = 0
        while right < len(y) - 1 and before[right] == y[right]:
            right += 1
        if right == len(y) - 1:
            return y, passes


@pytest.mark.parametrize("block", [2, 5])
def test_blocks_reach_their_fixed_point_in_as_many_passes_as_by_the_book(llama: Decoder, block: int) -> None:
    for prompt in tiny.prompts(3, 21):
        events = laws.run(llama, prompt, 4 * block, Stack([make("jacobi", mode="gs-jacobi", block=block, init="pad")]))
        passes = [len(e.tokens) for e in events if isinstance(e, Committed)]
        tokens, want = list(prompt), []
        for _ in range(4):
            y, n = jacobi_by_the_book(llama, tokens, [0] * block)
            tokens += y
            want.append(n)
        assert laws.committed_tokens(events) == tokens[len(prompt) :]
        ends = [i + 1 for i in range(len(passes)) if sum(passes[: i + 1]) % block == 0]
        assert [b - a for a, b in zip([0, *ends], ends, strict=False)][:4] == want


def test_the_next_iterate_is_what_the_model_said() -> None:
    """A block of four after 1: guesses a a a, of which none is right, and the model's words after each of them."""
    session = Session(tiny.decoder("llama"))
    session.tokens = [1]
    drafts = make("jacobi", mode="jacobi", block=4, init="repeat-last").drafts(session, Tools())
    draft = next(drafts)
    assert draft.tokens == (1, 1, 1)
    session.tokens += [5]
    draft = drafts.send(Verdict((), (5,), draft, (5, 6, 7, 8)))
    assert draft.tokens == (6, 7, 8)
    session.tokens += [6, 9]
    draft = drafts.send(Verdict((0,), (6, 9), draft, (6, 9, 3, 2)))
    assert draft.tokens == (3, 2, 2), "the block slides, and its last guess is repeated"


def test_a_block_shrinks_until_it_is_done() -> None:
    session = Session(tiny.decoder("llama"))
    session.tokens = [1]
    drafts = make("jacobi", block=4, init="repeat-last", mode="gs-jacobi").drafts(session, Tools())
    draft = next(drafts)
    session.tokens += [5]
    draft = drafts.send(Verdict((), (5,), draft, (5, 6, 7, 8)))
    assert draft.tokens == (6, 7), "three tokens of the block are open, and the pass says one more than it is given"
    session.tokens += [6, 9]
    draft = drafts.send(Verdict((0,), (6, 9), draft, (6, 9, 3)))
    assert draft.tokens == ()
    session.tokens += [2]
    draft = drafts.send(Verdict((), (2,), draft, (2,)))
    assert draft.tokens == (2, 2, 2), "a new block"


def test_hybrid_goes_on_one_by_one() -> None:
    seen = play(make("jacobi", mode="hybrid", parallel=6, block=3), [1, 2], lambda p: (p[-1] + 1) % 9, 12)
    done = 0
    for draft, right in seen:
        assert (len(draft) == 0) or done < 6
        done += right + 1
    assert [len(draft) for draft, _ in seen[-6:]] == [0] * 6


def test_what_a_block_begins_with() -> None:
    text = [4, 5, 6, 7, 4]
    assert first(make("jacobi", init="copy"), text).tokens == (5, 6, 7)
    assert first(make("jacobi", init="copy"), [4, 5, 4]).tokens == (5, 4, 4), "the text ends, and its end is repeated"
    assert first(make("jacobi", init="copy"), [4, 5, 6]).tokens == (6, 6, 6)
    assert first(make("jacobi", init="repeat-last"), text).tokens == (4, 4, 4)
    assert first(make("jacobi", init="pad"), text).tokens == (0, 0, 0)
    assert set(first(make("jacobi", init="random", block=32), text).tokens) == {4, 5, 6, 7}


# Lookahead ------------------------------------------------------------------------------------------------------


def test_the_window_is_a_tree_of_diagonals() -> None:
    """W = 3, N = 4 off token 9: places 1 and 2 of the oldest guesses, and off each place a diagonal of two more."""
    draft = first(make("lookahead", window=3, ngram=4, candidates=1, text=False), list(range(10)))
    depths = [draft.depths()[i] for i in range(len(draft)) if i not in draft.parents]
    assert len(draft) == 2 + 3 * 2, "another text to guess from if two guesses are alike"
    assert sorted(depths) == [2, 3, 4]


def test_an_ngram_is_tried_when_its_first_token_comes_up() -> None:
    technique = make("lookahead", window=1, ngram=3, candidates=2)
    draft = first(technique, [1, 2, 3, 8, 1, 4, 5, 9, 1, 6, 7, 8, 1])
    paths = {(draft.tokens[p], t) for t, p in zip(draft.tokens, draft.parents, strict=True) if p >= 0}
    assert {(6, 7), (4, 5)} <= paths
    assert (2, 3) not in paths, "the oldest of three gave way"


def test_the_window_writes_ngrams_along_its_diagonals() -> None:
    """W = 2, N = 3, no text in the pool. The model always says its last word plus one, so after token t the pass
    learns t, t + 1 from place 0 whatever was guessed: guess g there makes the n-gram t, g, g + 1."""
    session = Session(tiny.decoder("llama"))
    session.tokens = [50]
    technique = make("lookahead", window=2, ngram=3, candidates=3, text=False)
    drafts = technique.drafts(session, Tools())

    def step(draft: Draft) -> Draft:
        last = [session.tokens[-1], *draft.tokens]
        best = [t + 1 for t in last]
        path, bonus = accept_greedy(draft, best)
        tokens = (*(draft.tokens[i] for i in path), bonus)
        session.tokens += tokens
        return drafts.send(Verdict(path, tokens, draft, tuple(best)))

    draft = next(drafts)
    assert draft.tokens == (50, 50) or draft.tokens == (50,), "all guesses come from a text of one word"
    draft = step(draft)  # the window was 50 | 50 50; it said 51 after each of the two diagonals
    assert session.tokens == [50, 51]
    # Place 1 now holds the level that stood above it (50), and 51 was said on both diagonals.
    assert set(draft.tokens) == {50, 51}
    draft = step(draft)
    assert session.tokens == [50, 51, 52]
    # 51 was said at both places a pass ago: the oldest guess one ahead of 52 is 51, and 52 was said after it.
    assert (51, 52) in {(draft.tokens[p], t) for t, p in zip(draft.tokens, draft.parents, strict=True) if p >= 0}


def _remembered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """What lookahead puts into its pool from now on, in order."""
    grams: list[tuple[int, ...]] = []
    put = Lookahead._remember

    def spy(self: Lookahead, pool: dict[int, dict[tuple[int, ...], None]], gram: Sequence[int]) -> None:
        grams.append(tuple(gram))
        put(self, pool, gram)

    monkeypatch.setattr(Lookahead, "_remember", spy)
    return grams


def test_ngrams_of_the_text_are_stored_whole_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    grams = _remembered(monkeypatch)
    session = Session(tiny.decoder("llama"))
    session.tokens = [1, 2, 3, 4, 5]
    drafts = make("lookahead", window=1, ngram=3).drafts(session, Tools())
    draft = next(drafts)
    assert grams == [(1, 2, 3), (2, 3, 4), (3, 4, 5)]
    grams.clear()
    session.tokens.append(9)
    drafts.send(Verdict((), (9,), draft, tuple([9] * (1 + len(draft)))))
    assert grams[-1] == (4, 5, 9)


@pytest.mark.parametrize(("W", "N"), [(1, 2), (2, 3), (3, 3), (4, 5)])
def test_ngrams_of_the_window_end_in_what_was_said_there(monkeypatch: pytest.MonkeyPatch, W: int, N: int) -> None:
    """A model whose every word is a new one: no guess comes true, and each word tells which path it was said after.

    Passes later the window holds what was said, each word one place nearer, so every n-gram is traced to its place."""
    grams = _remembered(monkeypatch)
    session, words = Session(tiny.decoder("llama")), itertools.count(1000)
    session.tokens = [1, 2, 3, 4, 5]
    drafts = make("lookahead", window=W, ngram=N, text=False, candidates=1).drafts(session, Tools())
    draft, said = next(drafts), []
    for done in range(1, 3 * N):
        best = [next(words) for _ in range(1 + len(draft))]
        answers = dict(zip(_paths(draft, session.tokens[-1]), best, strict=True))
        session.tokens.append(best[0])
        draft = drafts.send(Verdict((), (best[0],), draft, tuple(best)))
        made = grams[-W:]
        assert len(grams) == W * done
        for place, gram in enumerate(made):
            (path,) = [p for p, word in answers.items() if word == gram[-1]]
            assert len(path) == place + N - 1
            assert path[place:] == gram[:-1]
        said.append([gram[-1] for gram in made])
        if done >= N - 1:
            # Said N - 1 passes ago on the diagonal of place i: now the oldest guess there, place 0 having been decided.
            spine = {p[1:] for p in _paths(draft, session.tokens[-1])}
            assert tuple(said[done - N + 1][1:]) in {p[: W - 1] for p in spine}


def _paths(draft: Draft, root: int) -> list[tuple[int, ...]]:
    paths = {-1: (root,)}
    for i, (token, parent) in enumerate(zip(draft.tokens, draft.parents, strict=True)):
        paths[i] = (*paths[parent], token)
    return list(paths.values())


@pytest.mark.parametrize(("window", "ngram"), [(1, 2), (3, 2), (3, 3), (4, 4), (2, 6)])
def test_a_predictable_text_comes_an_ngram_at_a_time(window: int, ngram: int) -> None:
    """Once the window has found the cycle's n-grams, nearly every pass commits N tokens."""
    seen = play(
        make("lookahead", window=window, ngram=ngram, text=False, candidates=3),
        [1],
        lambda p: (p[-1] * 3 + 1) % 10,
        160,
    )
    assert sum(right + 1 for _, right in seen[-8:]) > 7 * ngram
    for draft, _ in seen:
        assert len(draft) <= (window - 1) + window * (ngram - 2) + 3 * (ngram - 1)


def test_a_cut_draft_teaches_nothing_and_breaks_nothing() -> None:
    for room in (0, 1, 2):
        play(make("lookahead", window=3, ngram=5), PROMPT, lambda p: (p[-1] * 3 + 1) % 10, 40, room)


# Teams ----------------------------------------------------------------------------------------------------------


def test_a_team_merges_its_guesses() -> None:
    """After 1 2, lookup copies the latest continuation (4 …), suffix matching the most frequent (3 …)."""
    draft = first(make("multi-draft", drafters="lookup+suffix", length=2), TEXT)
    assert (draft.tokens, draft.parents) == ((4, 1, 3, 1), (-1, 0, -1, 2))
    draft = first(make("multi-draft", drafters="suffix+lookup", length=2, nodes=3), TEXT)
    assert (draft.tokens, draft.parents) == ((3, 1, 4), (-1, 0, -1))


def test_a_team_of_models_drafts_what_each_of_them_drafts(llama: Decoder) -> None:
    def drafted(technique: Any) -> Draft:
        session = Session(llama)
        list(session.prefill(PROMPT))
        return next(technique.drafts(session, tiny.tools()))

    knobs = {"length": 3, "tree": "2x1", "confidence": 0.1}
    both = drafted(make("multi-draft", drafters="int4+llama-plain", nodes=63, **knobs))
    alone = [drafted(make("draft-model", model=name, **knobs)) for name in ("int4", "llama-plain")]
    want = merged(*alone, most=63)
    assert (both.tokens, both.parents) == (want.tokens, want.parents)


@pytest.mark.parametrize("names", ["", "+", "lookup+", "lookup+lookup", "a+b+c+d+e"])
def test_a_team_that_makes_no_sense_is_refused(names: str) -> None:
    with pytest.raises(Refused, match="as drafters"):
        make("multi-draft", drafters=names)


def test_a_team_needs_what_its_members_need() -> None:
    assert Capability.LAYERS in make("multi-draft", drafters="skip+suffix").required()
    assert Capability.LAYERS not in make("multi-draft", drafters="lookup+suffix").required()
    with pytest.raises(Refused, match="no second model"):
        make("multi-draft", drafters="int4+lookup").prepare(None, Tools())

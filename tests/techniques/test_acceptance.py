"""Rules of acceptance, by hand; and whole runs, judged again pass by pass from the model's own logits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmlab.errors import Refused
from llmlab.measure import trace
from llmlab.models.decoder import Decoder
from llmlab.models.mixers.attention import Attention
from llmlab.runtime.draft import Draft, Verdict
from llmlab.runtime.events import Committed, Drafted, Finished, Prefilled
from llmlab.runtime.generate import bare_start, committed_tokens
from llmlab.runtime.roles import Acceptor
from llmlab.runtime.sampling import Sampler, SeededRandom, accept_greedy
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make, registry
from llmlab.runtime.tools import Tools
from llmlab.ui import cards, run_summary
from tests import tiny
from tests.laws import laws
from tests.laws.test_refusal import well_said

IDS = [id for id, cls in registry().items() if cls.role == "Acceptor"]
DRAFTERS = [id for id, cls in registry().items() if cls.role == "Drafter"]


def judged(
    acceptor: Any,
    draft: Draft,
    p: Sequence[Sequence[float]],
    sampler: Sampler | None = None,
    tools: Tools | None = None,
) -> tuple[tuple[int, ...], int]:
    """What the acceptor makes of a draft where the model's probabilities at temperature 1 are p (T, V)."""
    return acceptor.accept(draft, torch.tensor(p).log(), sampler or Sampler(), SeededRandom(0), tools or Tools())


# Paths ----------------------------------------------------------------------------------------------------------


def test_the_longest_path_by_hand() -> None:
    """0 and 1 follow the root, 2 and 3 follow node 0, 4 follows node 1."""
    draft = Draft((5, 6, 7, 8, 9), (-1, -1, 0, 0, 1), (None,) * 5)
    value = torch.tensor([-3.0, -1.0, -1.0, -2.0, -4.0])
    assert draft.longest([True] * 5, value) == (0, 2), "three paths of two; -4 is more than -5 and -5"
    assert draft.longest([True, True, False, True, True], value - torch.tensor([0, 0, 0, 0.5, 0])) == (1, 4)
    assert draft.longest([False, True, True, True, False], value) == (1,), "what follows a misfit is out"
    assert draft.longest([True, True, False, False, False], value) == (1,)
    assert draft.longest([False, False, True, True, True], value) == ()
    assert Draft().longest([], torch.empty(0)) == ()


def test_scores_are_what_the_parent_said() -> None:
    draft = Draft((2, 0, 1), (-1, 0, -1), (None,) * 3)
    y = torch.tensor([[0.1, 0.2, 0.3], [1.1, 1.2, 1.3], [2.1, 2.2, 2.3], [3.1, 3.2, 3.3]])
    assert draft.scores(y).tolist() == pytest.approx([0.3, 1.1, 0.2])


# The rules by hand ----------------------------------------------------------------------------------------------

FLAT = [0.25, 0.25, 0.25, 0.25]
PEAKED = [0.9, 0.06, 0.03, 0.01]


def test_typical_acceptance() -> None:
    """exp(-H) is 0.25 for four equal tokens, so the bar is 0.3 * 0.25 = 0.075; for the peaked one exp(-H) = 0.65 and
    the bar is epsilon = 0.09, above every token but the first."""
    entropy = -sum(x * math.log(x) for x in PEAKED)
    assert 0.3 * math.exp(-entropy) == pytest.approx(0.1981, abs=1e-3)
    rule = make("typical", temperature=1.0)
    draft = Draft.chain([3, 1, 2])
    assert judged(rule, draft, [FLAT, PEAKED, FLAT, FLAT]) == ((0,), 0)
    assert judged(rule, draft, [FLAT, FLAT, FLAT, PEAKED]) == ((0, 1, 2), 0)
    assert judged(make("typical", temperature=1.0, delta=1.1, epsilon=0.3), draft, [FLAT] * 4)[0] == (), (
        "the bar is 0.275"
    )
    assert judged(make("typical", temperature=1.0, epsilon=0.05), draft, [FLAT, PEAKED, FLAT, FLAT])[0] == (0, 1, 2)


def test_typical_acceptance_judges_a_greedy_run_at_its_own_temperature_and_a_sampled_one_at_the_runs() -> None:
    """At temperature T the probability 0.06 becomes 0.06^(1/T) of the sum: 0.0047 at 0.5, 0.156 at 2."""
    draft, p = Draft.chain([1]), [PEAKED, PEAKED]
    for temperature, stands in ((0.0, False), (0.5, False), (2.0, True)):
        assert (judged(make("typical", temperature=temperature), draft, p)[0] == (0,)) is stands
        if temperature:
            sampled = judged(make("typical"), draft, p, Sampler(temperature))
            assert (sampled[0] == (0,)) is stands
    assert judged(make("typical", temperature=0.0), Draft.chain([0]), p) == ((0,), 0)


def test_top_k() -> None:
    """The places of the drafted tokens among the model's: second, first, third."""
    draft, p = Draft.chain([1, 0, 2]), [PEAKED] * 4
    assert judged(make("blockwise-acceptance", k=1), draft, p) == ((), 0)
    assert judged(make("blockwise-acceptance", k=2), draft, p) == ((0, 1), 0)
    assert judged(make("blockwise-acceptance", k=3), draft, p) == ((0, 1, 2), 0)


def test_a_least_block() -> None:
    """A block of three is two guesses and the model's own token, whatever the guesses are."""
    draft, p = Draft.chain([3, 2, 0, 1]), [PEAKED] * 5
    for block, kept in ((1, 0), (2, 1), (3, 3), (5, 4)):
        path, bonus = judged(make("blockwise-acceptance", rule="exact", block=block), draft, p)
        assert (len(path), bonus) == (kept, 0), "the third guess is the model's own choice"
    sampled = make("blockwise-acceptance", rule="exact", block=3)
    certain = [[0.0, 1.0, 0.0, 0.0]] * 5
    assert judged(sampled, draft, certain, Sampler(1.0)) == ((0, 1), 1)


class Digits:
    """A tokenizer of four tokens: 7, 8, 12 and a word."""

    def decode(self, ids: list[int]) -> str:
        return "".join([" 7", "8", "12", " many"][i] for i in ids)


def test_numbers_may_be_off() -> None:
    """The model says 7; 8 is one off, 12 is five off, and a word is no number."""
    p, tools = [PEAKED] * 2, Tools(Digits())
    for tolerance, stand in ((0, {0}), (1, {0, 1}), (5, {0, 1, 2}), (1000, {0, 1, 2})):
        rule = make("blockwise-acceptance", rule="tolerance", tolerance=tolerance)
        assert {x for x in range(4) if judged(rule, Draft.chain([x]), p, tools=tools)[0]} == stand
    word = [[0.1, 0.1, 0.1, 0.7]] * 2
    rule = make("blockwise-acceptance", rule="tolerance", tolerance=1000)
    assert {x for x in range(4) if judged(rule, Draft.chain([x]), word, tools=tools)[0]} == {3}


def test_numbers_need_a_tokenizer() -> None:
    rule = make("blockwise-acceptance", rule="tolerance")
    for attempt in (lambda: rule.prepare(None, Tools()), lambda: judged(rule, Draft.chain([0]), [FLAT] * 2)):
        with pytest.raises(Refused, match="no tokenizer") as e:
            attempt()
        assert well_said(e.value.refusal) == []
    make("blockwise-acceptance", rule="tolerance", tolerance=0).prepare(None, Tools())
    make("blockwise-acceptance").prepare(None, Tools())
    rule.prepare(None, Tools(Digits()))


def test_greedy_lenience() -> None:
    """0.4 and 0.2 stand against a best of 0.4 at a lenience of 0.5, and 0.1 does not."""
    p = [[0.4, 0.1, 0.2, 0.3]] * 4
    draft = Draft.chain([0, 2, 1])
    assert judged(make("lenience", lenience=0.49), draft, p) == ((0, 1), 0)
    assert judged(make("lenience", lenience=0.51), draft, p) == ((0,), 0)
    assert judged(make("lenience", lenience=0.24), draft, p) == ((0, 1, 2), 0)
    assert judged(make("lenience", lenience=1.0), draft, p) == ((0,), 0)


def test_sampled_lenience() -> None:
    """p = (0.5, 0.3, 0.2), q = (0.2, 0.2, 0.6), l = 0.5: the third token stands with 0.2 / 0.3; what is rejected, 0.2
    in all, goes to (0.3, 0.1, 0) / 0.4. So P = (0.2 + 0.15, 0.2 + 0.05, 0.4)."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    rule = make("lenience", lenience=0.5)

    def act(fate: laws.Fate) -> int:
        draft = Draft.chain([fate.categorical(q)], [q])
        path, bonus = rule.accept(draft, torch.stack([p, p]).log(), Sampler(1.0), fate, Tools())
        return draft.tokens[0] if path else bonus

    got = [0.0] * 3
    for weight, token in laws.outcomes(act):
        got[token] += weight
    assert got == pytest.approx([0.35, 0.25, 0.4], abs=1e-6)


def test_rollback() -> None:
    """-ln 0.06 = 2.813 and -ln 0.01 = 4.605 nats; what follows the word that is taken back goes with it."""
    draft, p = Draft.chain([1, 3, 0]), [PEAKED] * 4
    for rollback, kept in ((2.81, 0), (2.82, 1), (4.6, 1), (4.61, 3)):
        path, bonus = judged(make("bild", rollback=rollback), draft, p)
        assert (len(path), bonus) == (kept, 0)


# The rules on anything ------------------------------------------------------------------------------------------

TREES = st.integers(1, 7).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 4), min_size=n, max_size=n),
        st.tuples(*[st.integers(-1, i - 1) for i in range(n)]),
        st.integers(0, 1 << 20),
    )
)


def made(tree: tuple[list[int], tuple[int, ...], int]) -> tuple[Draft, Tensor]:
    tokens, parents, seed = tree
    dice = torch.Generator().manual_seed(seed)
    return Draft(tuple(tokens), parents, (None,) * len(tokens)), 2 * torch.randn(len(tokens) + 1, 5, generator=dice)


@settings(max_examples=150)
@given(TREES)
def test_an_exact_setting_says_what_the_model_says(tree: Any) -> None:
    draft, logits = made(tree)
    best = logits.argmax(-1).tolist()
    plain, _ = accept_greedy(draft, best)
    for id in IDS:
        path, bonus = make(id, **registry()[id].noop_settings).accept(
            draft, logits, Sampler(), SeededRandom(0), Tools()
        )
        assert [draft.tokens[i] for i in path] == [best[draft.parents[i] + 1] for i in path]
        assert bonus == best[path[-1] + 1 if path else 0]
        if id in ("lenience", "blockwise-acceptance"):  # the others hold by accepting next to nothing
            assert len(path) >= len(plain)


LADDERS = {
    "bild": [{"rollback": x} for x in (0.0, 1.0, 3.0, 20.0)],
    "blockwise-acceptance": [{"k": k} for k in (1, 2, 4, 5)],
    "lenience": [{"lenience": x} for x in (1.0, 0.5, 0.1, 0.0)],
    "typical": [{"epsilon": x, "delta": x, "temperature": 1.0} for x in (1.0, 0.5, 0.1, 0.0)],
}


@settings(max_examples=100)
@given(TREES)
def test_a_laxer_setting_accepts_no_less(tree: Any) -> None:
    draft, logits = made(tree)
    assert set(LADDERS) == set(IDS)
    for id, ladder in LADDERS.items():
        lengths = [len(make(id, **k).accept(draft, logits, Sampler(), SeededRandom(0), Tools())[0]) for k in ladder]
        assert lengths == sorted(lengths)
        assert lengths[-1] == max(draft.depths()), "the laxest takes everything"


def test_ties_are_nobodys_excuse() -> None:
    """Two tokens share the highest score: an exact rule takes the one that plain decoding takes."""
    logits = torch.tensor([[1.0, 3.0, 3.0], [0.0, 1.0, 2.0]])
    for id, settings_ in (("lenience", {"lenience": 1.0}), ("blockwise-acceptance", {"k": 1})):
        assert make(id, **settings_).accept(Draft.chain([2]), logits, Sampler(), SeededRandom(0), Tools()) == ((), 1)


# Whole runs -----------------------------------------------------------------------------------------------------


def stands(id: str) -> Callable[[Tensor, int], bool]:
    """The rules of `laws.sharp`, written out once more: whether a token may follow logits (V,) in a greedy run."""
    t = laws.sharp(id)

    def typical(y: Tensor, x: int) -> bool:
        p = torch.softmax(y / t.temperature, -1)
        return bool(p[x] > min(t.epsilon, t.delta * torch.exp((p * p.log()).sum())))

    return {
        "bild": lambda y, x: bool(-torch.log_softmax(y, -1)[x] <= t.rollback),
        "blockwise-acceptance": lambda y, x: x in y.topk(t.k).indices.tolist(),
        "lenience": lambda y, x: bool(torch.softmax(y, -1)[x] >= t.lenience * torch.softmax(y, -1).max()),
        "typical": typical,
    }[id]


@pytest.mark.parametrize("id", IDS)
@pytest.mark.parametrize("drafter", ["prompt-lookup", "draft-model"])
def test_a_run_keeps_to_its_rule(llama: Decoder, id: str, drafter: str) -> None:
    """Every accepted token passes, the first that is not accepted fails, and the model's own is its best one."""
    rule, accepted, refused, foreign = stands(id), 0, 0, 0
    for prompt in tiny.prompts(4, 21):
        events = laws.run(llama, prompt, 24, Stack([laws.sharp(drafter), laws.sharp(id)]))
        whole = [*prompt, *committed_tokens(events)]
        logits = laws.logits(llama, whole, [len(whole)])
        at, drafted = len(prompt), []
        for e in events:
            if isinstance(e, Drafted):
                drafted = e.tokens
            if isinstance(e, Committed):
                said = logits[at - 1 :]
                n = len(e.path)
                assert all(rule(said[i], drafted[i]) for i in range(n))
                foreign += sum(drafted[i] != int(said[i].argmax()) for i in range(n))
                if n < len(drafted):
                    assert not rule(said[n], drafted[n])
                    refused += 1
                assert e.tokens[n:] == [int(said[n].argmax())]
                at, drafted, accepted = at + len(e.tokens), [], accepted + n
    assert accepted > 0
    assert foreign > 0, "the rule never accepted what the model would not have written"
    assert refused > 0 or drafter == "draft-model", "the same model at fewer bits may always be near enough"


def test_big_little_decoding_as_its_card_says(llama: Decoder) -> None:
    """The little model writes while it is sure; the big one takes back what surprises it."""
    stack, prompts = (
        Stack.from_arguments(["bild:rollback=5", "draft-model:length=10,confidence=0.2"]),
        tiny.prompts(8, 21),
    )
    assert not stack.lossless()
    runs = [laws.run(llama, prompt, 40, stack) for prompt in prompts]
    lengths = {len(e.tokens) for events in runs for e in events if isinstance(e, Drafted)}
    assert max(lengths) <= 10
    assert len(lengths) > 1, "the little model falls back where it is unsure"
    plain = laws.texts(llama, Stack(), prompts, 40, tiny.tools)
    assert laws.texts(llama, stack.without("Acceptor"), prompts, 40, tiny.tools) == plain
    assert laws.differences(plain, map(committed_tokens, runs)), (
        "the little model's words never stood where the big one differs"
    )


@pytest.mark.parametrize("id", IDS)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_with_every_drafter(llama: Decoder, id: str, drafter: str) -> None:
    stack = Stack([laws.sharp(drafter), laws.sharp(id)])
    for sampler in (Sampler(), Sampler(1.0)):
        text = laws.text(llama, tiny.prompts(1, 21)[0], 16, stack, sampler=sampler)
        assert len(text) == 16
    neutral = make(id, **registry()[id].noop_settings)
    want = laws.texts(llama, Stack(), tiny.prompts(3, 21), 16, tiny.tools)
    assert laws.texts(llama, Stack([laws.sharp(drafter), neutral]), tiny.prompts(3, 21), 16, tiny.tools) == want


def test_a_verdict_tells_the_models_own_choices(llama: Decoder) -> None:
    """The argmax after the root and after every node, greedy and sampled, whatever the rule accepts."""
    prompt, seen = tiny.prompts(1, 21)[0], []

    class Noting(laws.Script):
        def drafts(self, session: Any, tools: Any) -> Any:
            while True:
                before = list(session.tokens)
                verdict = yield Draft((3, 4, 5), (-1, 0, -1), (None,) * 3)
                seen.append((before, verdict))

    for stack in ([], [make("bild", rollback=20.0)]):
        for sampler in (Sampler(), Sampler(1.0)):
            seen.clear()
            laws.run(llama, prompt, 12, Stack([Noting(), *stack]), sampler=sampler)
            assert len(seen) >= 3
            for before, verdict in seen:
                assert isinstance(verdict, Verdict)
                branches = [before]
                for token, parent in zip(verdict.draft.tokens, verdict.draft.parents, strict=True):
                    branches.append([*branches[parent + 1], token])
                want = [int(laws.logits(llama, b, [len(b)])[-1].argmax()) for b in branches]
                assert list(verdict.best) == want


# Refusals, badges and accounts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("id", IDS)
def test_without_drafts_there_is_nothing_to_accept(llama: Decoder, id: str) -> None:
    (refusal,) = Stack([make(id)]).refusals(Attention.capabilities)
    assert well_said(refusal) == []
    assert str(refusal).startswith(f"{make(id).title} works beside a technique for guessing the next tokens")
    with pytest.raises(Refused, match="works beside"):
        laws.run(llama, [1, 2, 3], 2, Stack([make(id)]))
    assert Stack([make(id), make("prompt-lookup")]).refusals(Attention.capabilities) == []


@pytest.mark.parametrize("id", IDS)
def test_the_badge_follows_from_rule_and_knobs(id: str) -> None:
    assert isinstance(make(id), Acceptor)
    drafter, neutral = make("prompt-lookup"), make(id, **registry()[id].noop_settings)
    assert Stack([drafter, neutral]).lossless()
    assert not Stack([drafter, make(id)]).lossless()
    assert "badge-lossy" in cards.stack_badge(Stack([drafter, make(id)]))
    assert "badge-lossless" in cards.stack_badge(Stack([drafter, neutral]))


def test_a_block_is_lossless_in_all_its_exact_forms_and_in_no_other() -> None:
    forms = [{"rule": "exact"}, {"k": 1}, {"rule": "tolerance", "tolerance": 0}]
    for form in forms:
        assert make("blockwise-acceptance", **form).lossless()
        assert not make("blockwise-acceptance", **form, block=2).lossless()
    for form in ({"k": 2}, {"rule": "tolerance", "tolerance": 1}, {"rule": "top-k", "tolerance": 0}):
        assert not make("blockwise-acceptance", **form).lossless()


def run_by_hand(llama: Decoder) -> list[Any]:
    """A tree of depth 3 accepted to 2, a chain of 2 rejected, no draft, one token accepted, a chain of 2 to 1."""
    stack = Stack([make("prompt-lookup"), make("typical")])
    start = replace(bare_start(llama, stack, [1] * 3), t=0.0)
    events: list[Any] = [start, Prefilled(1.0, 2, 2, 10, [2])]
    drafts = [([-1, -1, 0, 2], [0, 2]), ([-1, 0], []), (None, []), ([-1], [0]), ([-1, 0], [0])]
    for t, (parents, path) in enumerate(drafts, 2):
        if parents:
            events.append(Drafted(float(t), [7] * len(parents), parents, 0.1))
        events.append(Committed(float(t), [7] * (len(path) + 1), path, 1.0, [4], 10, 2.0))
    return [*events, Finished(9.0, "limit")]


def test_acceptance_by_depth(llama: Decoder) -> None:
    """Four drafts reach depth 1 and three of them have a node accepted there; three reach 2, one is accepted to 2."""
    metrics = trace.ledger(run_by_hand(llama))
    assert metrics["accepted_by_depth"] == [[1, 4, 3], [2, 3, 1], [3, 1, 0]]
    assert sum(kept for _, _, kept in metrics["accepted_by_depth"]) == metrics["accepted"] == 4
    assert trace.ledger(laws.run(llama, [1, 2, 3], 4))["accepted_by_depth"] == []


def test_acceptance_by_depth_of_a_strangers_trace(llama: Decoder) -> None:
    """Parents that are no parents count as the root, and a path is no longer than its draft is deep."""
    events = [
        bare_start(llama, Stack(), [1]),
        Drafted(1.0, [1, 2, 3], [5, 0, -9], 0.1),
        Committed(2.0, [1, 2, 3, 4], [0, 1, 2, 3], 1.0, [4], 10, 2.0),
    ]
    assert trace.accepted_by_depth(events) == [[1, 1, 1], [2, 1, 1]]


@pytest.mark.parametrize("id", [*IDS, None])
def test_acceptance_by_depth_adds_up(llama: Decoder, id: str | None) -> None:
    stack = laws.alone(id) if id else laws.alone("draft-model")
    metrics = trace.ledger(laws.run(llama, tiny.prompts(1, 21)[0], 40, stack))
    table = metrics["accepted_by_depth"]
    assert [d for d, _, _ in table] == list(range(1, len(table) + 1))
    assert sum(kept for _, _, kept in table) == metrics["accepted"] > 0
    assert sum(drafts for _, drafts, _ in table) == metrics["drafted"], "chains have one node at each depth"
    assert all(a[1] >= b[1] >= b[2] and a[2] >= b[2] for a, b in itertools.pairwise(table))


def test_the_account_tells_places_and_rule(llama: Decoder) -> None:
    told = run_summary.run_summary(run_by_hand(llama), "en")
    assert "Accepted by draft position, of all drafts: 1: 75%, 2: 25%, 3: 0%." in told
    assert "Typical acceptance decided which drafted tokens to accept" in told
    assert "各草稿位置被接受的比例" in run_summary.run_summary(run_by_hand(llama), "zh-CN")

"""What `accept` commits follows the model's distribution exactly: by enumeration of every way the chances may fall."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.models.building import build
from llmlab.runtime import generate
from llmlab.runtime.draft import Draft
from llmlab.runtime.generate import committed_tokens
from llmlab.runtime.sampling import Sampler, SeededRandom, accept, accept_greedy
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import Technique, make
from llmlab.runtime.tools import Tools
from tests import tiny
from tests.laws import laws

EPS = 1e-6
CHAINS = {"empty": (), "one": (-1,), "two": (-1, 0), "three": (-1, 0, 1)}
TREES = {
    "two siblings": (-1, -1),
    "three siblings": (-1, -1, -1),
    "fork": (-1, 0, 0),
    "two lines": (-1, 0, -1, 2),
    "late sibling": (-1, 0, -1),
    "bush": (-1, -1, 0, 1, 0),
}
TOPOLOGIES = {**CHAINS, **TREES}


@pytest.mark.parametrize("parents", TOPOLOGIES.values(), ids=TOPOLOGIES)
@pytest.mark.parametrize("zeros", [(0, 0), (1, 0), (0, 1), (1, 1)], ids=lambda z: f"p{z[0]}q{z[1]}")
def test_a_drawn_draft(parents: tuple[int, ...], zeros: tuple[int, int]) -> None:
    p, q = laws.conditional(1, 3, zeros[0]), laws.conditional(2, 3, zeros[1])
    assert laws.sampling(parents, p, q) < EPS


@pytest.mark.parametrize("parents", TOPOLOGIES.values(), ids=TOPOLOGIES)
@pytest.mark.parametrize("zeros", [0, 1])
def test_a_certain_draft(parents: tuple[int, ...], zeros: int) -> None:
    p, guess = laws.conditional(3, 4, zeros), laws.conditional(4, 4)
    distinct = laws.sampling(parents, p, None, lambda i, prefix: (int(guess(prefix).argmax()) + i) % 4)
    twins = laws.sampling(parents, p, None, lambda i, prefix: int(guess(prefix).argmax()))
    assert max(distinct, twins) < EPS


@pytest.mark.parametrize("parents", TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_a_drafter_that_is_the_model(parents: tuple[int, ...]) -> None:
    p = laws.conditional(5, 3)
    assert laws.sampling(parents, p, p) < EPS


def test_a_drafter_that_is_almost_the_model() -> None:
    """Rounding may leave p below q everywhere by a hair; what is left of p must stay a distribution."""
    p = laws.conditional(5, 3)
    assert laws.sampling((-1, 0, -1), p, lambda prefix: p(prefix) * (1 + 2e-7)) < EPS


@settings(max_examples=30)
@given(st.data())
def test_any_tree(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 5))
    parents = tuple(data.draw(st.integers(-1, i - 1)) for i in range(n))
    p = laws.conditional(data.draw(st.integers(0, 999)), 3, data.draw(st.integers(0, 2)), 2.0)
    q = laws.conditional(data.draw(st.integers(1000, 1999)), 3, data.draw(st.integers(0, 2)), 2.0)
    certain = data.draw(st.booleans())
    fixed = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    assert laws.sampling(parents, p, q, (lambda i, prefix: fixed[i]) if certain else None) < EPS


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_rejection_at_each_place(place: int) -> None:
    """A certain chain whose token has no chance under p at one place ends there, and what is left of p is p itself."""
    V, chain = 4, [1, 1, 1]
    p = torch.full((4, V), 0.25)
    if place < 3:
        p[place] = torch.tensor([0.5, 0.0, 0.25, 0.25])
    for node in range(place):
        p[node] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    got = {(path, bonus): w for w, (path, bonus) in laws.outcomes(lambda fate: accept(Draft.chain(chain), p, fate))}
    want = {(tuple(range(place)), x): w for x, w in enumerate(p[place].tolist()) if w > 0}
    assert {k: v for k, v in got.items() if len(k[0]) == place} == pytest.approx(want)
    assert sum(got.values()) == pytest.approx(1.0)


@settings(max_examples=60)
@given(st.data())
def test_greedy_is_sampling_from_a_one_hot(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 6))
    tokens = [data.draw(st.integers(0, 2)) for _ in range(n)]
    parents = [data.draw(st.integers(-1, i - 1)) for i in range(n)]
    best = [data.draw(st.integers(0, 2)) for _ in range(n + 1)]
    draft = Draft(tuple(tokens), tuple(parents), (None,) * n)
    one_hot = torch.nn.functional.one_hot(torch.tensor(best), 3).float()
    assert accept(draft, one_hot, SeededRandom(0)) == accept_greedy(draft, best)


# Rules of acceptance ----------------------------------------------------------------------------------------------

EXACT_RULES = [
    make("bild", rollback=0.0),
    make("blockwise-acceptance", rule="exact"),
    make("blockwise-acceptance", k=1),
    make("blockwise-acceptance", rule="tolerance", tolerance=0),
    make("lenience", lenience=1.0),
    make("typical", epsilon=1.0, delta=1e6),
]
LOSSY_RULES = [
    make("bild", rollback=1.2),
    make("blockwise-acceptance", k=2),
    make("blockwise-acceptance", rule="exact", block=2),
    make("lenience", lenience=0.5),
    make("typical", epsilon=0.25, delta=0.5),
]


def as_rule(acceptor: Technique) -> laws.Rule:
    """The acceptor as a rule over the distributions themselves, which are their own logits' softmax."""
    return lambda draft, p, fate: acceptor.accept(draft, p.log(), Sampler(1.0), fate, Tools())


def test_every_acceptor_is_under_these_laws() -> None:
    acceptors = {id for id, cls in laws.registry().items() if cls.role == "Acceptor"}
    assert {t.id for t in EXACT_RULES} == {t.id for t in LOSSY_RULES} == acceptors
    assert all(t.lossless() for t in EXACT_RULES)
    assert not any(t.lossless() for t in LOSSY_RULES)


@pytest.mark.parametrize("acceptor", EXACT_RULES, ids=lambda t: repr(Stack([t])))
@pytest.mark.parametrize("parents", TOPOLOGIES.values(), ids=TOPOLOGIES)
@pytest.mark.parametrize("certain", [False, True], ids=["drawn", "certain"])
def test_a_rule_that_claims_it_is_exact(acceptor: Technique, parents: tuple[int, ...], certain: bool) -> None:
    guess = laws.conditional(4, 3)
    fixed = (lambda i, prefix: (int(guess(prefix).argmax()) + i) % 3) if certain else None
    for zeros in (0, 1, 2):
        p, q = laws.conditional(1, 3, zeros), laws.conditional(2, 3, 1)
        assert laws.sampling(parents, p, q, fixed, as_rule(acceptor)) < EPS


@pytest.mark.parametrize("acceptor", LOSSY_RULES, ids=lambda t: repr(Stack([t])))
def test_a_rule_that_is_lossy_changes_the_law(acceptor: Technique) -> None:
    p, q = laws.conditional(1, 3), laws.conditional(2, 3)
    assert laws.sampling((-1, 0), p, q, None, as_rule(acceptor)) > 0.01


@settings(max_examples=60)
@given(st.integers(0, 999), st.integers(0, 2), st.integers(0, 2), st.floats(0.05, 1))
def test_lenience_bounds_every_token(seed: int, p_zeros: int, q_zeros: int, lenience: float) -> None:
    """P(x) = min(q, p / l) + (1 - sum of that) r with r the normalised max(p - q, 0), and never above p / l."""
    p, q = laws.conditional(seed, 4, p_zeros, 2.0), laws.conditional(seed + 1000, 4, q_zeros, 2.0)
    law = laws.committed((-1,), p, q, rule=as_rule(make("lenience", lenience=lenience)))
    first = torch.zeros(4, dtype=torch.float64)
    for sequence, weight in law.items():
        first[sequence[0]] += weight
    p_, q_ = p(()).double(), q(()).double()
    kept, rest = torch.minimum(q_, p_ / lenience), (p_ - q_).clamp_min(0)
    assert torch.allclose(first, kept + (1 - kept.sum()) * rest / rest.sum(), atol=1e-5)
    assert (first <= p_ / lenience + 1e-5).all()


# The whole loop -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> laws.Decoder:
    return build(tiny.StateDict(tiny.reference("llama-small")), "dense-fp32")


def short(id: str) -> laws.Technique:
    """An eager drafter of one token: the ways that a run can go grow with the length of its drafts."""
    technique = laws.sharp(id)
    return replace(technique, length=1) if hasattr(technique, "length") else technique


def whole_law(model: laws.Decoder, monkeypatch: pytest.MonkeyPatch, stack: Stack) -> laws.Law:
    """The law of two sampled tokens, by every way in which the dice can fall."""
    sampler, limit = Sampler(temperature=1.3, top_k=4), 2
    prompt = [0, 1, 2, 3, 1, 2, 4, 1, 0, 2, 3, 1, 2]
    half = build(tiny.StateDict(tiny.reference("llama-small")), "int8")

    def act(fate: laws.Fate) -> tuple[int, ...]:
        monkeypatch.setattr(generate, "SeededRandom", lambda seed: fate)
        helpers = Tools(None, lambda name: half, [t % 5 for t in tiny.text(200)], tiny.parts)
        return tuple(committed_tokens(laws.run(model, prompt, limit, stack, sampler=sampler, tools=helpers)))

    found: laws.Law = laws.defaultdict(float)
    for weight, tokens in laws.outcomes(act):
        found[tokens] += weight
    return found


@pytest.mark.parametrize("exact", [None, *laws.exact_ids()])
@pytest.mark.parametrize("lossy", [[], ["h2o"]], ids=["alone", "h2o"])
def test_the_law_of_a_whole_run(
    small: laws.Decoder, monkeypatch: pytest.MonkeyPatch, exact: str | None, lossy: list[str]
) -> None:
    """Two sampled tokens, in every way the dice can fall, follow the law of the model under the lossy stack."""
    base = Stack([laws.sharp(id) for id in lossy])
    want = whole_law(small, monkeypatch, base)
    got = whole_law(small, monkeypatch, Stack([*base, short(exact)]) if exact else base)
    assert len(want) == 16
    assert max(abs(got[s] - want[s]) for s in {*got, *want}) < 1e-5


@pytest.mark.parametrize("acceptor", EXACT_RULES, ids=lambda t: repr(Stack([t])))
@pytest.mark.parametrize("drafter", ["draft-model", "prompt-lookup"])
def test_the_law_of_a_whole_run_under_an_exact_rule(
    small: laws.Decoder, monkeypatch: pytest.MonkeyPatch, acceptor: Technique, drafter: str
) -> None:
    want = whole_law(small, monkeypatch, Stack())
    got = whole_law(small, monkeypatch, Stack([short(drafter), acceptor]))
    assert max(abs(got[s] - want[s]) for s in {*got, *want}) < 1e-5


# The sampler ----------------------------------------------------------------------------------------------------

LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=9).map(torch.tensor)


@settings(max_examples=60)
@given(LOGITS, st.floats(0.05, 5))
def test_temperature_divides_the_logits(logits: torch.Tensor, temperature: float) -> None:
    p = Sampler(temperature).distribution(logits).double()
    weights = torch.exp((logits.double() - logits.max()) / temperature)
    assert torch.allclose(p, weights / weights.sum(), atol=1e-6)


@settings(max_examples=60)
@given(LOGITS, st.integers(1, 9))
def test_top_k_keeps_the_k_best(logits: torch.Tensor, k: int) -> None:
    p, full = Sampler(1.0, top_k=k).distribution(logits), torch.softmax(logits, -1)
    kept = p > 0
    assert torch.equal(kept, logits >= logits.sort(descending=True).values[min(k, len(logits)) - 1])
    assert torch.allclose(p[kept], full[kept] / full[kept].sum(), atol=1e-6)


@settings(max_examples=60)
@given(LOGITS, st.floats(0.05, 0.99))
def test_top_p_keeps_the_fewest_that_reach_the_mass(logits: torch.Tensor, mass: float) -> None:
    p, full = Sampler(1.0, top_p=mass).distribution(logits), torch.softmax(logits, -1)
    kept = p > 0
    assert full[kept].sum() >= mass - 1e-5
    assert full[kept].sum() - full[kept].min() < mass + 1e-5
    assert not (~kept).any() or full[~kept].max() <= full[kept].min() + 1e-7
    assert torch.allclose(p[kept], full[kept] / full[kept].sum(), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1e-300])
def test_no_temperature_is_the_best_token(temperature: float) -> None:
    logits = torch.tensor([[0.1, 90.0, 3.0], [5.0, -50.0, 1.0]])
    assert Sampler(temperature).distribution(logits).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert Sampler().greedy


def test_dice_are_fair_and_seeded() -> None:
    draws = [SeededRandom(7).categorical(torch.tensor([0.2, 0.0, 0.8])) for _ in range(3)]
    assert len(set(draws)) == 1
    dice, n = SeededRandom(1), 4000
    share = sum(dice.bernoulli(0.3) for _ in range(n)) / n
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / n)
    counts = torch.bincount(
        torch.tensor([dice.categorical(torch.tensor([0.2, 0.0, 0.8])) for _ in range(n)]), minlength=3
    )
    assert counts[1] == 0
    assert abs(counts[0].item() / n - 0.2) < 4 * math.sqrt(0.2 * 0.8 / n)


@pytest.mark.parametrize("exact", laws.exact_ids())
def test_a_seed_repeats_a_run(llama: laws.Decoder, exact: str) -> None:
    prompt, stack, sampler = tiny.prompts(1, 21)[0], Stack([laws.sharp(exact)]), Sampler(0.8)
    first, again, other = (laws.text(llama, prompt, 20, stack, sampler=sampler, seed=s) for s in (3, 3, 4))
    assert first == again != other

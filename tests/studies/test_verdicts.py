"""Every study's word on its claims, on made outcomes whose truth is known: clear ones are confirmed and refuted, and of
too few nothing is said."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from llmlab.lab.findings import verdict_of, verdicts
from llmlab.lab.study import Claim
from llmlab.measure.statistics import Estimate
from llmlab.studies import answer_cache, cascade_bert, frugal_gpt, mot_cascade, reasoning, tabi
from llmlab.studies.cascade_bert import Member
from llmlab.studies.support.cascades.cascade import Level, Plan
from llmlab.studies.support.classification.curves import Curve, front, lead, led
from llmlab.studies.support.exit_rules import claims as exits
from llmlab.studies.support.exit_rules.methods import ExitMethod
from llmlab.studies.support.exit_rules.promise import guarantee, promises
from llmlab.studies.support.exit_rules.tried import Tried
from llmlab.studies.support.tabi.serving import Served
from llmlab.studies.support.token_drop import claims as drops
from llmlab.studies.support.token_drop import exits_too, views
from llmlab.studies.support.token_drop.outcomes import DropSetting, Results
from llmlab.techniques.early_exit.rules import Entropy, Patience

CONFIRMED, REFUTED, UNDECIDED, UNTESTABLE = "confirmed", "refuted", "undecided", "untestable"
MANY, FEW = 600, 12
LOSS = 0.01


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def right(n: int, share: float, seed: int = 0) -> Tensor:
    """(n,) 1 in so many of n, in no order."""
    made = torch.zeros(n, dtype=torch.double)
    made[torch.randperm(n, generator=dice(seed))[: round(share * n)]] = 1
    return made


# The four words -----------------------------------------------------------------------------------------------------


def test_a_claim_has_one_of_four_verdicts() -> None:
    made = [Claim("a", "b", holds, "c") for holds in (True, False, None)]
    made.append(Claim("a", "b", None, "c", testable=False))
    told = [c.to_json() for c in made]
    assert [c["verdict"] for c in told] == [CONFIRMED, REFUTED, UNDECIDED, UNTESTABLE]
    assert [c["holds"] for c in told] == [True, False, None, None]
    assert [line.split("\n  ")[1] for line in verdicts({"claims": told})] == [
        "confirmed: c",
        "refuted: c",
        "undecided: c",
        "not testable here: c",
    ]


def test_findings_of_before_still_show() -> None:
    old = [{"holds": holds} for holds in (True, False, None)]
    assert [verdict_of(c) for c in old] == [CONFIRMED, REFUTED, UNTESTABLE]


# Curves -------------------------------------------------------------------------------------------------------------


def curve(n: int, accuracy: Sequence[float], seed: int = 0) -> Curve:
    """Settings that cost 1, 2, 3 … and are right in such shares."""
    rights = torch.stack([right(n, a, seed + i) for i, a in enumerate(accuracy)])
    return Curve(torch.arange(1.0, len(accuracy) + 1)[:, None].expand(-1, n), rights)


def test_a_curve_s_lead_has_an_error() -> None:
    low, high = curve(MANY, (0.5, 0.6, 0.7)), curve(MANY, (0.7, 0.8, 0.9), 9)
    found = led(high, low)
    assert found is not None
    assert found.value == pytest.approx(lead(high.points(), low.points())) == pytest.approx(0.2)
    assert 0.005 < found.error < 0.03
    assert led(low, Curve(low.cost + 10, low.right)) is None
    assert front(Curve(torch.tensor([[3.0], [1.0], [2.0]]), torch.tensor([[1.0], [0.5], [0.4]]))) == [1, 0]


# Exits --------------------------------------------------------------------------------------------------------------

L = 4


def said(y: Tensor, accuracy: Sequence[float], sure: float = 0.99, seed: int = 0) -> Tensor:
    """(l, n, 2): classifiers that are right in such shares, and always this sure."""
    p = []
    for l, share in enumerate(accuracy):
        label = torch.where(right(len(y), share, seed + l).bool(), y, 1 - y)
        p.append(torch.where(torch.nn.functional.one_hot(label, 2).bool(), sure, 1 - sure))
    return torch.stack(p)


def exit_task(n: int, accuracy: Sequence[float], noisy: Sequence[float] = ()) -> Any:
    """A task whose states are the classifiers' answers themselves; `noisy`: accuracies on disturbed sentences."""
    parts = ("train", "calibration", "test")
    y = {part: torch.randint(0, 2, (n,), generator=dice(i)) for i, part in enumerate(parts)}
    x = {part: said(y[part], accuracy, seed=10 * i) for i, part in enumerate(parts)}
    own = SimpleNamespace(layers=L, labels=("a", "b"), y=y, x=x, probes=lambda p: p, asked=0)
    own.ids, own.data, own.shape = {"test": [[1, 2]] * n}, SimpleNamespace(seed=0), SimpleNamespace(vocab=9)
    own.see = lambda texts: said(y["test"][: len(texts)], noisy, seed=50)
    return own


def tried(t: Any, rules: Sequence[Any], p: dict[str, Tensor] | None = None, noise: float = 0.0) -> Tried:
    method = ExitMethod("M", p or t.x, range(1, L + 1), [(str(i), rule) for i, rule in enumerate(rules)])
    return Tried(t, method, t.x["test"][-1].argmax(-1), LOSS, noise)


EARLY: tuple[Callable[[Tried], list[Claim]], ...] = (exits.most_leave_early, exits.forty_percent)


@pytest.mark.parametrize("claims", EARLY)
@pytest.mark.parametrize(
    ("n", "accuracy", "verdict"),
    [
        (MANY, (0.95, 0.95, 0.9, 0.8), CONFIRMED),
        (MANY, (0.5, 0.5, 0.5, 0.9), REFUTED),
        (FEW, (0.9, 0.9, 0.9, 0.9), UNDECIDED),
        (MANY, (0.89, 0.89, 0.89, 0.9), UNDECIDED),
    ],
)
def test_leaving_early(claims: Callable[[Tried], list[Claim]], n: int, accuracy: Sequence[float], verdict: str) -> None:
    (claim,) = claims(tried(exit_task(n, accuracy), [Entropy(0.3)]))
    assert claim.verdict == verdict


def test_leaving_late_is_no_saving() -> None:
    claims = [f(tried(exit_task(MANY, (0.9,) * L), [Entropy(0.0)]))[0].verdict for f in EARLY]
    assert claims == [REFUTED, REFUTED]


@pytest.mark.parametrize(
    ("n", "sure", "verdict"), [(MANY, True, CONFIRMED), (MANY, False, REFUTED), (FEW, None, UNDECIDED)]
)
def test_the_surer_half(n: int, sure: bool | None, verdict: str) -> None:
    """Right answers are surer, or less sure, or neither."""
    y = torch.randint(0, 2, (n,), generator=dice())
    ok = torch.stack([right(n, 0.7, l) for l in range(L)]).bool()
    chance = torch.rand(L, n, generator=dice(4))
    top = 0.6 + 0.3 * (chance if sure is None else (ok if sure else ~ok).double() + 0.01 * chance) / 1.01
    label = torch.where(ok, y, 1 - y)
    p = torch.where(torch.nn.functional.one_hot(label, 2).bool(), top[..., None], 1 - top[..., None])
    assert exits._surer(p, y).verdict == verdict


@pytest.mark.parametrize(
    ("n", "students", "verdict"),
    [(MANY, (0.9, 0.9, 0.9), CONFIRMED), (MANY, (0.5, 0.5, 0.5), REFUTED), (FEW, (0.7, 0.7, 0.7), UNDECIDED)],
)
def test_students(n: int, students: Sequence[float], verdict: str) -> None:
    """Taught by labels they agree in 70 % with the last classifier, which is always right."""
    t = exit_task(n, (0.7, 0.7, 0.7, 1.0))
    p = {part: said(t.y[part], (*students, 1.0), seed=30) for part in t.y}
    _, follow, speed = exits.uncertainty_and_students(tried(t, [Entropy(0.3)], p))
    assert follow.verdict == verdict
    assert speed.verdict == REFUTED, "all leave at once, and lose ten points or more"


@pytest.mark.parametrize(
    ("n", "accuracy", "overthink", "beats"),
    [
        (MANY, (0.5, 0.9, 0.9, 0.6), CONFIRMED, CONFIRMED),
        (MANY, (0.9, 0.4, 0.4, 0.95), REFUTED, REFUTED),
        (FEW, (0.8, 0.7, 0.8, 0.7), UNDECIDED, UNDECIDED),
    ],
)
def test_patience(n: int, accuracy: Sequence[float], overthink: str, beats: str) -> None:
    """Entropy here either leaves at once or never; patience waits for classifiers that agree."""
    t = exit_task(n, accuracy)
    found = exits.patience(tried(t, [Patience(1), Patience(2)]))
    assert [c.verdict for c in found] == [overthink, beats]


@pytest.mark.parametrize(
    ("n", "noisy", "verdict"),
    [(MANY, (0.5, 0.9, 0.9, 0.9), CONFIRMED), (MANY, (0.95, 0.3, 0.3, 0.3), REFUTED), (FEW, (0.8,) * L, UNDECIDED)],
)
def test_robustness(n: int, noisy: Sequence[float], verdict: str) -> None:
    """Entropy leaves at the first classifier, patience at the third at the latest."""
    f = tried(exit_task(n, (0.9,) * L, noisy), [Patience(2)], noise=0.2)
    other = ExitMethod("E", f.t.x, range(1, L + 1), [("e", Entropy(0.6))])
    assert exits._robust(f, other).verdict == verdict


@pytest.mark.parametrize(
    ("n", "accuracy", "verdict"),
    [(MANY, (0.9,) * L, CONFIRMED), (MANY, (0.3, 0.3, 0.3, 0.6), REFUTED), (FEW, (0.6, 0.7, 0.6, 0.6), UNDECIDED)],
)
def test_memory(n: int, accuracy: Sequence[float], verdict: str) -> None:
    t = exit_task(n, (0.6,) * L)
    p = {part: said(t.y[part], accuracy, seed=30) for part in t.y}
    f = tried(t, [Entropy(0.3), Entropy(0.0)], p)
    assert exits.memory(f)[0].verdict == verdict


@pytest.mark.parametrize(
    ("n", "both", "verdict"),
    [(MANY, 0.8, CONFIRMED), (MANY, 0.45, REFUTED), (MANY, 0.63, UNDECIDED), (FEW, 0.8, UNDECIDED)],
)
def test_a_large_margin(n: int, both: float, verdict: str) -> None:
    t = exit_task(n, (0.6,) * L)
    p = {**t.x, "test": said(t.y["test"], (both,) * L, seed=30), "past": t.x["test"], "error": torch.ones(L)}
    assert exits.early_margin(tried(t, [Entropy(0.3)], p))[0].verdict == verdict


def test_a_clear_margin_may_be_too_small_to_be_large() -> None:
    t = exit_task(2000, (0.6,) * L)
    y, better = t.y["test"], t.x["test"].clone()
    wrong = torch.nonzero(better[0].argmax(-1) != y).flatten()[:20]
    better[0, wrong] = better[0, wrong].flip(-1)
    p = {**t.x, "test": better, "past": t.x["test"], "error": torch.ones(L)}
    (claim,) = exits.early_margin(tried(t, [Entropy(0.3)], p))
    assert claim.verdict == REFUTED, "1.0 ± 0.2 points, where a large margin is two"


def test_a_promise_is_kept_or_broken() -> None:
    scores = torch.rand(3, 400, generator=dice())
    same = torch.rand(3, 400, generator=dice(1)) < scores
    method = ExitMethod("CATs", {"scores": scores, "same": same}, range(1, 5), [])
    kept = list(promises(method))
    assert guarantee(kept, method).verdict == CONFIRMED
    row, e = kept[3]
    broken = [*kept[:3], ({**row, "promised": 0.99}, e), *kept[4:]]
    assert guarantee(broken, method).verdict == REFUTED
    unsure = [*kept[:3], (row, type(e)(row["promised"], 0.01, 199)), *kept[4:]]
    assert guarantee(unsure, method).verdict == UNDECIDED


# Dropped tokens -----------------------------------------------------------------------------------------------------


def dropped(n: int, settings: Sequence[tuple[str, float, float]], full: float = 0.8) -> Results:
    """Results of settings (method, cost as a share of all tokens', accuracy)."""
    r = Results(right(n, full), torch.full((n,), 1e9))
    for i, (name, cost, accuracy) in enumerate(settings):
        r.settings.append(DropSetting(name, "0.5", {}, candidate=True))
        r.costs.append(torch.full((n,), cost * 1e9))
        # Of what all tokens answer rightly so many stay right, and no other becomes so.
        keep = torch.nonzero(r.full).flatten() if accuracy <= full else torch.arange(n)
        kept = torch.zeros(n, dtype=torch.double)
        kept[keep[torch.randperm(len(keep), generator=dice(i + 5))[: round(accuracy * n)]]] = 1
        r.rights.append(kept)
    r.outs = list(range(len(settings)))  # type: ignore[arg-type]
    return r


@pytest.mark.parametrize(
    ("n", "settings", "verdict"),
    [
        (MANY, [("A", 0.4, 0.8)], CONFIRMED),
        (MANY, [("A", 0.4, 0.7)], REFUTED),
        (FEW, [("A", 0.4, 0.8)], UNDECIDED),
        (MANY, [("A", 0.4, 0.79)], UNDECIDED),
        (MANY, [("A", 0.9, 0.8)], UNTESTABLE),  # nothing that was tried saves as much
        (MANY, [("A", 0.9, 0.7)], REFUTED),  # and what saves less loses more
        (MANY, [("A", 0.9, 0.8), ("A", 0.4, 0.5)], REFUTED),
    ],
)
def test_a_saving_at_little_loss(n: int, settings: Sequence[tuple[str, float, float]], verdict: str) -> None:
    r = dropped(n, settings)
    assert r.saving("source", "claim", r.settings[0], 0.5, LOSS).verdict == verdict


@pytest.mark.parametrize(
    ("n", "one", "other", "verdict"),
    [
        (MANY, 0.75, 0.5, CONFIRMED),
        (MANY, 0.5, 0.75, REFUTED),
        (FEW, 0.75, 0.67, UNDECIDED),
        (MANY, 0.75, 0.74, UNDECIDED),
    ],
)
def test_one_selection_against_another(n: int, one: float, other: float, verdict: str) -> None:
    r = dropped(n, [("A", 0.5, one), ("B", 0.5, other)])
    assert drops._compared("source", "claim", r, "A", "B").verdict == verdict


@pytest.mark.parametrize(
    ("n", "gain", "verdict"), [(MANY, 0.2, CONFIRMED), (MANY, -0.2, REFUTED), (FEW, 0.1, UNDECIDED)]
)
def test_rewards(n: int, gain: float, verdict: str) -> None:
    """What the policy gains is judged on sentences that rewarded nothing, by their noise."""
    names = ("TR-BERT", "TR-BERT, only imitated", "Attention at the same layers", "Chance at the same layers")
    r = dropped(n, [(name, 0.5, 0.7) for name in names])
    reward = [torch.randn(n, generator=dice(i)) + (gain if i == 0 else 0) for i in range(2)]
    learned = SimpleNamespace(rewards=[0.0, 9.0], reward=lambda out: reward[out])
    found = drops.of_tr_bert(LOSS, SimpleNamespace(), learned, r, r.settings[0])  # type: ignore[arg-type]
    assert found[0].verdict == verdict


@pytest.mark.parametrize(
    ("agreement", "verdict"),
    [
        ([0.5, 0.6, 0.55, 0.5, 0.6], CONFIRMED),
        ([0.1, 0.2, 0.1, 0.15, 0.1], REFUTED),
        ([0.2, 0.7], UNDECIDED),
        ([0.9], UNDECIDED),
    ],
)
def test_predicted_contributions(agreement: list[float], verdict: str) -> None:
    r = dropped(MANY, [("AdapLeR", 0.5, 0.7), ("Contribution, fixed share", 0.5, 0.7)])
    r.outs = []
    learned = SimpleNamespace(agreement=agreement)
    r.outs = [SimpleNamespace(counts=[[4, 2]])] * 2  # type: ignore[list-item]
    found = drops.of_adapler(LOSS, SimpleNamespace(), learned, r, r.settings[0])  # type: ignore[arg-type]
    assert found[0].verdict == verdict


@pytest.mark.parametrize(
    ("ratio", "error", "count", "verdict"),
    [
        (1.2, 0.02, 8, CONFIRMED),
        (0.9, 0.02, 8, REFUTED),
        (1.05, 0.03, 8, UNDECIDED),
        (1.2, 0.05, 3, UNDECIDED),
        (1.2, 0.0, 1, UNDECIDED),
    ],
)
def test_less_time(ratio: float, error: float, count: int, verdict: str) -> None:
    row = {"method": "A", "ms": 1.0, "tokens": 9.0, "speedup": ratio, "speedup_error": error, "count": count}
    if count == 1:
        row["speedup_error"] = None
    (claim,) = views.faster([row | {"texts": t} for t in ("short", "long")])
    assert claim.verdict == verdict


def pyramid(n: int, both: float, settings: int = 12) -> list[str]:
    """Verdicts where exits alone and dropping alone are right in 70 % whatever they cost, and both in such a share."""
    found = {}
    for k, (kind, share) in enumerate((("exit", 0.7), ("drop", 0.7), ("both", both))):
        cost = torch.linspace(10, 1, settings)[:, None].expand(-1, n).double()
        found[kind] = Curve(cost, torch.stack([right(n, share, 100 * k + i) for i in range(settings)]))
    t = SimpleNamespace(lengths=lambda part: torch.arange(n))
    return [c.verdict for c in exits_too.together(t, found)]


def test_a_pyramid_is_judged_on_sentences_that_chose_no_setting() -> None:
    assert pyramid(MANY, 0.9) == [CONFIRMED] * 3
    assert pyramid(MANY, 0.4) == [REFUTED] * 3
    assert set(pyramid(FEW, 0.75)) == {UNDECIDED}
    assert CONFIRMED not in pyramid(MANY, 0.7)


def test_more_settings_are_no_reason_to_be_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of sixteen that are right in 70 % is better than the best of two, on the sentences that chose it."""
    monkeypatch.setattr(exits_too, "bootstrap", lambda statistic, n: Estimate(statistic(torch.arange(n)), 0.0))
    found = []
    for seed in range(80):
        n, drawn = 200, dice(seed)
        many, few = (
            Curve(
                torch.ones(k, n) * torch.linspace(1, 2, k)[:, None], (torch.rand(k, n, generator=drawn) < 0.7).double()
            )
            for k in (16, 2)
        )
        gap = exits_too.gap(many, few, (few.cost[-1], few.right[-1]))
        assert gap is not None
        found.append(gap.value)
    assert abs(sum(found) / len(found)) < 0.012


# Cascades -----------------------------------------------------------------------------------------------------------


def member(name: str, n: int, accuracy: float, knows: float, seed: int) -> Member:
    """A model that is right in such a share; with the margin it is surer where it is right, by `knows`."""
    y = right(n, 0.5, seed).long()
    ok = right(n, accuracy, seed + 1).bool()
    label = torch.where(ok, y, 1 - y)
    p = {}
    for i, (c, by) in enumerate((("none", 0.0), ("temperature", 0.0), ("difficulty margin", knows))):
        noise = torch.rand(n, generator=dice(seed + 7 + i))
        top = 0.6 + 0.15 * noise + by * (ok.double() - 0.5) * 0.2
        p[c] = torch.where(torch.nn.functional.one_hot(label, 2).bool(), top[:, None], 1 - top[:, None])
    both = {"calibration": y, "test": y}
    return Member(name, {"calibration": p, "test": p}, both, dict.fromkeys(both, torch.ones(n)))


@pytest.mark.parametrize(
    ("n", "better", "knows", "verdict"),
    [(MANY, 0.2, 1.0, CONFIRMED), (MANY, -0.2, -1.0, REFUTED), (FEW, 0.0, 0.0, UNDECIDED)],
)
def test_complete_models(n: int, better: float, knows: float, verdict: str) -> None:
    members = [member("small", n, 0.6 + better, knows, 1), member("large", n, 0.9, 0.0, 2)]
    one, other = curve(n, (0.6 + better,) * 3), curve(n, (0.6,) * 3, 20)
    cut = [right(n, 0.6, 3)]
    found = cascade_bert.claims(one, other, members, cut, 4.0, cut_out=False)
    assert [c.verdict for c in found] == [verdict] * 3
    found = cascade_bert.claims(one, other, members, cut, 4.0, cut_out=True)
    assert [c.verdict for c in found] == [UNTESTABLE, UNTESTABLE, verdict]


def weak_levels(n: int, knows: float, mixed: float, accuracy: float = 0.5) -> dict[str, Level]:
    """Weak levels whose agreement says something of whether they are right, that of mixed votes more or less."""
    found = {}
    for i, method in enumerate(mot_cascade.METHODS):
        ok = right(n, accuracy, 10 + i)
        by = mixed if method == "mixed, vote" else knows
        score = ((by * ok + torch.rand(n, generator=dice(i))) * 4).floor() / 4
        found[method] = Level(method, score, ok.bool(), torch.ones(n))
    return found


def strong_level(n: int, share: float = 0.9, cost: float = 100.0) -> Level:
    return Level("strong", torch.ones(n), right(n, share, 99).bool(), torch.full((n,), cost))


@pytest.mark.parametrize(
    ("n", "accuracy", "strong", "verdict"),
    [(MANY, 0.95, 0.8, CONFIRMED), (MANY, 0.3, 0.9, REFUTED), (24, 0.8, 0.8, UNDECIDED)],
)
def test_a_match_at_a_share_of_the_price(n: int, accuracy: float, strong: float, verdict: str) -> None:
    match, _, _ = mot_cascade.claims(weak_levels(n, 0.0, 0.0, accuracy), strong_level(n, strong))
    assert match.verdict == verdict


def test_no_match_is_found_by_trying_many() -> None:
    """Weak levels that are right 10 points less often, whose agreement says nothing, match on some queries by luck:
    judged on the same, a match would lose nothing."""
    lost = []
    for seed in range(16):
        n, drawn = 60, dice(seed)
        weak = {
            m: Level(
                m, torch.randint(0, 5, (n,), generator=drawn) / 4, torch.rand(n, generator=drawn) < 0.5, torch.ones(n)
            )
            for m in mot_cascade.METHODS
        }
        strong = Level("strong", torch.ones(n), torch.rand(n, generator=drawn) < 0.6, torch.full((n,), 9.0))
        gain, _, _ = mot_cascade.cheapest_match(weak, strong)
        assert gain.above(-mot_cascade.ALIKE) is not True
        lost.append(gain.value)
    assert sum(lost) / len(lost) < -0.01


@pytest.mark.parametrize(
    ("n", "knows", "mixed", "verdict"),
    [(MANY, 0.1, 1.0, CONFIRMED), (MANY, 1.0, 0.1, REFUTED), (FEW, 0.3, 0.3, UNDECIDED)],
)
def test_agreement_across_styles(n: int, knows: float, mixed: float, verdict: str) -> None:
    _, across, _ = mot_cascade.claims(weak_levels(n, knows, mixed), strong_level(n))
    assert across.verdict == verdict


@pytest.mark.parametrize(
    ("n", "knows", "verdict"), [(MANY, 1.0, CONFIRMED), (MANY, -1.0, REFUTED), (FEW, 0.0, UNDECIDED)]
)
def test_sending_on(n: int, knows: float, verdict: str) -> None:
    _, _, sent = mot_cascade.claims(weak_levels(n, knows, knows), strong_level(n))
    assert sent.verdict == verdict


@pytest.mark.parametrize(
    ("n", "cheap", "match", "more"),
    [(MANY, 0.9, CONFIRMED, CONFIRMED), (MANY, 0.3, REFUTED, REFUTED), (FEW, 0.75, UNDECIDED, UNDECIDED)],
)
def test_a_learned_cascade(n: int, cheap: float, match: str, more: str) -> None:
    """Both plans ask the cheap level only, which is right in such a share where the best one is in 70 %."""
    levels = [
        Level("cheap", torch.ones(n), right(n, cheap, 1).bool(), torch.full((n,), 1.0)),
        Level("best", torch.ones(n), right(n, 0.7, 2).bool(), torch.full((n,), 10.0)),
    ]
    plan = Plan((0,), (), 1.0, 1.0)
    assert [c.verdict for c in frugal_gpt.claims(plan, plan, levels, 1)] == [match, more]


def test_a_match_is_the_cheapest_of_those_that_cost_less() -> None:
    top = strong_level(10, 0.8, 5.0)
    dear, even, cheap = Plan((0,), (), 0.9, 6.0), Plan((1,), (), 0.8, 4.0), Plan((2,), (), 0.7, 1.0)
    assert frugal_gpt.matching([dear, even, cheap], top) is even
    assert frugal_gpt.matching([dear, cheap], top) is cheap
    assert frugal_gpt.matching([dear], top) is dear


def served(n: int, share: float, ms: float, mixed: float, seed: int) -> Served:
    seconds = (ms / 1000 * (1 + 0.1 * torch.rand(n, generator=dice(seed)))).tolist()
    whole, other = (right(n, s, k).bool().tolist() for s, k in ((share, seed), (mixed, seed + 1)))
    return Served(whole, other, seconds, [0] * n, [1] * n, [1.0] * n)


@pytest.mark.parametrize(
    ("n", "share", "ms", "verdict"),
    [(MANY, 0.9, 50.0, CONFIRMED), (MANY, 0.4, 200.0, REFUTED), (FEW, 0.67, 79.0, UNDECIDED)],
)
def test_levels_that_pass_on_fewer_words(n: int, share: float, ms: float, verdict: str) -> None:
    found = tabi.claims(
        {
            "always large": served(n, 0.7, 100.0, 0.7, 1),
            "always small": served(n, 0.5, 30.0, 0.5, 2),
            "levels": served(n, 0.7 if n > FEW else share, 100.0 if n > FEW else ms, share, 3),
            "levels, pruned": served(n, share, ms, share, 4),
        },
        LOSS,
    )
    assert [c.verdict for c in found] == [verdict] * 3


def replies(n: int, share: float, slips: float = 0.0, seed: int = 0) -> list[Any]:
    ok, order = right(n, share, seed), torch.rand(n, generator=dice(seed + 1))
    words = [
        "right" if good else "wrong arithmetic" if u < slips else "wrong plan"
        for good, u in zip(ok, order, strict=True)
    ]
    return [SimpleNamespace(reading=SimpleNamespace(verdict=w, right=w == "right")) for w in words]


@pytest.mark.parametrize(
    ("n", "direct", "chain", "program", "told"),
    [
        (MANY, 0.6, 0.4, 0.7, [CONFIRMED, CONFIRMED, CONFIRMED]),
        (MANY, 0.2, 0.6, 0.5, [REFUTED, REFUTED, REFUTED]),
        (FEW, 0.5, 0.5, 0.6, [UNDECIDED] * 3),
        (200, 0.5, 0.5, 0.62, [UNDECIDED, UNDECIDED, CONFIRMED]),
    ],
)
def test_chains_and_programs(n: int, direct: float, chain: float, program: float, told: list[str]) -> None:
    shares = {"direct": direct, "cot": chain, "pot": program}
    got = {("m", style): replies(n, share, seed=10 * i) for i, (style, share) in enumerate(shares.items())}
    assert [c.verdict for c in reasoning.claims(got)] == told


def test_few_problems_that_nobody_solves_tell_nothing_of_an_average() -> None:
    got = {(name, style): replies(4, 0.0) for name in ("a", "b") for style in ("direct", "cot", "pot")}
    assert reasoning.claims(got)[1].verdict == UNDECIDED


# Caches -------------------------------------------------------------------------------------------------------------


def paid(tables: int, gain: float, against_lru: float, spread: float = 0.1) -> answer_cache.Paid:
    """Costs per table: LEC with a choice is so many times cheaper than LFU, and LRU costs so many times as much."""
    rng, found = random.Random(0), {}
    for skew in (0.0, 1.0):
        for model in ("small", "large", "chosen"):
            found[skew, 5, "lec", model] = [rng.uniform(1, 1 + spread) for _ in range(tables)]
            found[skew, 5, "lfu", model] = [gain * rng.uniform(1, 1 + spread) for _ in range(tables)]
            found[skew, 5, "lru", model] = [against_lru * rng.uniform(1, 1 + spread) for _ in range(tables)]
    return found


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (paid(6, 80, 3), [CONFIRMED, CONFIRMED]),
        (paid(6, 20, 0.5), [REFUTED, REFUTED]),
        (paid(6, 53, 1.0, 0.5), [UNDECIDED, UNDECIDED]),
        (paid(1, 80, 3), [UNDECIDED, UNDECIDED]),
    ],
)
def test_caching_and_choosing(made: answer_cache.Paid, told: list[str]) -> None:
    assert [c.verdict for c in answer_cache.of_simulated(made, 100.0, 20)] == told
    assert answer_cache.of_simulated(made, 10.0, 20)[0].verdict == UNTESTABLE


def test_the_greatest_gain_is_of_tables_that_did_not_choose_it() -> None:
    """Nine settings that gain 10 times but for noise: the greatest of each table's would be more."""
    rng = random.Random(1)
    made: answer_cache.Paid = {}
    for skew in range(9):
        for policy, model in (("lec", "chosen"), ("lfu", "small"), ("lfu", "large")):
            level = 1.0 if policy == "lec" else 10.0
            made[float(skew), 5, policy, model] = [level * rng.uniform(0.7, 1.3) for _ in range(40)]
    found, _ = answer_cache.most_gained(made)
    gains = [
        min(made[s, 5, "lfu", m][t] for m in ("small", "large")) / made[s, 5, "lec", "chosen"][t]
        for s in map(float, range(9))
        for t in range(40)
    ]
    average = sum(gains) / len(gains)
    assert abs(found.value - average) < 3 * found.error
    assert max(gains) > average + 5 * found.error


@pytest.mark.parametrize(
    ("saving", "wrong", "size", "told"),
    [
        (1.5, 0.0, 200, [CONFIRMED, CONFIRMED]),
        (0.9, 0.1, 200, [REFUTED, REFUTED]),
        (1.06, 0.0, 12, [UNDECIDED, UNDECIDED]),
    ],
)
def test_real_caches(saving: float, wrong: float, size: int, told: list[str]) -> None:
    row = {
        "key": "embedding",
        "unit": "GFLOPs",
        "threshold": 0.9,
        "hits": 0.5,
        "wrong": wrong,
        "wrong_share": wrong / 0.5,
    }
    found = answer_cache.of_measured([row | {"size": size}], Estimate(saving, 0.02))
    assert [c.verdict for c in found] == told

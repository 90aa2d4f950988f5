"""Classification on tiny models: sentences by rule, probes, exits by hand, tokens that leave."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.errors import Refused
from llmlab.lab.study import make_study
from llmlab.measure.roofline import flops_per_token
from llmlab.models.batch import Batch, Span, Taps
from llmlab.models.mixers.attention import Attention
from llmlab.runtime import token_drop_plan
from llmlab.runtime.token_drop_plan import AtLeast, LayerView, TokenDropPlan, Top
from llmlab.studies import exit_rules, token_drop
from llmlab.studies.support.classification import classify, probes, sentences
from llmlab.studies.support.classification.classify import Data, Ends, Task, flops, run_exits
from llmlab.studies.support.classification.curves import at_most, between, lead
from llmlab.studies.support.token_drop import saliency, selectors
from llmlab.techniques.early_exit import rules
from llmlab.techniques.early_exit.rules import Each, Entropy, Patience
from tests import tiny

QUIET = lambda *_: None  # noqa: E731


class Words:
    """A tokenizer that gives every word a number."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [sum(map(ord, w)) * 31 % (tiny.VOCAB - 1) + 1 for w in text.split()]}


# Sentences ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_sentences_are_balanced_repeatable_and_apart(classes: int) -> None:
    made = sentences.make(classes, 120, 40, 40, seed=3)
    assert made == sentences.make(classes, 120, 40, 40, seed=3)
    assert made != sentences.make(classes, 120, 40, 40, seed=4)
    everything = [*made.train, *made.calibration, *made.test]
    assert len({s.text for s in everything}) == len(everything) == 200
    counts = [sum(s.label == k for s in everything) for k in range(classes)]
    assert max(counts) - min(counts) <= 1
    assert {s.depth for s in everything} == {0, 1, 2}
    assert all(4 <= len(s.text.split()) <= 60 for s in everything)


def test_a_label_follows_from_the_words() -> None:
    """Of a lone verdict: the adjective's side, turned once per negation."""
    import random

    dice = random.Random(0)
    turns = (*sentences.NOT, *sentences.DENIALS)
    for i in range(200):
        depth, good = i % 4, i % 3 == 0
        clause = sentences.verdict(dice, "soup", good, depth)
        negations = sum(clause.count(t) for t in turns)
        positive = clause.split()[-1] in sentences.GOOD
        assert negations == depth
        assert positive == (good if depth % 2 == 0 else not good)


def test_a_file_of_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "own.csv"
    rows = [f'"line {i}, quoted",{"yes" if i % 2 else "no"}' for i in range(60)]
    path.write_text("text,label\n" + "\n".join([*rows, "line without label,"]), encoding="utf-8")
    own = sentences.read(str(path), 100, 50, 50)
    assert own.labels == ("no", "yes")
    assert (len(own.train), len(own.calibration), len(own.test)) == (30, 15, 15)
    assert all(("yes" if int(s.text.split()[1][:-1]) % 2 else "no") == own.labels[s.label] for s in own.train)
    for bad in ("a,b\n1,2\n", "text,label\nonly one,yes\n", "text,label\n" + "x,y\n" * 100):
        path.write_text(bad, encoding="utf-8")
        with pytest.raises(Refused):
            sentences.read(str(path), 10, 5, 5)
    with pytest.raises(Refused, match="FileNotFoundError"):
        sentences.read(str(tmp_path / "none.csv"), 10, 5, 5)
    monkeypatch.setenv("SPACE_ID", "someone/space")
    with pytest.raises(Refused, match="public page"):
        sentences.read(str(path), 10, 5, 5)


# States and costs ---------------------------------------------------------------------------------------------------


def test_states_of_a_ragged_batch_are_those_of_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classify, "TOGETHER", 60)
    model = tiny.decoder()
    texts = tiny.prompts(7, 24)
    told: list[int] = []
    together = classify.states(model, texts, lambda done, all: told.append(done))
    assert together.shape == (4, 7, 64)
    assert told[-1] == 7
    assert len(told) > 2
    for i, ids in enumerate(texts):
        taps = Taps(range(1, 5))
        spans = [Span(0, len(ids), model.memory())]
        model.forward(Batch(torch.tensor(ids), torch.arange(len(ids)), spans, taps=taps), None, 0)
        assert torch.allclose(together[:, i], taps.stacked()[-1], atol=1e-4)


def test_flops_are_those_of_its_tokens_one_by_one() -> None:
    shape = tiny.decoder().shape
    head = 2 * shape.vocab * shape.width
    one_by_one = sum(flops_per_token(shape, 3, t) - head for t in range(1, 6))
    assert flops(shape, [5, 5, 5]) == pytest.approx(one_by_one)
    assert flops(shape, [5, 2, 1]) < one_by_one
    # A token of which only keys and values are made costs that product, and the others' looks at it.
    qkv = 2 * 64 * (4 + 2 * 2) * 16
    assert flops(shape, [1], [1]) - flops(shape, [1]) == pytest.approx(qkv + 4 * 4 * 16)


# Probes -------------------------------------------------------------------------------------------------------------


def planted(n: int = 400, L: int = 4, E: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """States of noise in which the label stands from layer 2 (counted from 0) on, along one direction."""
    dice = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (n,), generator=dice)
    x = torch.randn(L, n, E, generator=dice)
    x[2:, :, 5] += 3.0 * (2 * y - 1)
    return x, y


def test_probes_find_a_planted_signal_where_it_is() -> None:
    x, y = planted()
    fresh, truth = planted(seed=1)
    scale = probes.Scale.of(x)
    own = probes.trained(scale.apply_(x), y, 2)
    accuracy = (own(scale.apply_(fresh)).argmax(-1) == truth).float().mean(1)
    assert (accuracy[:2] - 0.5).abs().max() < 0.1
    assert accuracy[2:].min() > 0.97
    assert int(own.W[3].abs().sum(1).argmax()) == 5


def test_a_probe_is_at_the_least_loss() -> None:
    """One feature, two classes: the decay's optimum, found by hand from the derivative's zero."""
    x = torch.tensor([[[1.0], [-1.0]]])
    own = probes.trained(x, torch.tensor([0, 1]), 2)
    # Loss ln(1 + e^(-2w)) + decay·w² with W = (w, -w): 2·σ(-2w) = 2·decay·w.
    w = float(own.W[0, 0, 0])
    assert 2 / (1 + math.exp(2 * w)) == pytest.approx(2 * probes.DECAY * w, rel=1e-2)
    assert float(own.W[0, 0, 1]) == pytest.approx(-w, abs=1e-3)


def test_students_follow_their_teacher_without_labels() -> None:
    x, y = planted()
    teacher = probes.trained(x, y, 2)(x)[-1]
    wrong = teacher.flip(-1)
    student = probes.distilled(x, wrong)
    assert float((student(x)[2].argmax(-1) == y).float().mean()) < 0.05, "it believes the teacher, not the labels"


def test_a_memory_by_hand() -> None:
    z = torch.tensor([[[0.0, 4.0]], [[2.0, 0.0]], [[2.0, 0.0]]])
    m = probes.remembered(z, 0.5)
    assert m[:, 0].tolist() == [[0, 4], [1, 2], [1.5, 1]]
    x, y = planted()
    rule = rules.MultiView(0.0, 0.7)
    own = probes.recycled(x, y, probes.trained(x, y, 2), 0.7)
    assert torch.allclose(
        rule.together(own(x)), torch.softmax(probes.remembered(own.logits(x), 0.7)[-1], -1), atol=1e-5
    )
    assert float((rule.together(own(x)).argmax(-1) == y).float().mean()) > 0.97


def test_imitators_are_least_squares_over_all_layers_below() -> None:
    dice = torch.Generator().manual_seed(0)
    x = torch.randn(3, 200, 4, generator=dice)
    mixing = torch.randn(4, 4, generator=dice)
    x[2] = (x[0] + x[1]) @ mixing
    x -= x.mean(1, keepdim=True)
    own = probes.Imitators.fitted(x, ridge=0.0)
    below, above = torch.cat([x[0], x[1]]), torch.cat([x[2], x[2]])
    best = torch.linalg.lstsq(below, above).solution
    assert torch.allclose(own.A[2], best, atol=1e-4)
    assert own.error(x, 0, 2) == pytest.approx(float((x[0] @ best - x[2]).square().mean()), rel=1e-4)


def test_a_classifier_of_past_and_future_by_hand() -> None:
    """Its logits put together from single states, imitated ones by the imitators themselves."""
    x, y = planted(E=8)
    imitators = probes.Imitators.fitted(x)
    own = probes.past_future(x, y, 2, imitators)
    for l in range(4):
        past = sum(x[j] @ own.own.W[j] + own.own.b[j] for j in range(l + 1))
        ahead = sum(
            ((x[l] @ imitators.A[j] + imitators.b[j]) @ own.own.W[j] + own.own.b[j] for j in range(l + 1, 4)),
            torch.zeros(len(y), 2),
        )
        z = 2 * own.share[l] * past + (2 - 2 * own.share[l]) * ahead
        assert torch.allclose(own(x)[l], torch.softmax(z, -1), atol=1e-4)
    assert float((own(x)[3].argmax(-1) == y).float().mean()) > 0.97
    past = probes.past_only(x, y, 2).logits(x).cumsum(0)
    assert float((past[3].argmax(-1) == y).float().mean()) > 0.97


# Leaving ------------------------------------------------------------------------------------------------------------


def test_leaving_by_hand() -> None:
    sure, flat, other = [0.99, 0.01], [0.5, 0.5], [0.1, 0.9]
    p = torch.tensor([[sure, flat, flat], [flat, sure, flat], [other, other, other]])
    left = run_exits(Entropy(0.2), p, (2, 5, 9))
    assert left.layers.tolist() == [2, 5, 9]
    assert left.labels.tolist() == [0, 0, 1]
    assert left.accuracy(torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)
    assert left.mean() == pytest.approx(16 / 3)
    each = run_exits(Each((Entropy(0.0), Entropy(0.7))), p, (2, 5, 9))
    assert each.layers.tolist() == [5, 5, 5]
    assert run_exits(Patience(1), p, (2, 5, 9)).layers.tolist() == [5, 5, 5]
    assert run_exits(Patience(2), p, (2, 5, 9)).layers.tolist() == [9, 9, 9]
    turned = run_exits(Entropy(0.2), p, (2, 5, 9), lambda so_far: so_far[0].flip(-1))
    assert turned.labels[0].item() == 1


def test_curves_by_hand() -> None:
    curve = [(10.0, 0.8), (4.0, 0.6), (6.0, 0.79)]
    assert at_most(curve, 0.02, 0.8) == 2
    assert at_most(curve, 0.0, 0.9) is None
    assert between(curve, 5.0) == pytest.approx(0.695)
    assert between(curve, 3.0) is None
    assert lead(curve, [(4.0, 0.5), (10.0, 0.7)]) == pytest.approx(
        sum((between(curve, 4 + 6 * i / 50) or 0) - (0.5 + 0.2 * i / 50) for i in range(51)) / 51
    )
    assert lead(curve, [(20.0, 0.5), (30.0, 0.7)]) is None


def test_a_task_on_a_tiny_model_and_answers_for_cascades() -> None:
    data = Data(classes=2, train=60, calibration=20, test=20)
    model = tiny.decoder()
    own = Task(model, Words(), data, QUIET)
    assert own.probes(own.x["test"]).shape == (4, 20, 2)
    assert own.asked == len(classify.QUESTION.split())
    cut = classify.answers(model, Words(), data, QUIET, layers=2)
    assert torch.allclose(cut["test"].p, own.probes(own.x["test"])[1], atol=1e-3)
    whole = classify.answers(model, Words(), data, QUIET)
    assert torch.allclose(whole["test"].p, own.probes(own.x["test"])[3], atol=1e-3)
    assert torch.allclose(cut["test"].flops * 2, whole["test"].flops)


# Tokens that leave --------------------------------------------------------------------------------------------------


def reading(depth: TokenDropPlan, texts: list[list[int]], name: str = "llama") -> TokenDropPlan:
    model = tiny.decoder(name)
    with torch.inference_mode():
        model.forward(classify.batch_of(model, texts), depth, 0)
    return depth


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("fate", token_drop_plan.FATES)
def test_dropping_nothing_changes_nothing(name: str, fate: token_drop_plan.Fate) -> None:
    texts = tiny.prompts(3, 23)
    ends = Ends()
    model = tiny.decoder(name)
    with torch.inference_mode():
        model.forward(classify.batch_of(model, texts), ends, 0)
    same = reading(TokenDropPlan({1: Top(1.0), 3: Top(1.0, "random")}, fate), texts, name)
    assert torch.allclose(torch.stack(same.states), ends.stacked(), atol=1e-3)
    assert same.counts == [[len(t) for t in texts]] * 4


def test_dropped_tokens_are_as_if_they_had_never_been_above() -> None:
    """From the layer after the drop on, a pass over the survivors' states at their positions."""
    model, (ids,) = tiny.decoder(), tiny.prompts(1, 20)
    taps = Taps([2])
    model.forward(replace(classify.batch_of(model, [ids]), taps=taps), None, 0)
    depth = reading(TokenDropPlan({2: Top(0.5, "random", seed=4)}), [ids])
    kept = depth.kept[2][0]
    assert len(kept) == 10
    assert (kept[0], kept[-1]) == (0, 19)
    h = taps.stacked()[kept, 0]
    batch = Batch(torch.tensor(ids)[kept], kept, [Span(0, 10, model.memory())])
    batch.rotation = model.rotary.at(kept)[:, None, :]
    for block in list(model.layers)[2:]:
        h = block(h, batch)
    assert torch.allclose(depth.states[-1][0], h[-1], atol=1e-3)
    assert depth.counts == [[20], [20], [10], [10]]


def test_who_waits_is_there_for_the_last_layer() -> None:
    (ids,) = tiny.prompts(1, 20)
    drop = {1: Top(0.5), 2: Top(0.5)}
    gone, waiting = reading(TokenDropPlan(drop), [ids]), reading(TokenDropPlan(drop, "pass"), [ids])
    assert gone.counts == [[20], [10], [5], [5]]
    assert waiting.counts == [[20], [10], [5], [20]]
    assert torch.allclose(gone.states[2], waiting.states[2])
    assert not torch.allclose(gone.states[3], waiting.states[3], atol=1e-3)


def test_waiting_tokens_wait_as_they_left() -> None:
    """After every layer but the last is skipped by them, the last layer sees the states of when they left."""
    model, (ids,) = tiny.decoder(), tiny.prompts(1, 16)
    taps = Taps([1])
    model.forward(replace(classify.batch_of(model, [ids]), taps=taps), None, 0)
    depth = reading(TokenDropPlan({1: Top(0.5)}, "pass"), [ids])
    kept = depth.kept[1][0]
    h = taps.stacked()[:, 0]
    batch = Batch(torch.tensor(ids)[kept], kept, [Span(0, len(kept), model.memory())])
    batch.rotation = model.rotary.at(kept)[:, None, :]
    alive = h[kept]
    for block in list(model.layers)[1:3]:
        alive = block(alive, batch)
    h[kept] = alive
    whole = classify.batch_of(model, [ids])
    whole.rotation = model.rotary.at(whole.positions)[:, None, :]
    assert torch.allclose(depth.states[-1][0], model.layers[3](h, whole)[-1], atol=1e-3)


def test_fused_tokens_leave_one_behind() -> None:
    (ids,) = tiny.prompts(1, 20)
    fused = reading(TokenDropPlan({2: Top(0.5)}, "fuse"), [ids])
    assert fused.counts == [[20], [20], [11], [11]]
    h, batch = torch.arange(8.0).view(4, 2), classify.batch_of(tiny.decoder(), [[1, 2, 3, 4]])
    batch.rotation = torch.ones(4, 1, 8, dtype=torch.complex64)
    keep = torch.tensor([True, False, False, True])
    out, left, here = token_drop_plan._remaining(h, batch, torch.arange(4), keep, torch.tensor([9.0, 1.0, 3.0, 9.0]))
    assert out.tolist() == [[0, 1], [0.25 * 2 + 0.75 * 4, 0.25 * 3 + 0.75 * 5], [6, 7]]
    assert (left.positions.tolist(), here.tolist()) == ([0, 2, 3], [0, 2, 3])


def test_attention_is_added_up_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watched in pieces or at once, and in a sequence that is not the first of its batch."""
    from llmlab.models.kernels import reference

    seen: dict[str, list[LayerView]] = {"whole": [], "pieces": []}

    class Looking:
        watches = True

        def __init__(self, into: list[LayerView]) -> None:
            self.into = into

        def __call__(self, look: LayerView) -> Tensor:
            self.into.append(look)
            return torch.ones(len(look.h), dtype=torch.bool)

    texts = tiny.prompts(2, 20)
    reading(TokenDropPlan({2: Looking(seen["whole"])}), texts)
    monkeypatch.setattr(reference, "CHUNK", 7)
    reading(TokenDropPlan({2: Looking(seen["pieces"])}), texts)
    for a, b, ids in zip(seen["whole"], seen["pieces"], texts, strict=True):
        assert torch.allclose(a.received, b.received, atol=1e-3)
        assert torch.allclose(a.last, b.last, atol=1e-3)
        T = len(ids)
        assert float(a.received.sum()) == pytest.approx(4 * T, rel=1e-4)
        assert float(a.last.sum()) == pytest.approx(4, rel=1e-4)


def test_selectors_by_hand() -> None:
    received = torch.tensor([0.1, 0.5, 0.2, 0.9, 0.3, 0.1])
    look = LayerView(3, 10, torch.zeros(6, 2), received, received.flip(0))
    assert Top(0.5)(look).tolist() == [True, False, False, True, False, True]
    # Divided by 6, 5, … 1 queries: 0.017, 0.1, 0.05, 0.3, 0.15, 0.1.
    assert Top(0.67, "mean")(look).tolist() == [True, True, False, True, True, True]
    assert Top(0.5, "last")(look).tolist() == [True, False, True, False, False, True]
    assert Top(0.4, of_whole=True)(look).sum() == 4
    assert AtLeast(0.8)(look).tolist() == [False, True, False, True, True, False]  # the mean is 0.35
    assert torch.equal(Top(0.5, "random")(look), Top(0.5, "random")(look))
    assert token_drop_plan.places(30, 10, 3) == [10, 16, 23]
    assert token_drop_plan.places(4, 3, 5) == [3]


# Saliency -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
def test_saliency_is_the_derivative(name: str) -> None:
    """Against differences of the loss, and its forward pass against the engine's."""
    model, texts = tiny.decoder(name), tiny.prompts(2, 14)
    W = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))

    def loss(h: Tensor) -> Tensor:
        return F.cross_entropy(h @ W, torch.tensor([0, 1]), reduction="sum")

    found = saliency.saliency(model, texts, loss, QUIET)
    ends = Ends()
    model.forward(classify.batch_of(model, texts), ends, 0)
    spans, laid = found.spans, saliency._Texts(model, texts)

    def onward(layer: int, h: Tensor, gate: Tensor | None = None) -> Tensor:
        for at in range(layer, len(model.layers)):
            h, _ = laid.through(at, h, torch.ones(len(h)) if gate is None else gate)
            gate = None
        return h

    last = onward(0, found.h[0])[[b - 1 for _, b in spans]]
    assert torch.allclose(last, ends.stacked()[-1], atol=1e-3)
    step, at = 1e-2, 17
    for layer in (0, 2):
        gate = torch.ones(len(laid.tokens))
        more, less = gate.clone(), gate.clone()
        more[at] += step
        less[at] -= step
        rise = [float(loss(onward(layer, found.h[layer], g)[[b - 1 for _, b in spans]])) for g in (more, less)]
        assert float(found.gate[layer, at]) == pytest.approx(-(rise[0] - rise[1]) / (2 * step), rel=0.05, abs=2e-3)
    h = found.h[3].clone().requires_grad_(True)
    loss(onward(3, h)[[b - 1 for _, b in spans]]).backward()
    assert torch.allclose(found.contribution[3], (h.grad * h.detach()).norm(dim=-1), atol=1e-4)


# The studies --------------------------------------------------------------------------------------------------------


class Spoken(Words):
    def decode(self, ids: list[int]) -> str:
        return "".join(f" w{i}" for i in ids)


@pytest.fixture(scope="module")
def subject() -> Any:
    """A study's subject with a tiny model, which no cache has loaded."""
    return SimpleNamespace(
        lab=SimpleNamespace(model_cache=SimpleNamespace(capabilities=lambda ref: Attention.capabilities)),
        settings=SimpleNamespace(model="tiny", seed=0),
        model=tiny.decoder(),
        tokenizer=Spoken(),
        progress=QUIET,
    )


@pytest.mark.parametrize(
    "study",
    [
        *(make_study("exit-rules", work=w, train=60, calibration=40, test=40) for w in exit_rules.WORKS),
        *(make_study("token-drop", work=w, train=60, calibration=20, test=20, timed=1) for w in token_drop.WORKS),
    ],
    ids=lambda study: f"{study.id}-{study.work}",
)
def test_every_work_runs_and_judges_its_claims(study: Any, subject: Any) -> None:
    found = study.run(subject)
    assert all(set(row) <= set(found.columns) for row in found.rows)
    measured = [row for row in found.rows if "accuracy" in row]
    assert len(measured) > 2
    assert all(0 <= row["accuracy"] <= 1 and row["saved"] >= -1.0 for row in measured)
    assert all(math.isfinite(v) for row in found.rows for v in row.values() if isinstance(v, float)), "JSON has no more"
    assert found.claims
    assert all(claim.evidence and claim.source and claim.holds in (True, False, None) for claim in found.claims)
    assert {row["method"] for row in found.rows} >= {measured[0]["method"]}


def test_a_model_without_single_layers_is_refused(subject: Any) -> None:
    wrapped = SimpleNamespace(
        **{**vars(subject), "lab": SimpleNamespace(model_cache=SimpleNamespace(capabilities=frozenset))}
    )
    wrapped.lab.model_cache.capabilities = lambda ref: frozenset()
    with pytest.raises(Refused, match="needs a decoder"):
        make_study("exit-rules").run(wrapped)


# What is learned about words ----------------------------------------------------------------------------------------


def test_a_retention_schedule_by_hand() -> None:
    """Two places in ten layers: five ranks of ten are worth something at the first, two at the second."""
    worth = torch.zeros(2, 10)
    worth[0, :5], worth[1, :2] = 5.0, 5.0
    masses = selectors.retention(worth, [2, 6], 10, 0.49)
    # 2 layers of all, 4 of a half, 4 of a fifth: 4.8 of 10.
    assert masses == pytest.approx([0.5, 0.2])
    assert selectors.retention(worth, [2, 6], 10, 1.0)[0] == 1.0
    rising = worth.flip(0)
    assert selectors.retention(rising, [2, 6], 10, 0.49)[1] <= selectors.retention(rising, [2, 6], 10, 0.49)[0]


def test_predictors_learn_what_stands_in_a_state() -> None:
    dice = torch.Generator().manual_seed(0)
    h = torch.randn(240, 8, generator=dice)
    spans = [(i, i + 12) for i in range(0, 240, 12)]
    truth = (2 * h[:, 3]).exp()
    net = selectors.predictor(h, truth, spans[:15], seed=0)
    with torch.no_grad():
        agreement = [selectors.rank_correlation(net(h[a + 1 : b]), truth[a + 1 : b]) for a, b in spans[15:]]
    assert sum(agreement) / 5 > 0.8
    assert selectors.rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([9.0, 8.0, 7.0])) == pytest.approx(-1)
    look = LayerView(3, 12, h[:12], h[:12, 0], h[:12, 0])
    S = torch.softmax(net(h[:12]), -1)
    assert selectors.Contribution(net, 0.5)(look).tolist() == (S >= 0.5 / 12).tolist()
    assert int(selectors.Contribution(net, share=0.25)(look).sum()) == 3


def test_rewards_teach_a_policy() -> None:
    """Words whose first entry is positive are worth keeping, and every word costs."""
    dice = torch.Generator().manual_seed(0)
    h = torch.randn(16, 6, generator=dice)
    net = selectors.Perceptron(h, seed=0)

    def act(step: int) -> tuple[list[selectors.Choices], Tensor]:
        seen = [torch.randn(16, 6, generator=dice) for _ in range(4)] * 4
        policy = selectors.Policy(net, rng=dice)
        kept = [policy(LayerView(1, 16, x, x[:, 0], x[:, 0])) for x in seen]
        reward = [float(torch.where(x[1:-1, 0] > 0, 1.0, -1.0)[k[1:-1]].sum()) for x, k in zip(seen, kept, strict=True)]
        return [list(zip(seen, kept, strict=True))], torch.tensor(reward).view(4, 4).t()

    curve = selectors.reinforced([net], act, 60, QUIET, rate=2e-2)
    assert sum(curve[-10:]) > sum(curve[:10]) + 10
    fresh = torch.randn(64, 6, generator=dice)
    kept = selectors.Policy(net)(LayerView(1, 64, fresh, fresh[:, 0], fresh[:, 0]))
    assert float((kept == (fresh[:, 0] > 0)).float().mean()) > 0.8

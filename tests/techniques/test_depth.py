"""When a token leaves, which layers it runs and what it leaves behind, by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.errors import Refused
from llmlab.models.auxiliary import exit_heads
from llmlab.models.auxiliary.exit_heads import ExitHeads
from llmlab.models.batch import Batch
from llmlab.models.decoder import Decoder
from llmlab.models.mixers.attention import Attention
from llmlab.models.result import ForwardResult, PlanResult
from llmlab.runtime.events import Committed, Exited
from llmlab.runtime.session import Session
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make
from llmlab.runtime.tools import Tools
from llmlab.techniques.early_exit import heads as early_heads
from llmlab.techniques.early_exit import rules, skip_layer, thresholds
from llmlab.techniques.early_exit.early_exit import RULES, EarlyExit
from llmlab.techniques.early_exit.skip_decode import SkipDecode
from llmlab.training import corpus
from llmlab.training import exits as training
from llmlab.training.parts import Plan
from tests import tiny
from tests.laws import laws

PROMPT = tiny.prompts(1, 21)[0]


def states(model: Decoder, prompt: list[int], layers: tuple[int, ...] = (1, 2, 3, 4)) -> Tensor:
    """(layers, E): what stands after these layers at the prompt's last token, by a pass that nothing ends early."""
    session = Session(model, taps=layers)
    list(session.prefill(prompt))
    session.states()
    session.forward()
    session.commit((), 0)
    return session.states()[0]


def first_pass(model: Decoder, technique: Any, prompt: list[int] = PROMPT) -> ForwardResult:
    """What the first pass of a sequence says under a plan of layers."""
    session = Stack([technique]).session(model, tiny.tools())
    list(session.prefill(prompt))
    return session.forward()


# Early exit ---------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def by_hand(model: Decoder, prompt: list[int], limit: int, after: int) -> list[int]:
    """Text when every token leaves after `after` layers; those above get keys and values from its hidden state."""
    session = Session(model)
    list(session.prefill(prompt))
    out = []
    for _ in range(limit):
        h = model.embedding.lookup(torch.tensor(session.tokens[-1:]))
        at = torch.tensor([session.memory.next_position])
        batch = laws.Batch(torch.tensor(session.tokens[-1:]), at, [laws.Span(0, 1, session.memory)])
        batch.rotation = model.rotary.at(at)[:, None, :]
        for block in model.layers[:after]:
            h = block(h, batch)
        token = int(model.embedding.logits(model.norm(h))[0].argmax())
        for block in model.layers[after:]:
            s = model.shape
            qkv = block.linears()["qkv"](block.norm_mixer(h)).view(1, s.heads + 2 * s.kv_heads, s.head_size)
            k, v = qkv[:, s.heads : s.heads + s.kv_heads], qkv[:, s.heads + s.kv_heads :]
            k = torch.view_as_real(torch.view_as_complex(k.unflatten(-1, (-1, 2))) * batch.rotation).flatten(-2)
            session.memory.layers[block.index].append(torch.stack([k, v]).transpose(1, 2), at)
        session.memory.next_position += 1
        session.tokens.append(token)
        out.append(token)
    return out


@pytest.mark.parametrize("after", [1, 2, 3])
def test_leaving_after_a_layer(llama: Decoder, after: int) -> None:
    """With no threshold to pass, every token leaves at the first chance."""
    stack = Stack([make("early-exit", threshold=0.0, first=after, step=8, fill="copy")])
    events = laws.run(llama, PROMPT, 15, stack)
    assert laws.committed_tokens(events) == by_hand(llama, PROMPT, 15, after)
    assert {e.layers_run for e in events if isinstance(e, Committed)} == {after}
    exits = [e for e in events if isinstance(e, Exited)]
    assert len(exits) == 15
    assert {(e.layer, e.layers) for e in exits} == {(after, 4)}


@pytest.mark.parametrize("id", ["early-exit", "hash-exit", "skip-layer"])
def test_every_layer_holds_a_row_of_every_token(llama: Decoder, id: str) -> None:
    events = laws.run(llama, PROMPT, 15, Stack([laws.sharp(id)]))
    ran = [e.layers_run for e in events if isinstance(e, Committed)]
    assert min(ran) < 4
    assert all(len(set(e.kv_rows)) == 1 for e in events if isinstance(e, Committed))


@pytest.mark.parametrize("id", ["early-exit", "hash-exit"])
def test_what_waits_is_made_up_for(llama: Decoder, id: str) -> None:
    """With a text that is given, passes that go all the way must answer like the model, whoever left before them."""
    knobs = {"early-exit": {"threshold": 0.15, "first": 1, "step": 1}, "hash-exit": {"first": 1, "assign": "random"}}
    plain = Session(llama)
    session = Stack([make(id, fill="later", **knobs[id])]).session(llama, tiny.tools())
    text = tiny.text(60, seed=3)
    list(plain.prefill(PROMPT)), list(session.prefill(PROMPT))
    ran, waited = [], 0
    for token in text:
        want, result = plain.forward().logits[0], session.forward()
        got = result.logits[0]
        ran.append(int(result.layers_run))
        rows = session.memory.rows()
        assert rows == sorted(rows, reverse=True)
        assert rows[: ran[-1]] == plain.memory.rows()[: ran[-1]]
        if ran[-1] == 4:
            assert torch.allclose(want, got, atol=1e-4)
            waited += ran[-2:-1] != [4]
        plain.commit((), token), session.commit((), token)
    assert set(ran) == {1, 2, 3, 4}
    assert waited > 3
    for a, b in zip(plain.memory.layers, session.memory.layers, strict=True):
        assert torch.allclose(a.k[:, : b.count], b.k, atol=1e-4)
        assert torch.equal(a.positions[:, : b.count], b.positions)


def test_what_waits_wants_no_eviction() -> None:
    refusals = Stack([make("early-exit"), make("h2o")]).refusals(Attention.capabilities)
    assert "which Early exit by confidence does not allow" in str(refusals[0])
    assert not Stack([make("early-exit", fill="copy"), make("h2o")]).refusals(Attention.capabilities)


def by_rule(rule: str, p: list[Tensor]) -> bool:
    """What the papers' rules say at θ = 0.25 and a patience of 1, written out."""
    first, second = p[-1].topk(2).values.tolist()
    entropy = -float((p[-1] * p[-1].clamp_min(1e-30).log()).sum())
    said = [int(x.argmax()) for x in p]
    return {
        "probability": first > 0.25,
        "margin": first - second > 0.25,
        "entropy": entropy < 0.75,
        "speed": entropy / math.log(len(p[-1])) < 0.75,
        "patience": len(said) > 1 and said[-1] == said[-2],
    }[rule]


@pytest.mark.parametrize("rule", ["probability", "margin", "entropy", "speed", "patience"])
def test_a_token_leaves_at_the_first_layer_that_is_sure(llama: Decoder, rule: str) -> None:
    """Follow the first token of several prompts through the layers by hand and compare where it is let go."""
    technique = make("early-exit", rule=rule, threshold=0.25, patience=1, first=1, step=1)
    left = set()
    for prompt in tiny.prompts(12, 15, seed=4):
        result = first_pass(llama, technique, prompt)
        p = [torch.softmax(llama.head(h[None])[0].float(), -1) for h in states(llama, prompt)]
        want = next((i for i in range(1, 4) if by_rule(rule, p[:i])), 4)
        left.add(want)
        assert result.layers_run == want
        assert torch.allclose(torch.softmax(result.logits[0], -1), p[want - 1], atol=1e-4)
        assert result.exits == (((want, pytest.approx(float(p[want - 1].max()), abs=1e-4)),) if want < 4 else ())
    assert rule in ("entropy", "speed") or len(left) > 1


def test_a_first_layer_beyond_the_last_is_refused(llama: Decoder) -> None:
    with pytest.raises(Refused, match=r"layer 4 of 4.*smaller number"):
        laws.run(llama, PROMPT, 3, Stack([make("early-exit", first=4)]))


@pytest.mark.parametrize(
    ("first", "step", "checked"),
    [(1, 1, [1, 2, 3]), (1, 2, [1, 3]), (2, 1, [2, 3]), (3, 4, [3]), (0, 1, [3])],
)
def test_checks_come_at_their_steps(
    llama: Decoder, monkeypatch: pytest.MonkeyPatch, first: int, step: int, checked: list[int]
) -> None:
    """Sure only at the n-th check: the token leaves at the n-th of the layers that are checked."""
    for n, layer in enumerate([*checked, 4], 1):
        monkeypatch.setattr(rules.Probability, "leaves", lambda self, p, n=n: torch.tensor([len(p) == n]))
        events = laws.run(llama, PROMPT, 1, Stack([make("early-exit", threshold=0.5, first=first, step=step)]))
        assert [e.layers_run for e in events if isinstance(e, Committed)] == [layer]


@pytest.mark.parametrize("rule", RULES)
def test_a_threshold_of_one_never_exits(llama: Decoder, rule: str) -> None:
    stack = Stack([make("early-exit", rule=rule, threshold=1.0, head="trained", patience=1)])
    assert laws.text(llama, PROMPT, 12, stack) == laws.text(llama, PROMPT, 12)


@pytest.mark.parametrize("rule", [r for r in RULES if r != "learned"])
@pytest.mark.parametrize("head", exit_heads.HEADS)
def test_every_rule_lets_tokens_go(llama: Decoder, rule: str, head: str) -> None:
    # Random models are never sure to within a nat, so there the bar comes from calibration.
    knobs = {"epsilon": 0.4} if rule == "entropy" else {}
    stack = Stack([make("early-exit", rule=rule, head=head, threshold=0.05, patience=1, first=1, step=1, **knobs)])
    assert any(isinstance(e, Exited) for e in laws.run(llama, PROMPT, 30, stack))


def test_the_learned_rule_wants_trained_exits(llama: Decoder) -> None:
    with pytest.raises(Refused, match="no gate beside the logit lens"):
        laws.run(llama, PROMPT, 3, Stack([make("early-exit", rule="learned")]))


def test_epsilon_sets_the_bar_on_the_models_own_words(llama: Decoder) -> None:
    """ε = 0.2 by hand: the words that the model writes after pieces of the calibration text, and the lens on them."""
    technique = make("early-exit", first=2, step=1, epsilon=0.2)
    _, asked, rule = technique._ready(llama, tiny.tools())
    worst = []
    pieces = torch.tensor(tiny.text(300)[: early_heads.TEXTS * early_heads.GIVEN]).split(early_heads.GIVEN)
    for piece in pieces:
        text = piece.tolist()
        for token in laws.text(llama, text, early_heads.WRITTEN):
            p = torch.softmax(llama.head(states(llama, text, asked)), -1)
            wrong = p.argmax(-1) != token
            worst.append(float(p.amax(-1)[wrong].max()) if wrong.any() else -math.inf)
            text.append(token)
    n = len(worst)
    assert rule.bar == pytest.approx(sorted(worst)[math.ceil((n + 1) * 0.8) - 1], abs=1e-4)
    lens = technique._ready(llama, None)[0]
    p, right, _ = early_heads.answers_on_own_words(lens, None, asked)
    same, _ = thresholds.trade(thresholds.scores_of(rule, p), right, asked, 4, rule.bar)
    assert 0.8 <= same < 1


# Heads --------------------------------------------------------------------------------------------------------------


def test_a_shortlist_is_a_part_of_the_vocabulary(llama: Decoder) -> None:
    """Tokens 7 (three times), 90 and 5 stand in the calibration text; the lowest ids fill the rest."""
    tools = Tools(calibration=[7, 7, 90, 7, 5])
    words = early_heads.shortlist(llama, 64, tools)
    assert words is not None
    assert words.tolist() == sorted({7, 90, 5, *[i for i in range(64) if i not in (5, 7)][:61]})
    assert early_heads.shortlist(llama, 0, tools) is early_heads.shortlist(llama, 128, tools) is None
    h = states(llama, PROMPT)
    heads, whole = ExitHeads(llama, (2,), words), ExitHeads(llama, (2,), None)
    logits = whole.logits(2, h[1:2])
    assert torch.allclose(logits, llama.head(h[1:2]), atol=1e-5)
    assert torch.allclose(heads.logits(2, h[1:2]), logits[:, words], atol=1e-4)
    spread = heads.spread(heads.logits(2, h[1:2]))
    assert torch.allclose(spread[:, words], logits[:, words], atol=1e-4)
    outside = [i for i in range(tiny.VOCAB) if i not in words.tolist()]
    assert set(spread[0, outside].tolist()) == {float(heads.logits(2, h[1:2]).min())}


def test_an_exit_is_the_network_that_was_trained(llama: Decoder) -> None:
    part = tiny.parts("exits", llama, "")
    net = training.Exits(llama.shape.width, 2, 32, 8)
    net.load_state_dict({k: v for k, v in part.items() if k not in ("layers", "shortlist")})
    heads = ExitHeads(llama, part["layers"].tolist(), part["shortlist"], part)
    assert heads.layers == (2, 3)
    for i, layer in enumerate(heads.layers):
        h = states(llama, PROMPT)[layer - 1 : layer]
        x = F.rms_norm(h, h.shape[-1:], None, llama.shape.eps)
        want = llama.embedding.logits(llama.norm(net(x, i)))[:, part["shortlist"]]
        assert torch.allclose(heads.logits(layer, h), want, atol=1e-3)
        assert torch.allclose(heads.odds(layer, h), torch.sigmoid(net.odds(x, i)), atol=1e-5)


def test_a_gate_lets_go_without_asking_the_head(llama: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = early_heads.exit_heads(llama, tiny.tools(), "trained", (), 0, "")
    odds = [float(heads.odds(layer, states(llama, PROMPT)[layer - 1 : layer])) for layer in (2, 3)]
    asked: list[int] = []
    logits = ExitHeads.logits
    monkeypatch.setattr(ExitHeads, "logits", lambda self, layer, h: asked.append(layer) or logits(self, layer, h))
    for bar, want in ((0.0, 2), (max(odds) + 1e-3, 4)):
        asked.clear()
        result = first_pass(llama, EarlyExit(rule="learned", head="trained", threshold=bar))
        assert result.layers_run == want
        assert asked == [2] * (want == 2)


def test_a_gate_spares_the_head(llama: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below its odds a head is not asked, and with ε the bar is that of those which are."""
    heads = early_heads.exit_heads(llama, tiny.tools(), "trained", (), 0, "")
    monkeypatch.setattr(ExitHeads, "odds", lambda self, layer, h: torch.full((len(h),), 0.3 if layer == 2 else 0.7))
    asked: list[int] = []
    logits = ExitHeads.logits
    monkeypatch.setattr(ExitHeads, "logits", lambda self, layer, h: asked.append(layer) or logits(self, layer, h))
    result = first_pass(llama, EarlyExit(head="trained", threshold=0.0, gate=0.5))
    assert result.layers_run == 3
    assert asked == [3]
    asked.clear()
    result = first_pass(llama, EarlyExit(head="trained", threshold=0.0, gate=0.5, rule="patience", patience=1))
    assert asked[:2] == [2, 3]
    rule = EarlyExit(head="trained", gate=0.5, epsilon=0.2)._set(heads, (2, 3), tiny.tools())
    p, same, _ = early_heads.answers_on_own_words(heads, tiny.tools(), (2, 3))
    assert rule.bar == thresholds.conformal(p[1:].amax(-1), same[1:], 0.2)


class Letters:
    """A tokenizer of tiny vocabularies: one letter, one token."""

    chat_template = None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) % 95 + 1 for c in text][:40]}

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "Some text of a good length stands here. And another sentence follows it."


def test_exits_learn_and_go_on_where_they_stopped(llama: Decoder, tmp_path: Path) -> None:
    from llmlab.models.loading.loaded import Loaded

    loaded = Loaded("tiny", llama, Letters(), "dense-fp32", frozenset(), "test")
    layers = training.taps(llama)
    assert layers == (2, 3, 4)
    corpus.write(loaded, tmp_path, 5000, layers, lambda *_: None, together=8)
    told: list[str] = []
    _, first = training.run(llama, tmp_path, tmp_path, Plan(25, 1024, 3e-3, 2), lambda *a: told.append(a[0]), 1e9, 97)
    part, card = training.run(llama, tmp_path, tmp_path, Plan(75, 1024, 3e-3, 2), lambda *_: None, 1e9, 97)
    assert told
    assert "agree 3" in told[-1]
    assert card["steps"] == 75
    assert card["curve"][0] == first["curve"][0]
    assert card["curve"][-1]["loss"] < card["curve"][0]["loss"]
    lens = ExitHeads(llama, (2, 3), part["shortlist"])
    trained = ExitHeads(llama, part["layers"].tolist(), part["shortlist"], part)
    right: dict[str, float] = {}
    h = torch.cat([s.states for s in corpus.sequences(tmp_path, layers) if s.states is not None]).float()
    said = llama.head(h[:, 2])[:, part["shortlist"].long()].argmax(-1)
    for name, head in (("lens", lens), ("trained", trained)):
        right[name] = float((head.logits(3, h[:, 1]).argmax(-1) == said).float().mean())
    assert right["trained"] > right["lens"]
    assert 2 <= card["held_out"]["margin, all: layers"] <= 4


# Hash exit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", ["frequency", "random", "information", "cluster"])
def test_the_token_that_is_read_decides(llama: Decoder, assign: str) -> None:
    technique = make("hash-exit", assign=assign, first=2)
    _, table = technique._ready(llama, tiny.tools())
    assert set(table.layers.tolist()) == {2, 3, 4}
    events = laws.run(llama, PROMPT, 25, Stack([technique]))
    read = [PROMPT[-1], *laws.committed_tokens(events)[:-1]]
    assert [e.layers_run for e in events if isinstance(e, Committed)] == table.layers[read].tolist()


def test_words_leave_by_how_often_they_stand_in_the_text(llama: Decoder) -> None:
    """Of the words 7, 3 and 9, in this order of frequency, one is in each bucket; the others stay to the end."""
    tools = Tools(calibration=[7, 3, 9, 7, 3, 7])
    _, table = make("hash-exit", first=2)._ready(llama.private_copy(), tools)
    assert [table.layers[w].item() for w in (7, 3, 9, 0)] == [2, 3, 4, 4]


# SkipDecode ---------------------------------------------------------------------------------------------------------


def test_the_schedule_by_hand() -> None:
    """From 6 layers to 2 over 4 tokens: 6, 5, 4, 3, 2, 2; the lowest always, the highest first."""
    plan = SkipDecode(least=2, over=4, warmup=1)
    assert [plan.layers_at(t, 6) for t in range(6)] == [
        [0, 1, 2, 3, 4, 5],
        [0, 2, 3, 4, 5],
        [0, 3, 4, 5],
        [0, 4, 5],
        [0, 5],
        [0, 5],
    ]
    assert SkipDecode(least=2, over=4, warmup=0).layers_at(9, 6) == [4, 5]
    assert SkipDecode(least=2, most=4, over=4).layers_at(0, 6) == [0, 3, 4, 5]
    assert SkipDecode(least=128).layers_at(99, 6) == [0, 1, 2, 3, 4, 5]


def test_a_layer_that_is_left_out_holds_no_more_rows(llama: Decoder) -> None:
    events = laws.run(llama, PROMPT, 12, Stack([make("skip-decode", least=2, over=4)]))
    n = len(PROMPT)
    rows = [e.kv_rows for e in events if isinstance(e, Committed)]
    assert rows[0] == [n] * 4
    # Depth: 4, round(3.5) = 4, 3, round(2.5) = 2, 2, …
    assert [e.layers_run for e in events if isinstance(e, Committed)] == [4, 4, 3] + [2] * 9
    assert rows[-1] == [n + 11, n + 1, n + 2, n + 11]


@torch.inference_mode()
def test_skipping_is_running_the_other_layers(llama: Decoder) -> None:
    """Against a pass that goes through the chosen layers with a memory built afresh."""
    technique = make("skip-decode", least=2, over=3)
    got = laws.text(llama, PROMPT, 8, Stack([technique]))
    session, out = Session(llama), []
    list(session.prefill(PROMPT))
    for t in range(8):
        chosen = technique.layers_at(t, 4)

        def only(model: Decoder, h: Tensor, batch: Batch, chosen: list[int] = chosen) -> PlanResult:
            for i in range(4):
                h = model.run_layers(h, batch, i, i + 1, kv_only=i not in chosen)
            return PlanResult(h, 4.0)

        out.append(int(session.forward(plan=only).logits.argmax()))
        session.commit((), out[-1])
    assert got == out


# SkipLayer ----------------------------------------------------------------------------------------------------------


def test_routers_foretell_how_much_a_layer_turns(llama: Decoder) -> None:
    """The regression beats its own mean, and its bar lets the asked share through."""
    tokens = tiny.text(300)
    routers = skip_layer.fitted(llama, tokens)
    assert routers.scores.shape == (4, 300)
    for density in (0.9, 0.7, 0.6):
        runs = (routers.scores > routers.bar(density))[1:-1].float().sum() + 2 * 300
        assert float(runs) / 1200 == pytest.approx(density, abs=0.01)
    assert routers.bar(1.0) == -math.inf
    assert bool((routers.scores[1:-1] <= routers.bar(0.1)).all())
    session = Session(llama, taps=(1, 2))
    list(session.prefill([*tokens[:200], 0]))
    before, after = session.states().unbind(1)
    turned = (1 - F.cosine_similarity(before, after, dim=-1)).log()
    error = (turned - routers.scores[1, :200]).square().mean()
    assert float(error) < 0.8 * float(turned.var())


def test_a_router_decides_for_each_layer(llama: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Routers that say no at layer 2 of 4 alone: that layer makes its keys and values and nothing else."""
    E = llama.shape.width
    routers = skip_layer.Routers(torch.zeros(4, E), torch.tensor([0.0, 1.0, -1.0, 0.0]), torch.zeros(4, 5))
    monkeypatch.setattr(skip_layer.SkipLayer, "_routers", lambda self, model, tools: routers)
    result = first_pass(llama, make("skip-layer", density=0.75))
    assert result.layers_run == 3

    def without(model: Decoder, h: Tensor, batch: Batch) -> PlanResult:
        for i in range(4):
            h = model.run_layers(h, batch, i, i + 1, kv_only=i == 2)
        return PlanResult(h, 3.0)

    other = Session(llama)
    list(other.prefill(PROMPT))
    assert torch.allclose(other.forward(plan=without).logits[0], result.logits[0], atol=1e-5)


# LayerSkip ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[int]]]:
    """Per layer, how many rows each of its passes had."""
    seen: list[list[int]] = [[] for _ in range(4)]
    run_layers = Decoder.run_layers

    def noted(self: Decoder, h: Tensor, batch: Batch, start: int = 0, stop: int | None = None, **more: Any) -> Tensor:
        for rows in seen[start:stop]:
            rows.append(len(batch.tokens))
        return run_layers(self, h, batch, start, stop, **more)

    monkeypatch.setattr(Decoder, "run_layers", noted)
    return seen


@pytest.mark.parametrize("head", exit_heads.HEADS)
def test_nothing_is_computed_twice(llama: Decoder, rows_run: list[list[int]], head: str) -> None:
    stack = Stack([make("layer-skip", layer=2, length=3, confidence=0.0, gate=0.0, head=head)])
    events = laws.run(llama, PROMPT, 20, stack)
    passes = [e for e in events if isinstance(e, Committed)]
    below, above = rows_run[0][1:], rows_run[3][1:]  # without the prompt's
    assert rows_run[1] == rows_run[0]
    assert rows_run[2] == rows_run[3]
    assert len(above) == len(passes)
    assert set(below) == {1}  # drafting alone, a row at a time; the check adds none
    assert len(below) == 4 * len(passes)
    assert max(above) == 4
    assert laws.committed_tokens(events) == laws.text(llama, PROMPT, 20)


def test_a_policy_that_watches_attention_sees_every_layer(llama: Decoder) -> None:
    h2o = make("h2o", budget=12, every=5)
    skip = make("layer-skip", layer=2, length=3, confidence=0.0)
    assert laws.text(llama, PROMPT, 40, Stack([h2o, skip])) == laws.text(llama, PROMPT, 40, Stack([h2o]))


def test_an_exit_that_nobody_trained_is_refused(llama: Decoder) -> None:
    with pytest.raises(Refused, match=r"no trained exit after layer 1.*Give one of 2, 3"):
        laws.run(llama, PROMPT, 3, Stack([make("layer-skip", layer=1, head="trained")]))

"""When a token leaves early, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from llmlab.abilities import Refused
from llmlab.events import Committed, Exited
from llmlab.models.decoder import Decoder
from llmlab.session import Session
from llmlab.stack import Stack
from llmlab.technique import make
from llmlab.techniques.depth import early_exit
from llmlab.techniques.depth.early_exit import confidence
from tests import tiny
from tests.laws import laws

PROMPT = tiny.prompts(1, 21)[0]


def test_confidence_by_hand() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    assert confidence(logits, "probability") == pytest.approx(0.5)
    assert confidence(logits, "margin") == pytest.approx(0.25)
    entropy = 0.5 * math.log(2) + 0.25 * math.log(4) + 2 * 0.125 * math.log(8)
    assert confidence(logits, "entropy") == pytest.approx(1 - entropy / math.log(4))
    sure = torch.tensor([0.0, -200.0, -200.0])
    assert [confidence(sure, rule) for rule in ("probability", "margin", "entropy")] == pytest.approx([1, 1, 1])
    assert confidence(torch.zeros(5), "entropy") == pytest.approx(0, abs=1e-6)


@torch.inference_mode()
def by_hand(model: Decoder, prompt: list[int], limit: int, after: int) -> list[int]:
    """Text when every token leaves after `after` layers; those above get keys and values from its hidden state."""
    session = Session(model)
    list(session.read(prompt))
    out = []
    for _ in range(limit):
        h = model.tables.look_up(torch.tensor(session.tokens[-1:]))
        at = torch.tensor([session.memory.next_position])
        batch = laws.Batch(torch.tensor(session.tokens[-1:]), at, [laws.Span(0, 1, session.memory)])
        batch.rotation = model.turns(at)[:, None, :]
        for block in model.layers[:after]:
            h = block(h, batch)
        token = int(model.tables.logits(model.norm(h))[0].argmax())
        for block in model.layers[after:]:
            s = model.shape
            qkv = block.qkv(block.norm_attention(h)).view(1, s.heads + 2 * s.kv_heads, s.head_size)
            k, v = qkv[:, s.heads : s.heads + s.kv_heads], qkv[:, s.heads + s.kv_heads :]
            k = torch.view_as_real(torch.view_as_complex(k.unflatten(-1, (-1, 2))) * batch.rotation).flatten(-2)
            session.memory.layers[block.index].append(k.transpose(0, 1), v.transpose(0, 1), at)
        session.memory.next_position += 1
        session.tokens.append(token)
        out.append(token)
    return out


@pytest.mark.parametrize("after", [1, 2, 3])
def test_leaving_after_a_layer(llama: Decoder, after: int) -> None:
    """With no threshold to pass, every token leaves at the first chance."""
    stack = Stack([make("early-exit", threshold=0.0, first=after, step=8)])
    events = laws.run(llama, PROMPT, 15, stack)
    assert laws.text_of(events) == by_hand(llama, PROMPT, 15, after)
    assert {e.layers_run for e in events if isinstance(e, Committed)} == {after}
    exits = [e for e in events if isinstance(e, Exited)]
    assert len(exits) == 15
    assert {(e.layer, e.layers) for e in exits} == {(after, 4)}


def test_every_layer_holds_a_row_of_every_token(llama: Decoder) -> None:
    for e in laws.run(llama, PROMPT, 15, Stack([make("early-exit", threshold=0.2, first=1, step=1)])):
        if isinstance(e, Committed):
            assert len(set(e.kv_rows)) == 1


@pytest.mark.parametrize("rule", ["probability", "margin", "entropy"])
def test_a_token_leaves_at_the_first_layer_that_is_sure(llama: Decoder, rule: str) -> None:
    """Follow one token through the layers by hand and compare where the technique lets it go."""
    technique = make("early-exit", rule=rule, threshold=0.25, first=1, step=1)
    session = Session(llama)
    list(session.read(PROMPT))
    with technique.installed(session), torch.inference_mode():
        session.forward()
    other = Session(llama)
    list(other.read(PROMPT))
    sures: list[float] = []

    def note(model: Decoder, h: torch.Tensor, batch) -> tuple[torch.Tensor, None]:
        for block in model.layers:
            h = block(h, batch)
            sures.append(confidence(model.head(h)[0], rule))
        return h, None

    other.forward(depth=note)
    want = next((i for i, sure in enumerate(sures[:-1], 1) if sure > 0.25), 4)
    assert session.layers_run == want
    assert session.exits == ([(want, pytest.approx(sures[want - 1]))] if want < 4 else [])
    assert session.depth is None


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
    for n, layer in enumerate([*checked, 4]):
        answers = iter([0.0] * n + [1.0] * 9)
        monkeypatch.setattr(early_exit, "confidence", lambda logits, rule, answers=answers: next(answers))
        events = laws.run(llama, PROMPT, 1, Stack([make("early-exit", threshold=0.5, first=first, step=step)]))
        assert [e.layers_run for e in events if isinstance(e, Committed)] == [layer]

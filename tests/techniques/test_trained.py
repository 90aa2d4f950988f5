"""Drafters with trained parts: the network in the engine is the one that was trained, and a part finds its model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from llmlab.errors import Refused
from llmlab.models.auxiliary import store
from llmlab.models.auxiliary.feature_drafter import FeatureDrafter
from llmlab.runtime.batched import Text, generate_batch
from llmlab.runtime.draft import Draft
from llmlab.runtime.generate import committed_tokens, generate
from llmlab.runtime.session import Session
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make
from llmlab.runtime.tools import Tools
from llmlab.techniques.drafting.draft_heads import DraftHeads
from llmlab.training import corpus, eagle, heads
from llmlab.training.parts import Plan
from tests import tiny


def states_of(model: object, tokens: list[int], layers: tuple[int, ...]) -> torch.Tensor:
    session = Session(model, taps=layers)
    for _ in session.prefill([*tokens, 0]):
        pass
    return session.states()


@torch.no_grad()
def test_the_drafter_is_the_network_that_was_trained() -> None:
    model = tiny.decoder("llama")
    part = tiny.parts("eagle", model, "")
    net, drafter = eagle.Layer(model, eagle.taps(model)), FeatureDrafter(model, part)
    tokens = tiny.text(14)
    states = states_of(model, tokens[:12], eagle.taps(model))
    e = model.embedding.lookup(torch.tensor(tokens[1:13]))
    want = net(net.fused(states), e, [12], net.memories(1), 0)
    memory = drafter.memory()
    got = drafter.forward(drafter.fused(states), tokens[1:13], memory, range(12), None)
    assert torch.allclose(got, want, atol=1e-4)
    # The second guess: row 12 continues row 11's output, and sees the model's own states before it.
    again = drafter.forward(got[-1:], tokens[13:14], memory, [12], None)
    longer = torch.cat([states, states[-1:]])
    e, memories = model.embedding.lookup(torch.tensor(tokens[1:14])), net.memories(1)
    h = net(net.fused(longer), e, [13], memories, 0)
    shifted = torch.cat([torch.zeros(1, h.shape[-1]), h[:-1]])
    assert torch.allclose(again[0], net(shifted, e, [13], memories, 1)[-1], atol=1e-4)


@torch.no_grad()
def test_rows_of_a_tree_are_those_of_its_paths() -> None:
    model = tiny.decoder("llama")
    drafter, tokens = FeatureDrafter(model, tiny.parts("eagle", model, "")), tiny.text(9)
    states = states_of(model, tokens[:8], eagle.taps(model))
    memory = drafter.memory()
    h = drafter.forward(drafter.fused(states), tokens[1:9], memory, range(8), None)[-1:]
    visible = torch.eye(3, dtype=torch.bool)
    visible[2, 0] = True
    first = drafter.forward(h.repeat(2, 1), [5, 6], memory, [8, 8], torch.eye(2, dtype=torch.bool))
    memory.restore([8])
    tree = drafter.forward(torch.cat([h, h, first[:1]]), [5, 6, 7], memory, [8, 8, 9], visible)
    memory.restore([8])
    one = drafter.forward(h, [5], memory, [8], None)
    two = drafter.forward(one, [7], memory, [9], None)
    assert torch.allclose(tree[2], two[0], atol=1e-4)
    assert torch.allclose(tree[0], one[0], atol=1e-4)


def test_draft_heads_take_the_most_valuable_paths_first() -> None:
    heads = DraftHeads(heads=2, nodes=4, breadth=2, confidence=0.1)
    draft = heads._tree([[0.6, 0.3], [0.9, 0.05]], [[1, 2], [3, 4]])
    # 1 (0.6), 1-3 (0.54), 2 (0.3), 2-3 (0.27); 1-4 (0.03) and 2-4 (0.015) are left out.
    assert draft == Draft((1, 3, 2, 3), (-1, 0, -1, 2), (None,) * 4)


@pytest.mark.parametrize("knobs", [{}, {"breadth": 3, "nodes": 7, "length": 4, "confidence": 0.0}])
def test_eagle_drafts_in_every_pass_and_keeps_the_text(knobs: dict[str, float]) -> None:
    model, prompt = tiny.decoder("llama"), tiny.prompts(1, 20)[0]
    stack = Stack([make("eagle", **{"confidence": 0.0, **knobs})])
    events = list(generate(model, prompt, 30, stack, tools=tiny.tools()))
    assert committed_tokens(events) == committed_tokens(list(generate(model, prompt, 30)))
    assert sum(type(e).__name__ == "Drafted" for e in events) > 5


def test_states_follow_what_is_committed() -> None:
    model, prompt = tiny.decoder("llama"), tiny.prompts(1, 12)[0]
    session = Session(model, taps=(2, 4))
    for _ in session.prefill(prompt):
        pass
    assert session.states().shape == (len(prompt) - 1, 2, model.shape.width)
    session.forward(Draft((3, 4, 5), (-1, -1, 1), (None,) * 3))
    session.commit((1, 2), 7, Draft((3, 4, 5), (-1, -1, 1), (None,) * 3))
    got = session.states()
    want = states_of(model, [*prompt, 4, 5], (2, 4))[-3:]
    assert torch.allclose(got, want, atol=1e-4)


def test_texts_written_together_are_those_written_alone() -> None:
    model = tiny.decoder("llama")
    prompts = tiny.prompts(5, 14, seed=2)
    want = [committed_tokens(list(generate(model, p, 9 + i))) for i, p in enumerate(prompts)]
    texts = [Text(list(p), len(p), 9 + i, tag=i) for i, p in enumerate(prompts)]
    layers = (2, 4)
    got = {t.tag: t for t in generate_batch(model, texts, together=2, taps=layers)}
    assert [got[i].answer for i in range(5)] == want
    assert torch.allclose(got[3].seen, states_of(model, got[3].tokens[:-1], layers), atol=1e-3)


def test_taps_keep_copies() -> None:
    """A pass of a few rows changes its states in place; what has been tapped stays as it was."""
    session = Session(tiny.decoder("llama"), taps=(1, 2, 4))
    session.begin([1])
    result = session.forward()
    assert result.states is not None
    one, two, last = result.states[0]
    assert not torch.equal(one, two)
    assert not torch.equal(two, last)


class Words:
    """A tokenizer of tiny vocabularies: one letter, one token."""

    chat_template = None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) % 95 + 1 for c in text][:40]}

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "Some text of a good length stands here. And another sentence follows it."


@pytest.mark.parametrize("kind", [eagle, heads])
def test_a_part_learns_and_goes_on_where_it_stopped(tmp_path: Path, kind: object) -> None:
    from llmlab.models.loading.loaded import Loaded

    model = tiny.decoder("llama")
    loaded = Loaded("tiny", model, Words(), "dense-fp32", frozenset(), "test")
    corpus.write(loaded, tmp_path, 6000, (2, 4), lambda *_: None, together=8)
    corpus.write(loaded, tmp_path, 6000, (2, 4), lambda *_: None, together=8)  # there is enough: nothing is added
    assert len(corpus.shards(tmp_path)) == 1
    plan = Plan(steps=40, batch=1024, rate=3e-3, warmup=2)
    first = kind.run(model, tmp_path, tmp_path, Plan(25, 1024, 3e-3, 2), lambda *_: None, 1e9, 97)
    tensors, card = kind.run(model, tmp_path, tmp_path, plan, lambda *_: None, 1e9, 97)
    assert card["steps"] == 40
    assert card["curve"][0] == first[1]["curve"][0]
    assert card["curve"][-1]["agree 1"] > card["curve"][0]["agree 1"]
    name = kind.__name__.rsplit(".", 1)[-1]
    store.save(tmp_path / f"{name}-tiny.safetensors", name, model, tensors, card)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "own", lambda: tmp_path)
        assert store.find(name, model) is not None
        assert store.find(name, tiny.decoder("llama", "int4")) is not None
        assert store.find(name, tiny.decoder("llama", seed=3)) is None
        assert store.find("exits", model) is None
        assert set(store.load(name, model, "")) == set(tensors)


def test_a_part_that_is_missing_is_refused() -> None:
    with pytest.raises(Refused, match="EAGLE needs a part trained"):
        make("eagle").prepare(tiny.decoder("qwen3").private_copy(), Tools())


def test_a_file_that_is_no_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "eagle-bad.safetensors").write_bytes(b"12345678 not a part")
    with pytest.raises(Refused, match="no trained part"):
        store.card_of(tmp_path / "eagle-bad.safetensors")


def test_the_command_refuses_what_it_cannot_train(capsys: pytest.CaptureFixture[str]) -> None:
    from llmlab.__main__ import main

    assert main(["train", "nothing"]) == 2
    assert "No part is called 'nothing'" in capsys.readouterr().err
    assert main(["train", "heads", "--tokens", "many"]) == 2


def test_the_mean_of_two_trainings(tmp_path: Path) -> None:
    from llmlab.training import averaged

    model = tiny.decoder("llama")
    one, two, other, out = (tmp_path / f"{n}.safetensors" for n in ("one", "two", "other", "out"))
    for path, value in ((one, 1.0), (two, 4.0)):
        tensors = {"W": torch.full((3,), value).bfloat16(), "shortlist": torch.tensor([int(value)])}
        store.save(path, "heads", model, tensors, {"steps": int(value), "held_out": {"agree": value}})
    store.save(other, "eagle", model, {"W": torch.ones(3).bfloat16(), "shortlist": torch.tensor([1])}, {})
    told = averaged.average(one, two, out)
    with safe_open(out, "pt") as f:
        assert f.get_tensor("W").tolist() == [2.5] * 3
        assert f.get_tensor("shortlist").tolist() == [1]
    card = store.card_of(out)
    assert told["averaged"] == card["averaged"]
    assert [c["steps"] for c in card["averaged"]] == [1, 4]
    assert "held_out" not in card, "neither's figures are those of the mean"
    with pytest.raises(Refused, match="not of one kind and model"):
        averaged.average(one, other, out)

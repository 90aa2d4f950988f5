"""Models of one tokenizer whose embeddings are padded to different sizes draft for each other, and change nothing."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from llmlab.errors import Refused
from llmlab.lab.experiment import Lab
from llmlab.lab.settings import Settings
from llmlab.lab.vocabularies import first_difference, require_same
from llmlab.models.building import build
from llmlab.models.decoder import Decoder
from llmlab.models.loading.sources.folder import config_of
from llmlab.models.wrapped.loading import build as build_wrapped
from llmlab.runtime import generate
from llmlab.runtime.events import Committed, Drafted
from llmlab.runtime.generate import committed_tokens
from llmlab.runtime.sampling import Sampler
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make
from llmlab.runtime.tools import Tools
from llmlab.serving.scheduler import Request
from llmlab.serving.server import Server
from llmlab.studies.idle_speculation import Speculating
from llmlab.techniques.drafting.draft_session import over_vocabulary
from tests import made, tiny
from tests.laws import laws

SHAPES = {"chain": {}, "tree": {"tree": "2x2x1"}, "adapting": {"adapt": True}}


@cache
def model(vocab: int, seed: int = 0, context: int = 256) -> Decoder:
    """The same model whatever `vocab` is: the tokens below 97 of those with more are those of the model with 97."""
    config = LlamaConfig(**{**tiny.SIZES, "max_position_embeddings": context}, tie_word_embeddings=False)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(plain.named_parameters()):
            noise = torch.randn(p.shape, generator=dice)
            p.copy_(noise if "embed" in name else noise * 1.5 / p.shape[-1] ** 0.5 if p.dim() > 1 else 1 + 0.1 * noise)
    state = tiny.StateDict(plain)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        held = state._tensors[name]
        more = torch.randn(max(0, vocab - len(held)), held.shape[1], generator=dice) * held.std()
        state._tensors[name] = torch.cat([held[:vocab], more])
    state.config.vocab_size = vocab
    return build(state, "dense-fp32")


def beside(helper: Any) -> Tools:
    return Tools(None, lambda name: helper, tiny.text(50))


def prompts(target: int) -> list[list[int]]:
    return [[t % target for t in p] for p in [*tiny.prompts(2, 23), [target - 1], [1, target - 1, 2, target - 1]]]


# Text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("target", "draft"), [(97, 96), (97, 60), (97, 128), (60, 97), (512, 97), (512, 128)])
def test_greedy_text_stays_the_same(target: int, draft: int, shape: str) -> None:
    stack = Stack([make("draft-model", confidence=0.0, **SHAPES[shape])])
    for seed in (0, 1):  # the same model in another width, and a stranger
        for prompt in prompts(target):
            want = laws.text(model(target), prompt, 20)
            got = laws.text(model(target), prompt, 20, stack, tools=beside(model(draft, seed)))
            assert got == want


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("target", "draft"), [(97, 128), (97, 512), (97, 96), (60, 97)])
@pytest.mark.parametrize("sampler", [Sampler(), Sampler(0.9), Sampler(1.0, top_k=3), Sampler(1.0, top_p=0.7)], ids=repr)
def test_guesses_are_accepted_across_widths(target: int, draft: int, shape: str, sampler: Sampler) -> None:
    """Without this the law above could hold because nothing is ever drafted."""
    stack = Stack([make("draft-model", confidence=0.0, **SHAPES[shape])])
    accepted = 0
    for prompt in prompts(target):
        events = laws.run(model(target), prompt, 20, stack, sampler=sampler, tools=beside(model(draft)))
        assert all(t < target for e in events if isinstance(e, Drafted) for t in e.tokens)
        accepted += sum(len(e.path) for e in events if isinstance(e, Committed))
    assert accepted > 15


def test_a_target_that_writes_what_the_draft_model_lacks() -> None:
    """Right behind such a token nothing is drafted, and afterwards drafting goes on."""
    target, stack, seen = model(512), Stack([make("draft-model", confidence=0.0)]), set()
    for prompt in [*prompts(512), *prompts(97)]:
        tokens = list(prompt)
        for e in laws.run(target, prompt, 30, stack, tools=beside(model(97))):
            if isinstance(e, Drafted):
                seen.add((tokens[-1] >= 97, len(e.tokens) > 0))
                assert tokens[-1] < 97 or not e.tokens
            if isinstance(e, Committed):
                tokens += e.tokens
    assert {(False, True)} <= seen
    assert any(t >= 97 for t in tokens)


def test_a_draft_model_of_a_shorter_context_stops_where_that_ends() -> None:
    short, stack = model(128, 0, 32), Stack([make("draft-model", confidence=0.0, length=6)])
    for n in (4, 27, 31, 32, 33, 60):
        prompt = tiny.text(n)
        want = laws.text(model(97), prompt, 20)
        assert laws.text(model(97), prompt, 20, stack, tools=beside(short)) == want


def test_a_wrapped_draft_model_of_another_width(tmp_path: Path) -> None:
    """Its positions are a table: past the end of it there is nothing to look up."""
    reference = tiny.reference("gpt2")
    reference.save_pretrained(tmp_path)
    helper, stack = (
        build_wrapped(str(tmp_path), config_of(tmp_path, "tiny"), "dense-fp32", "cpu"),
        Stack([make("draft-model", confidence=0.0)]),
    )
    for target in (60, 512):
        for prompt in [*prompts(target), [t % target for t in tiny.text(250)]]:
            want = laws.text(model(target, 0, 512), prompt, 16)
            assert laws.text(model(target, 0, 512), prompt, 16, stack, tools=beside(helper)) == want


@pytest.mark.parametrize(("target", "draft"), [(97, 512), (512, 97)])
def test_many_requests_at_once(target: int, draft: int) -> None:
    want = [laws.text(model(target), p, 12) for p in prompts(target)]
    served = [Request(p, 12, 2.0 * i) for i, p in enumerate(prompts(target))]
    stack = Stack([make("draft-model", confidence=0.0)])
    list(Server(model(target), 4).serve(served, Speculating("always", 3, 4, 4), stack, beside(model(draft))))
    assert [r.text for r in served] == want


@pytest.mark.parametrize("rule", ["typical", "lenience", "bild", "blockwise-acceptance"])
def test_every_rule_of_acceptance_takes_such_drafts(rule: str) -> None:
    for target, draft in ((97, 512), (512, 97)):
        for sampler in (Sampler(), Sampler(1.0)):
            stack = Stack([make("draft-model", confidence=0.0), laws.sharp(rule)])
            if not stack.refusals(model(target).capabilities):
                tokens = laws.text(model(target), [1, 2, 3], 12, stack, sampler=sampler, tools=beside(model(draft)))
                assert len(tokens) == 12


# The law of sampling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "draft"), [(4, 5), (4, 3), (5, 4), (3, 6)])
@pytest.mark.parametrize("shape", [{"length": 2}, {"length": 1, "tree": "2x1"}], ids=str)
@pytest.mark.parametrize("top_k", [0, 2])
def test_sampled_text_follows_the_models_law(
    monkeypatch: pytest.MonkeyPatch, target: int, draft: int, shape: dict[str, Any], top_k: int
) -> None:
    """Two sampled tokens, in every way the dice can fall, with a draft model that knows more tokens or fewer."""

    def law(stack: Stack) -> laws.Law:
        found: laws.Law = defaultdict(float)

        def act(fate: laws.Fate) -> tuple[int, ...]:
            monkeypatch.setattr(generate, "SeededRandom", lambda seed: fate)
            events = laws.run(
                model(target), [1, 2, 0, 2, 1], 2, stack, sampler=Sampler(1.3, top_k), tools=beside(model(draft, 1))
            )
            return tuple(committed_tokens(events))

        for weight, tokens in laws.outcomes(act):
            found[tokens] += weight
        return found

    want, got = law(Stack()), law(Stack([replace(make("draft-model", confidence=0.0), **shape)]))
    assert sum(got.values()) == pytest.approx(1, abs=1e-5)
    assert max(abs(got[s] - want[s]) for s in {*got, *want}) < 1e-5


def test_what_is_beyond_a_vocabulary_has_no_chance() -> None:
    y = torch.tensor([[1.0, 2.0, 3.0, 9.0]])
    cut, padded = (Sampler(1.0).distribution(over_vocabulary(y, n)) for n in (3, 6))
    assert torch.allclose(cut, torch.softmax(y[:, :3], -1))
    assert torch.allclose(padded[:, :4], torch.softmax(y, -1))
    assert padded[:, 4:].tolist() == [[0, 0]]
    assert over_vocabulary(y, 4) is not None
    assert torch.equal(over_vocabulary(y, 4), y)


# Tokenizers -----------------------------------------------------------------------------------------------------


def test_added_tokens_of_one_side_are_no_difference() -> None:
    plain, more = made.tokenizer(), made.tokenizer()
    assert first_difference(plain, more) is None
    more.add_tokens(["<tool>", "<image>"])
    assert first_difference(plain, more) is None
    assert first_difference(more, plain) is None
    other = made.tokenizer()
    other.add_tokens(["<audio>"])
    assert first_difference(more, other) == (261, "<tool>", "<audio>")
    swapped = made.tokenizer()
    swapped.add_tokens(["<x>", "<y>", "<tool>"])
    assert first_difference(more, swapped) == (261, "<tool>", "<x>")


class Named:
    """A tokenizer of which only the vocabulary is asked."""

    def __init__(self, *tokens: str, added: tuple[str, ...] = ()) -> None:
        self.tokens, self.added = [*tokens, *added], added

    def get_vocab(self) -> dict[str, int]:
        return {t: i for i, t in enumerate(self.tokens)}

    def get_added_vocab(self) -> dict[str, int]:
        return {t: i for t, i in self.get_vocab().items() if t in self.added}


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (Named("a", "b"), Named("a", "c"), "its token 1 is 'c', where the model has 'b'"),
        (Named("a", "b"), Named("a", "b", "c"), "its token 2 is 'c', where the model has none"),
        (Named("a", "b", "c"), Named("a", "b"), "its token 2 is none, where the model has 'c'"),
        (Named("b", "a"), Named("a", "b"), "its token 0 is 'a', where the model has 'b'"),
        (Named("a", "b", added=("<t>",)), Named("a", "b", added=("<u>", "<t>")), "its token 2 is '<u>'"),
    ],
)
def test_the_first_token_that_differs_is_named(one: Named, other: Named, said: str) -> None:
    with pytest.raises(Refused, match=re.escape(said)):
        require_same("The model", one, "other", other)


def test_rows_that_a_converter_named_are_no_difference() -> None:
    assert first_difference(Named("a", "b"), Named("a", "b", "[PAD2]", "[PAD3]")) is None
    assert first_difference(Named("a", "b", added=("<t>",)), Named("a", "b", "<t>", "[PAD3]")) is None


def test_in_the_lab(tmp_path: Path) -> None:
    """Folders whose embeddings and added tokens differ draft for each other; those of another vocabulary are named."""
    target, draft, stranger = tmp_path / "target", tmp_path / "draft", tmp_path / "stranger"
    made.folder(target)
    made.folder(draft, seed=0)
    padded = AutoModelForCausalLM.from_pretrained(draft)
    padded.resize_token_embeddings(made.VOCAB + 64)
    padded.save_pretrained(draft)
    tokenizer = made.tokenizer()
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(draft)
    made.folder(stranger)
    text = (stranger / "tokenizer.json").read_text(encoding="utf-8").replace('"Ġt"', '"Ġa"').replace('"t"', '"a"')
    (stranger / "tokenizer.json").write_text(text, encoding="utf-8")
    lab = Lab()
    for one, two in ((target, draft), (draft, target)):
        plain = Settings(model=str(one), prompt="the boat", chat=False, max_new_tokens=8)
        drafted = replace(plain, stack=Stack([make("draft-model", model=str(two), confidence=0.0)]))
        texts = [committed_tokens(list(lab.run(lab.prepare(s)))) for s in (plain, drafted)]
        assert texts[0] == texts[1]
        list(lab.run(lab.prepare(replace(drafted, temperature=1.0))))
    wrong = Settings(model=str(target), prompt="boat", stack=Stack([make("draft-model", model=str(stranger))]))
    with pytest.raises(Refused, match="its token"):
        list(lab.run(lab.prepare(wrong)))

"""What a stack costs in quality, by hand, and what is measured where a rule of acceptance decides."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from llmlab.errors import Refused
from llmlab.measure import quality, scoring
from llmlab.measure.excerpts import excerpts
from llmlab.measure.statistics import in_blocks
from llmlab.measure.verdict import UNTOUCHED
from llmlab.models.decoder import Decoder
from llmlab.runtime.roles import ForwardPatch
from llmlab.runtime.session import Session
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make, registry
from llmlab.ui.playground.account import quality_table
from tests import tiny
from tests.laws import laws
from tests.laws.laws import fingerprint


def test_agreement_and_divergence_by_hand() -> None:
    """KL of (0.9, 0.1) from (0.5, 0.5) is 0.5 ln (0.5 / 0.9) + 0.5 ln 5, and 0.368 the other way round; the second
    question is answered alike."""
    p = torch.tensor([[0.5, 0.5 - 1e-7], [0.9, 0.1]]).log()
    q = torch.tensor([[0.1, 0.9], [0.9, 0.1]]).log()
    agreement, kl = quality.choices(p, q, [0, 0])
    assert agreement == 0.5
    assert kl == pytest.approx((0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5)) / 2, abs=1e-6)
    assert quality.choices(p, None, [0, 1]) == (0.5, None)
    assert quality.choices(p, None, [0, 0]) == (1.0, None)


def test_perplexity_and_divergence_of_a_text_by_hand() -> None:
    """Tokens 0 and 1 under p: 0.5, 0.1; under q: 0.1, 0.1. √(1 / 0.05) against √(1 / 0.01)."""
    scores = quality.Scores()
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), torch.tensor([[0.1, 0.9], [0.9, 0.1]]).log()
    scores.add(p, q, [0, 1])
    found = quality.figures([scores])
    assert found["perplexity"] == pytest.approx([20**0.5, 10.0])
    assert found["perplexity_ratio"] == pytest.approx(5**0.5)
    assert found["kl"] == pytest.approx((0.5 * math.log(5) + 0.5 * math.log(0.5 / 0.9)) / 2)


def test_first_difference() -> None:
    assert quality.first_difference([1, 2, 3], [1, 2, 3]) is None
    assert quality.first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert quality.first_difference([1, 2, 3], [1, 2]) == 2


def test_a_lossy_rule_of_acceptance_is_judged_on_its_own_text(llama: Decoder) -> None:
    """Its text differs, although the probabilities of a given text are those of the unmodified model."""
    prompt = tiny.prompts(1, 24)[0]
    stack = Stack([make("draft-model", model="llama", confidence=0.0), make("lenience", lenience=0.0)])
    plain = laws.text(llama, prompt, 24, Stack())
    text = laws.text(llama, prompt, 24, stack)
    assert text != plain
    found = quality.compare(llama, llama, stack, prompt, plain, text)
    assert found["kl_mean"] is None
    best = quality.score(llama, Stack(), [*prompt, *text], len(prompt)).argmax(-1).tolist()
    assert found["top1_agreement"] == pytest.approx(sum(a == b for a, b in zip(best, text, strict=True)) / 24)
    assert found["top1_agreement"] < 1
    exact = quality.compare(llama, llama, stack.without("Acceptor"), prompt, plain, plain)
    assert (exact["identical"], exact["top1_agreement"], exact["kl_mean"]) == (True, 1, 0)


# On long texts --------------------------------------------------------------------------------------------------


def tokenizer(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
    """Tokens that know nothing of the text but how long it is."""
    return {"input_ids": tiny.text(len(text) // 3, seed=len(text) % 7)}


def compared(model: Decoder, stack: Stack, own: str | None = None) -> dict[str, Any]:
    changed, prompt = laws.changed(model, stack, tiny.tools()), tiny.prompts(1, 24)[0]
    plain, text = laws.text(model, prompt, 16), laws.text(changed, prompt, 16, stack)
    return quality.compare(model, changed, stack, prompt, plain, text, tokenizer, tiny.tools(), own)


def passes_of(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The widths of a model's passes from now on."""
    widths: list[int] = []
    original = type(model).forward

    def forward(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        if self is model:
            widths.append(len(batch.tokens))
        return original(self, batch, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", forward)
    return widths


def test_perplexity_is_not_shown_under_a_rule_of_acceptance(llama: Decoder) -> None:
    stack = Stack([make("draft-model", model="llama", confidence=0.0), make("lenience", lenience=0.0)])
    found = compared(llama, stack)
    assert found["perplexity_ratio"] is None
    assert (found["kl_mean"], found["withheld"]) == (None, "acceptance")
    assert "rule of acceptance" in quality_table(found, "en")
    assert "接受规则" in quality_table(found, "zh-CN")


def test_quality_is_of_two_thousand_tokens_of_two_kinds_with_errors(llama: Decoder) -> None:
    found = compared(llama, Stack([laws.sharp("magnitude")]))
    assert found["scored_tokens"] >= 2000
    assert set(found["kinds"]) == {"prose", "code"}
    assert sum(kind["tokens"] for kind in found["kinds"].values()) == found["scored_tokens"]
    for kind in found["kinds"].values():
        assert kind["perplexity_ratio"] == pytest.approx(kind["perplexity"][1] / kind["perplexity"][0])
        assert 0 < kind["perplexity_ratio_error"] < 0.5
        assert 0 < kind["kl_error"] < kind["kl"]
    assert found["perplexity_ratio"] == pytest.approx(found["perplexity"][1] / found["perplexity"][0])
    told = quality_table(found, "en")
    assert f"{found['perplexity_ratio']:.3f} ± {found['perplexity_ratio_error']:.3f}" in told
    assert "on code" in told


def test_what_is_scored_comes_after_the_first_eviction(llama: Decoder) -> None:
    """With 224 tokens after 32, a budget of 128 acted on the last hundred alone."""
    policy = make("streaming-llm", budget=64, every=8)
    pieces = excerpts(tokenizer, llama.context, Stack([policy]))
    assert {p.start for p in pieces} == {72}
    assert all(len(p.tokens) <= llama.context for p in pieces)
    assert sum(p.scored for p in pieces) >= 2000
    windowed = excerpts(tokenizer, llama.context, Stack([make("sliding-window", width=40, sinks=0)]))
    assert {p.start for p in windowed} == {40}
    assert {p.start for p in excerpts(tokenizer, llama.context, Stack())} == {32}


def test_a_policy_that_evicted_nothing_leaves_the_run_s_text_untouched(llama: Decoder) -> None:
    """The run is shorter than the budget, the evaluation texts are not."""
    found = compared(llama, Stack([make("streaming-llm", budget=64, every=8)]))
    assert found["identical"]
    assert found["kl_mean"] < UNTOUCHED
    assert found["perplexity_ratio_freedom"] >= 60
    assert found["kl_text"] > 10 * UNTOUCHED


def test_a_budget_that_holds_the_whole_text_has_no_perplexity(llama: Decoder) -> None:
    found = compared(llama, Stack([make("streaming-llm", budget=250, every=8)]))
    assert found["perplexity_ratio"] is None
    assert found["withheld"] == "idle"


def test_one_s_own_text_takes_the_place_of_the_project_s(llama: Decoder) -> None:
    found = compared(llama, Stack([laws.sharp("magnitude")]), own="my own words " * 80)
    assert set(found["kinds"]) == {"own"}
    assert 100 < found["scored_tokens"] < 400
    assert "your text" in quality_table(found, "en")
    with pytest.raises(Refused, match="Give a longer one"):
        compared(llama, Stack([laws.sharp("magnitude")]), own="short")


def test_figures_of_a_text_are_those_of_one_parallel_pass_over_it(llama: Decoder) -> None:
    """The surprise of a token is by what was predicted before it, and KL takes its mean under the unmodified model."""
    stack, own = Stack([laws.sharp("magnitude")]), "my own words " * 80
    changed, prompt = laws.changed(llama, stack, tiny.tools()), tiny.prompts(1, 24)[0]
    plain = laws.text(llama, prompt, 16)
    found = quality.compare(llama, changed, stack, prompt, plain, plain, tokenizer, tiny.tools(), own)
    nats, kls = [], []
    pieces = excerpts(tokenizer, llama.context, stack, own)
    for tokens, start in [(p.tokens, p.start) for p in pieces] + [((*prompt, *plain), len(prompt))]:
        p, q = (
            torch.log_softmax(laws.logits(model, tokens, [len(tokens)]), -1)[start - 1 : -1]
            for model in (llama, changed)
        )
        targets = torch.tensor(tokens[start:])[:, None]
        nats.append(torch.stack([-p.gather(1, targets)[:, 0], -q.gather(1, targets)[:, 0]]))
        kls.append((p.exp() * (p - q)).sum(-1))
    text = torch.cat(nats[:-1], 1)
    assert found["perplexity"] == pytest.approx(text.mean(1).exp().tolist(), rel=1e-3)
    assert found["perplexity_ratio"] == pytest.approx(float((text[1] - text[0]).mean().exp()), rel=1e-3)
    assert found["kl_text"] == pytest.approx(float(torch.cat(kls[:-1]).mean()), rel=1e-3)
    assert found["kl_mean"] == pytest.approx(float(kls[-1].mean()), rel=1e-3)


def test_nothing_is_computed_where_nothing_changes_a_probability(
    llama: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tiny.prompts(1, 24)[0]
    text = laws.text(llama, prompt, 16)
    widths = passes_of(llama, monkeypatch)
    found = quality.compare(llama, llama, Stack([make("prompt-lookup")]), prompt, text, text, tokenizer)
    assert widths == []
    assert (found["kl_mean"], found["top1_agreement"], found["perplexity_ratio"]) == (0, 1, 1)
    assert found["withheld"] == "lossless"
    assert "Nothing to measure" in quality_table(found, "en")


def test_the_unmodified_model_reads_a_text_once_and_in_wide_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, stack = tiny.decoder("llama").private_copy(), Stack([make("streaming-llm", budget=32, every=8)])
    first, widths = compared(model, stack), passes_of(model, monkeypatch)
    again = compared(model, stack)
    assert again["perplexity_ratio"] == pytest.approx(first["perplexity_ratio"], abs=1e-4)
    assert again["kl_text"] == pytest.approx(first["kl_text"], abs=1e-4)
    scored = again["scored_tokens"]
    assert sum(widths) < 1.6 * scored, "the second comparison pays for the stack alone"
    assert len(widths) < scored / 4, "evictions are crossed by no pass, and between them passes are wide"


LOSSY = [id for id in laws.lossy_ids() if registry()[id].role != "Acceptor"]


@pytest.mark.parametrize("id", LOSSY)
@pytest.mark.parametrize("weights", ["dense-fp32", "int8"])
def test_wide_passes_are_equal_to_step_by_step(id: str, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stack, model = Stack([laws.sharp(id)]), tiny.decoder("llama", weights)
    model, tokens = laws.changed(model, stack, tiny.tools()), tiny.text(120)
    wide = quality.score(model, stack, tokens, 20, tiny.tools())
    monkeypatch.setattr(scoring, "WIDE", 1)
    monkeypatch.setattr(scoring, "NARROW", 1)
    single = quality.score(model, stack, tokens, 20, tiny.tools())
    assert torch.allclose(wide, single, atol=2e-3), float((wide - single).abs().max())


@dataclass(frozen=True)
class Shifted(ForwardPatch):
    """Adds to what the final norm gives, on the model itself."""

    covers = ("test",)

    @contextmanager
    def installed(self, session: Session) -> Iterator[None]:
        handle = session.model.norm.register_forward_hook(lambda module, given, out: out.roll(1, -1))
        try:
            yield
        finally:
            handle.remove()


@pytest.mark.parametrize("id", ["patch", *LOSSY])
def test_an_interrupted_measurement_leaves_nothing_on_the_model(id: str) -> None:
    """Another run goes between its passes: it writes its own text, and the measurement comes to what it would have."""
    model = tiny.decoder("llama").private_copy()
    stack = Stack([Shifted() if id == "patch" else laws.sharp(id)])
    changed, prompt = laws.changed(model, stack, tiny.tools()), tiny.prompts(1, 24)[0]
    plain, text = laws.text(model, prompt, 16), laws.text(changed, prompt, 16, stack)
    other, before = laws.text(changed, tiny.prompts(1, 20, seed=3)[0], 8), fingerprint(changed)
    sides = quality.Sides(model, changed, stack, tiny.tools())
    whole = quality.compare(model, changed, stack, prompt, plain, text, None, tiny.tools())
    measuring = quality.measured(sides, prompt, plain, text)
    slices = 0
    while True:
        try:
            next(measuring)
        except StopIteration as end:
            found = end.value
            break
        slices += 1
        assert laws.text(model, prompt, 16) == plain
        assert laws.text(changed, tiny.prompts(1, 20, seed=3)[0], 8) == other
        assert fingerprint(changed) == before
    assert slices >= 2
    if id == "patch":
        assert found["kl_mean"] > 0.1
    assert found["kl_mean"] == pytest.approx(whole["kl_mean"], abs=1e-5)
    assert found["top1_agreement"] == whole["top1_agreement"]


def test_neighbours_that_resemble_each_other_count_less() -> None:
    """Blocks of two by hand: 1 1 5 5 has block sums of deviations −4 and 4; √32 / 4 · √2 = 2."""
    assert in_blocks([torch.tensor([1.0, 1, 5, 5])], 2).error == pytest.approx(2.0)
    assert in_blocks([torch.tensor([1.0, 1]), torch.tensor([5.0, 5])], 32).error == pytest.approx(2.0)
    assert in_blocks([torch.zeros(128)], 32).freedom == 3
    runs = torch.randn(64, generator=torch.Generator().manual_seed(0)).repeat_interleave(32)
    alone, together = in_blocks([runs], 1).error, in_blocks([runs], 32).error
    assert together > 4 * alone
    assert together == pytest.approx(float(runs[::32].std()) / 8, rel=0.01)
    assert in_blocks([torch.tensor([1.0, 2])], 32).error == math.inf

"""Our decoder against transformers, family by family, in float32: transformers is the referee."""

from __future__ import annotations

import pytest
import torch

from llmlab.errors import Refused
from llmlab.models.batch import Batch, Span
from llmlab.models.building import build
from llmlab.models.decoder import Decoder
from llmlab.models.families import ours, shape_of
from llmlab.models.formats.quantized_groups import QuantizedGroups
from llmlab.models.rope import interleave
from llmlab.runtime import session
from tests import tiny
from tests.laws import laws

TOKENS = tiny.prompts(1, 60)[0]
CLOSE = 1e-4
READINGS = {
    "at once": [len(TOKENS)],
    "step by step": [1] * len(TOKENS),
    "in pieces": [7, 1, 2, 20, 3, 16, 17],
    "whole, then steps": [40] + [1] * (len(TOKENS) - 40),
}


def generated(referee, prompt: list[int], limit: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = referee.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=limit, min_new_tokens=limit
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", tiny.OURS)
@pytest.mark.parametrize("pieces", READINGS.values(), ids=READINGS)
def test_logits_equal_transformers(family: str, pieces: list[int]) -> None:
    assert laws.reference(tiny.decoder(family), tiny.reference(family), TOKENS, pieces) < CLOSE


@pytest.mark.parametrize("family", tiny.OURS)
def test_text_equals_transformers(family: str) -> None:
    for prompt in tiny.prompts(6, 30, seed=3):
        assert laws.text(tiny.decoder(family), prompt, 40) == generated(tiny.reference(family), prompt, 40)


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("piece", [1, 3, 512])
def test_the_size_of_the_pieces_does_not_matter(monkeypatch: pytest.MonkeyPatch, family: str, piece: int) -> None:
    prompt = tiny.prompts(1, 40, seed=4)[0]
    want = generated(tiny.reference(family), prompt, 20)
    monkeypatch.setattr(session, "PIECE", piece)
    assert laws.text(tiny.decoder(family), prompt, 20) == want


@pytest.mark.parametrize("family", tiny.OURS)
def test_a_ragged_batch_equals_its_sequences_one_by_one(family: str) -> None:
    """Three sequences of different lengths, then one token each, then a few: as if each were alone."""
    model = tiny.decoder(family)
    texts = [tiny.text(n, seed=n) for n in (37, 5, 20)]
    rounds = [(25, 2, 9), (1, 1, 1), (11, 2, 10)]
    together, alone = [model.memory() for _ in texts], [model.memory() for _ in texts]
    at = [0, 0, 0]
    for sizes in rounds:
        spans, tokens, positions, want = [], [], [], []
        for i, n in enumerate(sizes):
            part, place = texts[i][at[i] : at[i] + n], torch.arange(at[i], at[i] + n)
            spans.append(Span(len(tokens), len(tokens) + n, together[i]))
            tokens += part
            positions.append(place)
            with torch.inference_mode():
                want.append(model.forward(Batch(torch.tensor(part), place, [Span(0, n, alone[i])])).logits)
            at[i] += n
        with torch.inference_mode():
            got = model.forward(Batch(torch.tensor(tokens), torch.cat(positions), spans)).logits
        assert torch.allclose(got, torch.cat(want), atol=1e-3, rtol=1e-4)
        assert [m.rows() for m in together] == [m.rows() for m in alone]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_attention_that_is_watched_is_the_same(family: str) -> None:
    """With a watcher the weights are computed in the open, in chunks; they sum to one and change nothing."""
    model, tokens = tiny.decoder(family), tiny.text(200)
    seen: list[tuple[int, tuple[int, ...]]] = []

    def watch(layer: int, weights: torch.Tensor) -> None:
        seen.append((layer, tuple(weights.shape)))
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)

    with torch.inference_mode():
        plain = model.forward(Batch(torch.tensor(tokens), torch.arange(200), [Span(0, 200, model.memory())])).logits
        span = Span(0, 200, model.memory(), watch=watch)
        watched = model.forward(Batch(torch.tensor(tokens), torch.arange(200), [span])).logits
    assert torch.allclose(plain, watched, atol=1e-3, rtol=1e-4)
    assert seen[:2] == [(0, (4, 128, 128)), (0, (4, 72, 200))]


def test_no_logits_where_none_are_wanted(llama: Decoder) -> None:
    def read(last: int | None) -> torch.Tensor:
        memory = llama.memory()
        with torch.inference_mode():
            out = llama.forward(
                Batch(torch.tensor(TOKENS), torch.arange(len(TOKENS)), [Span(0, len(TOKENS), memory)]), None, last
            ).logits
        assert memory.rows() == [len(TOKENS)] * 4
        return out

    whole = read(None)
    assert read(0).shape == (0, tiny.VOCAB)
    assert torch.allclose(read(3), whole[-3:], atol=1e-4)


def test_interleaving() -> None:
    assert interleave(8, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_shapes() -> None:
    assert shape_of(tiny.reference("mistral").config).window == (tiny.WINDOW,) * 4
    assert shape_of(tiny.reference("qwen2-window").config).window == (None, None, tiny.WINDOW, tiny.WINDOW)
    assert shape_of(tiny.reference("qwen2").config).window == (None,) * 4
    assert shape_of(tiny.reference("qwen3").config).head_size == 32


@pytest.mark.parametrize("family", tiny.WRAPPED)
def test_other_architectures_are_not_ours(family: str) -> None:
    assert not ours(tiny.reference(family).config)
    with pytest.raises(Refused, match="is not one that our decoder runs"):
        build(tiny.StateDict(tiny.reference(family)), "dense-fp32")


class Damaged(tiny.StateDict):
    def get(self, name: str) -> torch.Tensor:
        value = super().get(name)
        return value[:, :-1] if name.endswith("layers.2.mlp.down_proj.weight") else value


def test_a_misshapen_tensor_is_refused_by_name() -> None:
    with pytest.raises(Refused, match=r"layers\.2\.mlp\.down_proj\.weight has the shape \(64, 95\)"):
        build(Damaged(tiny.reference("llama")), "dense-fp32")


@pytest.mark.parametrize("weights", ["int3", "", "dense"])
def test_an_unknown_format_is_refused(weights: str) -> None:
    with pytest.raises(Refused, match="weight format"):
        build(tiny.StateDict(tiny.reference("llama")), weights)


class Coded(tiny.StateDict):
    """A checkpoint that keeps its matrices as 4-bit codes, as a GGUF file does."""

    def get(self, name: str) -> torch.Tensor | QuantizedGroups:
        value = super().get(name)
        return QuantizedGroups.of(value) if value.dim() == 2 else value


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_checkpoint_of_codes_is_the_checkpoint_of_their_values(family: str) -> None:
    """Rows are reordered and matrices joined in coded form; nothing may be lost on the way."""
    coded = Coded(tiny.reference(family))
    plain = tiny.StateDict(tiny.reference(family))
    for name in plain.names():
        value = coded.get(name)
        plain._tensors[name] = value.dense() if isinstance(value, QuantizedGroups) else value
    a, b = build(coded, "dense-fp32"), build(plain, "dense-fp32")
    assert torch.equal(laws.logits(a, TOKENS, [len(TOKENS)]), laws.logits(b, TOKENS, [len(TOKENS)]))
    kept = build(coded, "int4").layers[0].linears()["qkv"]
    close = build(plain, "dense-fp32").layers[0].linears()["qkv"].dense()
    assert (kept.dense() - close).abs().max() < 0.02 * close.abs().max()


@pytest.mark.parametrize("weights", ["dense-bf16", "int8", "int4", "nf4"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_formats_stay_near_the_model(family: str, weights: str) -> None:
    """Low precision is not exact, and random weights magnify it; it must still be near. Strangers come to 0.0."""
    want = laws.reference_logits(tiny.reference(family), TOKENS)
    got = laws.logits(tiny.decoder(family, weights), TOKENS, [len(TOKENS)])
    similar = float(torch.cosine_similarity(want, got, -1).mean())
    assert similar > {"dense-bf16": 0.999, "int8": 0.995}.get(weights, 0.75)

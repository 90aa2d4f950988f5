"""Tokenizers out of GGUF files: the tokens of llama.cpp for every kind that it knows, or a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmlab.errors import Refused
from llmlab.models.loading.gguf.header import read_metadata
from llmlab.models.loading.gguf.pre_tokenizers import PRE_TOKENIZERS
from llmlab.models.loading.gguf.tokenizer import gguf_tokenizer
from llmlab.models.loading.sources.found import Found
from llmlab.models.loading.tokens import tokenizers as loading
from llmlab.models.loading.tokens.tokenizers import read_tokenizer
from tests.models.tokens.vocabularies import HERE, RAW, VARIANTS, kind_of, write

ASKED: dict[str, Any] = json.loads((HERE / "llama_cpp.json").read_text(encoding="utf-8"))
CASED = {"ÉCOLE École", "नमस्ते दुनिया", "e\u0301"}
# Where llama.cpp cuts otherwise than the tokenizers that the models came with. Its expressions have no \p{Lu} and no
# \p{M}, white space beyond ASCII is a vertical tab to them, and it has no merges of line ends.
OWN_WAY = {
    **dict.fromkeys(["tekken", "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], CASED),
    "granite-embed-multi-97m": {"ÉCOLE École"},
    "kimi-k2": CASED - {"ÉCOLE École"},
    **{n: {"x\u3000y"} for n in ("deepseek-llm", "deepseek-coder")},
    **{n: {"\n" * 7, "x\n\n\n\ny"} for n in ("gemma4", "granite-embed-multi-311m")},
}


def of(folder: Path, name: str, **changes: Any) -> Any:
    values = {**VARIANTS.get(name, {"pre": name}), **changes}
    return gguf_tokenizer(write(folder / "a.gguf", kind_of(name), **values))


@pytest.mark.parametrize("name", ASKED["of"])
def test_tokens_are_those_of_llama_cpp(tmp_path: Path, name: str) -> None:
    tokenizer, answers = of(tmp_path, name), ASKED["answers"][ASKED["of"][name]]
    for text, want in zip(ASKED["texts"], answers, strict=True):
        if text not in OWN_WAY.get(name, ()):
            assert tokenizer(text)["input_ids"] == want, text


def test_every_name_that_llama_cpp_knows_was_asked_for() -> None:
    assert set(PRE_TOKENIZERS) == set(ASKED["of"]) - set(VARIANTS)
    assert {n for n, p in PRE_TOKENIZERS.items() if p.raw} == set(RAW)


def test_the_ways_to_cut_differ() -> None:
    """The texts tell the rules apart: none of llama.cpp's answers is that of all."""
    assert len(ASKED["answers"]) > 30


@pytest.mark.parametrize("name", ["smollm", "gemma4", *VARIANTS])
def test_what_the_cache_keeps_is_what_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "a.gguf", kind_of(name), **VARIANTS.get(name, {"pre": name}))
    found = Found("a", "a", "gguf", path)
    first = read_tokenizer(found)
    monkeypatch.setattr(loading.gguf_tokenizer, "gguf_tokenizer", None)
    kept = read_tokenizer(found)
    for text in ASKED["texts"]:
        ids = first(text)["input_ids"]
        assert kept(text)["input_ids"] == ids
        assert kept.decode(ids) == first.decode(ids)
    assert kept.special_tokens_map == first.special_tokens_map


def test_a_conversion_by_other_rules_is_not_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = loading._key(write(tmp_path / "a.gguf", "gpt2", pre="smollm"))
    (tmp_path / "rules.py").write_text("other rules")
    monkeypatch.setattr(loading.pre_tokenizers, "__file__", str(tmp_path / "rules.py"))
    assert loading._key(tmp_path / "a.gguf") != before


@pytest.mark.parametrize("step", ["tokenizer.json", "chat_template.jinja"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_half_a_conversion_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache"))
    found = Found("a", "a", "gguf", write(tmp_path / "a.gguf", "gpt2", pre="smollm"))
    original = PreTrainedTokenizerFast.save_pretrained

    def cut_short(self: Any, folder: str, **more: Any) -> None:
        original(self, folder, **more)
        (Path(folder) / step).unlink(missing_ok=True)
        raise error

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", cut_short)
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            read_tokenizer(found)
    else:
        assert read_tokenizer(found)("a b")["input_ids"], "a full cache costs time, not the run"
    assert list((tmp_path / "cache" / "tokenizers").iterdir()) == []
    monkeypatch.undo()


# Kinds that are refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["rwkv", "plamo2", "hybriddna", "whitespace", "none", "no_vocab", "test", "new"])
def test_an_unknown_kind_is_refused_by_name(tmp_path: Path, model: str) -> None:
    with pytest.raises(Refused, match=f"tokenizer of the kind '{model}'"):
        gguf_tokenizer(write(tmp_path / "a.gguf", "gpt2", model=model))


@pytest.mark.parametrize("pre", ["whitespace", "smollm9", "Qwen2"])
def test_an_unknown_rule_is_refused_by_name(tmp_path: Path, pre: str) -> None:
    found = Found("a", "a", "gguf", write(tmp_path / "a.gguf", "gpt2", pre=pre))
    with pytest.raises(Refused, match=f"by the rule '{pre}'"):
        read_tokenizer(found)


def test_a_file_without_a_rule_is_cut_by_the_default_one(tmp_path: Path) -> None:
    bare, named = (gguf_tokenizer(write(tmp_path / "a.gguf", "gpt2", **v)) for v in ({}, {"pre": "default"}))
    for text in ASKED["texts"]:
        assert bare(text)["input_ids"] == named(text)["input_ids"]


@pytest.mark.parametrize("at", [8, 30, 400, 5000])
def test_a_file_cut_short_is_refused(tmp_path: Path, at: int) -> None:
    path = write(tmp_path / "a.gguf", "gpt2", pre="smollm")
    path.write_bytes(path.read_bytes()[:at])
    with pytest.raises(Refused, match="damaged or cut short"):
        gguf_tokenizer(path)


def test_the_metadata_is_what_the_gguf_package_reads(tmp_path: Path) -> None:
    import gguf

    path = write(tmp_path / "a.gguf", "llama", add_space_prefix=False)
    ours, theirs = read_metadata(path), gguf.GGUFReader(path)
    for name, field in theirs.fields.items():
        if not name.startswith("GGUF."):
            assert ours[name] == field.contents(), name


# What tokens are -----------------------------------------------------------------------------------------------


def test_special_tokens_are_one_token_wherever_they_are(tmp_path: Path) -> None:
    for name in ("smollm", "gemma4", "llama", "t5", "bert"):
        tokenizer = of(tmp_path, name)
        vocab = tokenizer.get_vocab()
        ids = tokenizer("Hi<|im_start|>a<tool>b<|im_end|>", add_special_tokens=False)["input_ids"]
        assert {vocab[t] for t in ("<|im_start|>", "<tool>", "<|im_end|>")} <= set(ids), name
        assert vocab["<|im_start|>"] in tokenizer.all_special_ids or "<|im_start|>" in tokenizer.get_added_vocab()


def test_a_token_that_is_not_in_use_is_not_found_in_text(tmp_path: Path) -> None:
    tokenizer = of(tmp_path, "llama")
    unused = tokenizer.get_vocab()["<unused0>"]
    assert unused not in tokenizer("a <unused0> b")["input_ids"]
    assert tokenizer.decode([unused]) == "<unused0>"


@pytest.mark.parametrize("name", ["llama", "llama without a space before", "gemma4"])
def test_a_leading_space_keeps_its_mark(tmp_path: Path, name: str) -> None:
    tokenizer = of(tmp_path, name)
    seen = set()
    for text in ("a", " a", "  a", "   a b ", "\n a", "a\t b  ", "é世 ☃"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        seen.add(tuple(ids))
        assert tokenizer.decode(ids) == text
    assert len(seen) == 7


@pytest.mark.parametrize("name", ["smollm", "qwen2", "llama-bpe", "superbpe", "tekken", "deepseek-v3"])
def test_bytes_come_back_as_they_were(tmp_path: Path, name: str) -> None:
    tokenizer = of(tmp_path, name)
    for text in ASKED["texts"]:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.model
def test_the_default_model_splits_digits_off_before_bytes() -> None:
    """The tokens that SmolLM2's own tokenizer gives, as published with the model."""
    from llmlab.models.loading.sources import locate

    tokenizer = read_tokenizer(locate.fetch(locate.find("smollm2-135m")))
    want = {
        "Steps:\n\n1. Mix": [21831, 42, 1116, 33, 30, 18212],
        "Steps:\n\nA. Mix": [21831, 42, 198, 198, 49, 30, 18212],
        "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
        "  multiple   spaces": [216, 2701, 256, 5600],
    }
    assert {text: tokenizer(text)["input_ids"] for text in want} == want

"""Streamed text is the decoded text, whatever the tokenizer does to text it has shown, at a bounded cost a token."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from llmlab.lab.detokenizer import MOST, IncrementalDetokenizer, with_text
from llmlab.models.loading.gguf.tokenizer import gguf_tokenizer
from llmlab.runtime.events import Committed, Drafted, Event, Finished
from tests.models.tokens.vocabularies import write

PIECES = [
    *"abcdensmtvr.,!?'",
    " ",
    "n't",
    " n't",
    "'s",
    " 's",
    "'m",
    "'ve",
    "'re",
    " '",
    "' ",
    " ' ",
    " .",
    " ,",
    "  ",
    "é",
]
WORDS = [
    "do",
    "don",
    "n't",
    "'s",
    "'",
    "'m",
    "'ve",
    "'re",
    ".",
    ",",
    "!",
    "?",
    "it",
    "n",
    "m",
    "##s",
    "##ing",
    "世",
    "t",
]
BYTES = [f"<0x{b:02X}>" for b in range(256)]


def wrapped(made: Tokenizer, **more: Any) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=made, **more)


def with_decoder(tokens: list[str], decoder: Any, tidy: bool = False, **more: Any) -> Any:
    """A vocabulary of these tokens; how it would cut text does not matter here."""
    made = Tokenizer(models.WordLevel({t: i for i, t in enumerate(dict.fromkeys(["[UNK]", *tokens]))}, "[UNK]"))
    made.decoder = decoder
    made.add_special_tokens(["<end>"])
    return wrapped(made, clean_up_tokenization_spaces=tidy, **more)


def byte_level(tidy: bool = False) -> Any:
    """Bytes, and tokens of several characters, of halves of them and of a character with half of the next."""
    letters = {b: c for b, c in zip(range(256), _letters(), strict=True)}

    def as_token(raw: bytes) -> str:
        return "".join(letters[b] for b in raw)

    emoji, word = "😀".encode(), "日本".encode()
    several = [word, word[:4], emoji[:2], emoji[2:], emoji + emoji[:1], *(p.encode() for p in PIECES)]
    tokens = dict.fromkeys([*letters.values(), *map(as_token, several)])
    made = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, []))
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|end|>"])
    forced = {"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": tidy}
    return wrapped(made, clean_up_tokenization_spaces=tidy, **forced)


def _letters() -> list[str]:
    """The character that stands for each byte (GPT-2's bytes_to_unicode)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def from_gguf(kind: str, **changes: Any) -> Any:
    with TemporaryDirectory() as folder:
        return gguf_tokenizer(write(Path(folder) / "a.gguf", kind, **changes))


def fallback(*last: Any) -> Any:
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last])


MARKED = [p.replace(" ", "▁") for p in PIECES]
KINDS: dict[str, Callable[[], Any]] = {
    "bytes": byte_level,
    "bytes, tidied": lambda: byte_level(tidy=True),
    "SentencePiece": lambda: from_gguf("llama"),
    "SentencePiece without a space before": lambda: from_gguf("llama", add_space_prefix=False),
    "SentencePiece, tidied": lambda: with_decoder([*BYTES, *MARKED], fallback(decoders.Strip(" ", 1, 0)), tidy=True),
    "unigram": lambda: from_gguf("t5"),
    "unigram, tidied": lambda: with_decoder(MARKED, decoders.Metaspace(), tidy=True),
    "BERT": lambda: from_gguf("bert"),
    "BERT, tidied": lambda: with_decoder(WORDS, decoders.WordPiece(cleanup=False), tidy=True),
    "BERT, tidied twice": lambda: with_decoder(WORDS, decoders.WordPiece(cleanup=True), tidy=True),
    "BERT, tidied by its decoder": lambda: with_decoder(WORDS, decoders.WordPiece(cleanup=True)),
    "words": lambda: with_decoder(WORDS, None),
    "words, tidied": lambda: with_decoder(WORDS, None, tidy=True),
    "ends of words": lambda: with_decoder([*"ab.,'", "a</w>", "n't</w>", "'s</w>", ".</w>"], decoders.BPEDecoder()),
    "replaced after joining": lambda: with_decoder(MARKED, fallback(decoders.Replace("abc", "#"))),
}
KINDS |= {"raw pieces": lambda: from_gguf("raw", pre="gemma4")}


@cache
def made(kind: str) -> Any:
    return KINDS[kind]()


@cache
def reachable(kind: str) -> list[int]:
    return sorted(made(kind).get_vocab().values())


def streamed(tokenizer: Any, ids: list[int]) -> str:
    labels = IncrementalDetokenizer(tokenizer)
    return "".join(labels.commit(ids)) + labels.finish()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_streamed_text_is_the_decoded_text(kind: str, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.sampled_from(reachable(kind)), max_size=3 * MOST))
    assert streamed(made(kind), ids) == made(kind).decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_too(kind: str) -> None:
    """Beyond the tokens that are read again, many times over, and with long runs of one token."""
    dice = random.Random(3)
    for _ in range(30):
        few = dice.sample(reachable(kind), min(12, len(reachable(kind))))
        ids = [t for _ in range(60) for t in [dice.choice(few)] * dice.choice([1, 1, 1, 2, 9])]
        assert streamed(made(kind), ids) == made(kind).decode(ids)
        ids = [dice.choice(reachable(kind)) for _ in range(dice.choice([9, 90, 900]))]
        assert streamed(made(kind), ids) == made(kind).decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_guess_is_what_a_commit_would_say(kind: str, data: st.DataObject) -> None:
    tokens = st.sampled_from(reachable(kind))
    before, nodes = data.draw(st.lists(tokens, max_size=60)), data.draw(st.lists(tokens, min_size=1, max_size=8))
    parents = [data.draw(st.integers(-1, i - 1)) for i in range(len(nodes))]
    labels = IncrementalDetokenizer(made(kind))
    labels.commit(before)
    guessed = labels.guess(nodes, parents)
    for i in range(len(nodes)):
        path, p = [i], parents[i]
        while p >= 0:
            path.insert(0, p)
            p = parents[p]
        again = IncrementalDetokenizer(made(kind))
        again.commit(before)
        assert [guessed[j] for j in path] == again.commit([nodes[j] for j in path])


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_of_a_token_does_not_grow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, original = [0], made(kind).decode

    def counted(ids: Any, **more: Any) -> str:
        read[0] += len(ids)
        return str(original(ids, **more))

    monkeypatch.setattr(made(kind), "decode", counted)
    dice = random.Random(1)
    for few in (reachable(kind), reachable(kind)[7:200], reachable(kind)[:1]):  # the second: bytes, where there are any
        ids = [dice.choice(few) for _ in range(4000)]
        read[0] = 0
        streamed(made(kind), ids)
        assert read[0] < 4000 * 1.5 * MOST


def committed(tokens: list[int], t: float = 0.0) -> Committed:
    return Committed(t, tokens, [], 0.0, [], 0, 0.0)


def texts(events: list[Event]) -> list[list[str]]:
    return [e.text for e in events if isinstance(e, Committed)]


def test_what_is_held_back_at_the_end_is_shown() -> None:
    """A run of bytes that the limit or a stop token cuts belongs to the answer, not to what ends it."""
    tokenizer = made("SentencePiece")
    vocab = tokenizer.get_vocab()
    snow, end = [vocab[f"<0x{b:02X}>"] for b in "☃".encode()], vocab["</s>"]
    for last in ([], [end]):
        events: list[Event] = [committed(snow[:1]), committed(snow[1:]), *([committed(last)] if last else [])]
        labels = IncrementalDetokenizer(tokenizer)
        done = list(with_text([*events, Finished(1.0, "limit")], labels, frozenset([end])))
        assert texts(done) == [[""], ["", "☃"], *([["</s>"]] if last else [])]
    done = list(
        with_text([committed([*snow, end]), Finished(1.0, "")], IncrementalDetokenizer(tokenizer), frozenset([end]))
    )
    assert texts(done) == [["", "", "☃", "</s>"]]


def test_events_keep_their_order_and_come_at_once_where_nothing_is_held_back() -> None:
    tokenizer = made("bytes")
    a, half = tokenizer.get_vocab()["a"], tokenizer.get_vocab()["ð"]
    events: list[Event] = [
        committed([a]),
        Drafted(0.1, [a], [-1], 0.0),
        committed([half]),
        Drafted(0.3, [a], [-1], 0.0),
    ]
    events += [committed([a]), Finished(1.0, "limit")]
    stream = with_text(iter(events), IncrementalDetokenizer(tokenizer), frozenset())
    assert texts([next(stream)]) == [["a"]]
    rest = list(stream)
    assert [type(e) for e in rest] == [type(e) for e in events[1:]]
    assert "".join(t for line in texts(rest) for t in line) == "\ufffda"


def test_a_run_that_fails_shows_what_it_had() -> None:
    tokenizer = made("bytes")

    def events() -> Any:
        yield committed([tokenizer.get_vocab()["ð"]])
        raise MemoryError

    seen: list[Event] = []
    with pytest.raises(MemoryError):
        seen.extend(with_text(events(), IncrementalDetokenizer(tokenizer), frozenset()))
    assert len(seen) == 1

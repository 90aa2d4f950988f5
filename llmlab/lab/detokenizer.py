"""Token ids to the text that each adds, such that the pieces together are the decoded text."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmlab.runtime.events import Committed, Drafted, Event, Finished

KEPT, MOST = 12, 32
"""Tokens that are read again with each new one: once there are MOST, the last KEPT go on."""
TIDIED = (" .", " ' ", " n't", " 'm", " 's", " 've", " 're", " n ' t", "  ' m", "  ' s", "  ' ve", "  ' re")
"""What transformers' tidying of spaces takes a space from (stops are all alike), in one step or in two."""
AFTER = tuple(sorted({p[i:] for p in TIDIED for i in range(1, len(p))} | {"x", " x", "' x", " ' x"}))
"""What may follow a text such that its end is tidied otherwise."""
FORCED = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
"""transformers' flag without which it does not tidy after a BPE."""


@dataclass(frozen=True)
class _State:
    """The last tokens, and how many characters of what they read as have been given away."""

    ids: tuple[int, ...] = ()
    given: int = 0
    waiting: bool = False


class _Rules:
    """What a tokenizer's decoder does to text that it has shown before: how much of the end may still change."""

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        steps = _steps(getattr(backend, "decoder", None))
        kinds = [s["type"] for s in steps]
        # Bytes that follow one another are decoded together: one wrong byte turns all of them into U+FFFD.
        self.bytes = frozenset(_byte_tokens(backend)) if "ByteFallback" in kinds else frozenset()
        # An unfinished character is one U+FFFD where bytes are read leniently, else up to three.
        self.unfinished = 1 if "ByteLevel" in kinds else 0 if self.bytes else 3
        whole = next((i for i, k in enumerate(kinds) if k in ("Fuse", "ByteLevel")), len(steps))
        patterns = [s["pattern"] for s in steps[whole:] if s["type"] == "Replace"]
        self.lag = max((len(p["String"]) - 1 if "String" in p else 8 for p in patterns), default=0)
        self.tidy: Callable[[str], str] | None = None
        if getattr(tokenizer, "clean_up_tokenization_spaces", False):
            bpe = type(getattr(backend, "model", None)).__name__ == "BPE"
            self.tidy = None if bpe and not getattr(tokenizer, FORCED, False) else tokenizer.clean_up_tokenization

    def settled(self, text: str) -> tuple[str, int]:
        """The text as it is shown, and how many of its characters no later token changes."""
        end = len(text) - self.lag
        while end > 0 and len(text) - end < self.unfinished and text[end - 1] == "\ufffd":
            end -= 1
        if self.tidy is None:
            return text, max(end, 0)
        shown = self.tidy(text)
        if end == len(text) and " " not in text[-6:]:  # as long as the longest of TIDIED
            return shown, len(shown)
        ends = [self.tidy(text[: max(end, 0)] + after) for after in AFTER]
        return shown, len(os.path.commonprefix([shown, *ends]))  # noqa: RUF071


def _steps(decoder: Any) -> list[dict[str, Any]]:
    """What a decoder of the tokenizers library does, step by step; nothing for one that is a program of its own."""
    try:
        found = [json.loads(decoder.__getstate__())] if decoder is not None else []
    except Exception:
        return []
    while any(s["type"] == "Sequence" for s in found):
        found = [part for s in found for part in s.get("decoders", [s])]
    return found


def _byte_tokens(backend: Any) -> Iterator[int]:
    """The ids of <0x00> … <0xFF>, as many of them as there are."""
    found = (backend.token_to_id(f"<0x{b:02X}>") for b in range(256))
    return (i for i in found if i is not None)


class IncrementalDetokenizer:
    """Token ids to the text that each adds. The pieces and `finish()` together are the decoded text.

    Text that a later token may change is held back and belongs to the token that settles it: an unfinished character,
    bytes that are decoded together, spaces that are tidied away. The time per token does not grow with the text.
    """

    def __init__(self, tokenizer: Any, context: Sequence[int] = ()) -> None:
        self._tokenizer, self._rules = tokenizer, _Rules(tokenizer)
        self._state = _State()
        self.commit(context[-KEPT:])

    def _read(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _step(self, state: _State, token: int) -> tuple[str, _State]:
        ids = (*state.ids, token)
        if token in self._rules.bytes:
            return "", _State(ids, state.given, waiting=True)
        text, end = self._rules.settled(self._read(ids))
        end = max(end, state.given)
        made = _State(ids, end, end < len(text))
        if len(ids) >= MOST:
            made = self._shortened(made, text[end:])
        return text[state.given : end], made

    def _shortened(self, state: _State, held: str) -> _State:
        """The same place in the text with fewer tokens before it, unless what is held back reaches beyond them."""
        ids = state.ids[-KEPT:]
        text, _ = self._rules.settled(self._read(ids))
        if len(text) <= len(held) or not text.endswith(held):
            return state
        return replace(state, ids=ids, given=len(text) - len(held))

    def commit(self, ids: Sequence[int]) -> list[str]:
        """What each of `ids` adds to the text."""
        texts = []
        for token in ids:
            text, self._state = self._step(self._state, token)
            texts.append(text)
        return texts

    @property
    def waiting(self) -> bool:
        """Whether text is held back."""
        return self._state.waiting

    def finish(self) -> str:
        """What was held back, now that no token follows."""
        text, _ = self._rules.settled(self._read(self._state.ids))
        rest, self._state = text[self._state.given :], replace(self._state, given=len(text), waiting=False)
        return rest

    def guess(self, tokens: Sequence[int], parents: Sequence[int]) -> list[str]:
        """The text of a draft's nodes, each read after its ancestors, which come before it."""
        texts: list[str] = []
        states: list[_State] = []
        for token, parent in zip(tokens, parents, strict=True):
            text, state = self._step(states[parent] if parent >= 0 else self._state, token)
            texts.append(text)
            states.append(state)
        return texts

    def own_text(self, token: int) -> str:
        """A token's text where nothing stands before it."""
        return self._read([token])


def with_text(events: Iterable[Event], labels: IncrementalDetokenizer, ends: frozenset[int]) -> Iterator[Event]:
    """The events of a run with the text of their tokens.

    A pass that leaves text held back comes one pass late, so that the text is its own where the run ends there: after
    it comes nothing, or a token of `ends`, which is no part of the answer.
    """
    late: list[Event] = []  # such a pass, and what happened since
    try:
        for e in events:
            if isinstance(e, Drafted):
                e = replace(e, text=labels.guess(e.tokens, e.parents))
            elif isinstance(e, Committed):
                before, texts = _before_ends(e.tokens, labels.commit(e.tokens), labels, ends, bool(late))
                late[:1] = [_longer(held, before) for held in late[:1]]
                e = replace(e, text=texts)
            elif isinstance(e, Finished):
                late[:1] = [_longer(held, labels.finish()) for held in late[:1]]
            if isinstance(e, Committed | Finished):
                yield from late
                late = []
            if late or (isinstance(e, Committed) and labels.waiting):
                late.append(e)
            else:
                yield e
    except Exception:  # the run failed: what it did before that is still shown
        yield from late
        raise
    yield from late


def _longer(e: Event, text: str) -> Event:
    return replace(e, text=[*e.text[:-1], e.text[-1] + text]) if isinstance(e, Committed) else e


def _before_ends(
    tokens: Sequence[int], texts: list[str], labels: IncrementalDetokenizer, ends: frozenset[int], late: bool
) -> tuple[str, list[str]]:
    """Text that an end token has settled goes to the token before it; if that came in an earlier pass, it comes first.

    Without one (`late` is false) it stays where it is.
    """
    first = ""
    for i, token in enumerate(tokens):
        own = labels.own_text(token) if token in ends else ""
        held = texts[i].removesuffix(own)
        if own and held and held != texts[i] and (i or late):
            texts[i] = own
            if i:
                texts[i - 1] += held
            else:
                first = held
    return first, texts

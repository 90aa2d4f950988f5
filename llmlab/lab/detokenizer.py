"""Token ids to the text that each adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class IncrementalDetokenizer:
    """Token ids to the text each adds, where one character may take several tokens."""

    def __init__(self, tokenizer: Any, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(context[-8:])
        self._text = self._read(self._ids)

    def _read(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def _added(self, ids: Sequence[int], before: list[int], old: str) -> tuple[list[str], list[int], str]:
        """What each of `ids` adds after `before`, which reads `old`; and what to go on from, with its text."""
        texts = []
        for token in ids:
            before = [*before, token]
            new = self._read(before)
            # An unfinished character decodes to U+FFFD; its text belongs to the token that completes it.
            stem = old.rstrip("\ufffd")
            whole = new.rstrip("\ufffd")
            texts.append(whole[len(stem) :] if whole.startswith(stem) else new[len(old) :])
            old = new
            if len(before) > 24 and not new.endswith("\ufffd"):  # reading takes a part of every token's time
                before = before[-8:]
                old = self._read(before)
        return texts, before, old

    def commit(self, ids: Sequence[int]) -> list[str]:
        texts, self._ids, self._text = self._added(ids, self._ids, self._text)
        return texts

    def guess(self, tokens: Sequence[int], parents: Sequence[int]) -> list[str]:
        """The text of a draft's nodes, each read after its ancestors."""
        texts: list[str] = []
        for i, token in enumerate(tokens):
            line: list[int] = []
            p = parents[i]
            while p >= 0:
                line.insert(0, tokens[p])
                p = parents[p]
            before = [*self._ids, *line]
            texts.append(self._added([token], before, self._read(before))[0][0])
        return texts

"""Whether two tokenizers mean the same by their numbers, so that one model can draft for the other."""

from __future__ import annotations

import re
from typing import Any

from llmlab.errors import Refused

PLACEHOLDER = re.compile(r"\[PAD\d+\]|<unused\d+>")
"""What converters call the rows of an embedding that no token of the tokenizer has."""


def require_same(name: str, tokenizer: Any, other_name: str, other: Any) -> None:
    """Raises Refused, naming the first token that differs, unless the model `other_name` can draft for `name`.

    Every number that both know must stand for the same token. What only one of them knows may be tokens that were
    added to its vocabulary; an ordinary one would mean that the same text is cut up differently.
    """
    found = first_difference(tokenizer, other)
    if found is None:
        return
    number, mine, theirs = found
    raise Refused(
        f"The draft model {other_name}",
        f"has another vocabulary than {name}: its token {number} is {_shown(theirs)}, "
        f"where the model has {_shown(mine)}",
        "Choose one of the same family",
    )


def _shown(token: str | None) -> str:
    return "none" if token is None else repr(token[:40])


def first_difference(one: Any, other: Any) -> tuple[int, str | None, str | None] | None:
    """The lowest token at which the vocabularies differ and what each calls it, None where it has none."""
    vocabularies = one.get_vocab(), other.get_vocab()
    if vocabularies[0] == vocabularies[1]:
        return None
    added = one.get_added_vocab(), other.get_added_vocab()
    a, b = ({number: token for token, number in v.items()} for v in vocabularies)
    for number in sorted(a.keys() | b.keys()):
        mine, theirs = a.get(number), b.get(number)
        if mine == theirs:
            continue
        if mine is not None and theirs is not None:
            return number, mine, theirs
        has, lacks = (0, 1) if theirs is None else (1, 0)
        token = mine if theirs is None else theirs
        assert token is not None
        extra = token in added[has] or PLACEHOLDER.fullmatch(token)
        if not extra or token in vocabularies[lacks]:
            return number, mine, theirs
    return None

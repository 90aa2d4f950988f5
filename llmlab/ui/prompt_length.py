"""How many tokens a prompt has beside the model's context, while it is written: by the tokenizer, without weights."""

from __future__ import annotations

from functools import lru_cache
from threading import Lock
from typing import Any, NamedTuple

from llmlab.errors import Refused
from llmlab.lab.experiment import LONGEST_TEXT
from llmlab.models.config import text_of
from llmlab.models.loading.catalog import MODELS
from llmlab.models.loading.contents import read_config
from llmlab.models.loading.environment import restricted
from llmlab.models.loading.loaded import encode
from llmlab.models.loading.sources import locate
from llmlab.models.loading.sources.found import Found
from llmlab.models.loading.sources.hub import complete_snapshot
from llmlab.models.loading.sources.reference import local, repository, tidy
from llmlab.models.loading.tokens.tokenizers import read_tokenizer
from llmlab.models.rope import context_of
from llmlab.runtime.stack import Stack
from llmlab.ui.gradio_events import refusal_html
from llmlab.ui.i18n import both, catalogue, word

LATIN = 4
"""Characters per token in a guess for a tokenizer that is not here; other scripts take about a token a character."""

_reading = Lock()
"""A class that arrives at once reads a tokenizer once."""


class Reader(NamedTuple):
    """What turns a model's prompts into tokens, and how many it reads."""

    name: str
    tokenizer: Any
    context: int


class Length(NamedTuple):
    """Tokens of a prompt, whether they are a guess, and the model's context (0: not known)."""

    tokens: int
    guessed: bool
    context: int


def length(model: str, prompt: str, chat: bool | None) -> Length:
    """The prompt's length for a model; a guess where the model is not on this machine. Raises Refused where the model
    has no use for the prompt."""
    reader = _reader(model)
    if reader is None or len(prompt) > LONGEST_TEXT:
        entry = MODELS.get(model)
        context = reader.context if reader else entry.size.context if entry else 0
        latin = sum(c.isascii() for c in prompt)
        return Length(-(-latin // LATIN) + len(prompt) - latin, True, context)
    return Length(len(encode(reader.tokenizer, reader.name, prompt, chat)), False, reader.context)


def length_html(model: str, prompt: str, chat: bool | None, new: int, stack: Stack | None = None) -> str:
    """The length as the page shows it; red and explained where `new` tokens more do not fit the context, unless the
    stack goes beyond it."""
    if not prompt.strip():
        return ""
    try:
        found = length(model, prompt, chat)
    except Refused as e:
        return refusal_html(str(e))
    left = found.context - found.tokens
    endless = stack is not None and stack.text_limit(found.context) is None
    if not found.context or endless or left >= max(1, new):
        return f'<p class="hint">{both(*(_count(found, lang) for lang in catalogue()))}</p>'
    why = "count_over" if left < 1 else "count_room"
    told = (word(why, lang, count=_count(found, lang), left=left, new=new) for lang in catalogue())
    return f'<p class="refusal" role="status">{both(*told)}</p>'


def _count(found: Length, lang: str) -> str:
    key = "count" if not found.guessed else "count_guess" if found.context else "count_unknown"
    return word(key, lang, n=_grouped(found.tokens), context=_grouped(found.context))


def _grouped(n: int) -> str:
    """2048 as 2 048, with a narrow space that breaks no line."""
    return f"{n:,}".replace(",", "\u202f")


def _reader(model: str) -> Reader | None:
    """What reads prompts for a model; None where it is not on this machine or cannot be read."""
    ref = tidy(model)
    try:
        path = None if ref in MODELS or restricted() else local(ref)
        with _reading:
            return _read(ref, path.stat().st_mtime_ns if path else 0) if path or _here(ref) else None
    except (Refused, OSError):
        return None


def _here(ref: str) -> bool:
    """Whether a model of the catalogue or the Hub is on this machine. Asks no network."""
    if ref in MODELS:
        return locate.downloaded(MODELS[ref])
    at = None if restricted() else repository(ref)
    return at is not None and complete_snapshot(at) is not None


@lru_cache(4)
def _read(ref: str, stamp: int) -> Reader:
    """`stamp`: a folder that has changed is read anew. Raises Refused.

    Only the context is asked for, so no model is built to be measured, not even an empty one.
    """
    found: Found = locate.find(ref)
    return Reader(found.name, read_tokenizer(found), context_of(text_of(read_config(found))))

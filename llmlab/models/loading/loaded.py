"""A model ready to run, with its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmlab.errors import Refused
from llmlab.models.loading.tokens.chat import chat_text


def prompt_tokens(loaded: Loaded, prompt: str, chat: bool | None = None) -> list[int]:
    """A prompt as the model reads it; `chat` as in `Settings`. Raises Refused where nothing comes of it."""
    ids = encode(loaded.tokenizer, loaded.name, prompt, chat)
    require_known(ids, loaded.model.vocab, loaded.tokenizer, loaded.name)
    return ids


def encode(tokenizer: Any, who: str, prompt: str, chat: bool | None = None) -> list[int]:
    """As `prompt_tokens`, for the tokenizer of a model called `who` that need not be loaded."""
    if chat and not tokenizer.chat_template:
        raise Refused(who, "has no chat template", "Switch chat off")
    try:
        prompt.encode()
    except UnicodeEncodeError as e:
        raise Refused("The prompt", "holds halves of characters, which are no text", "Write them anew") from e
    if chat or (chat is None and tokenizer.chat_template):
        text = chat_text(tokenizer, who, prompt)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    else:
        ids = list(tokenizer(prompt)["input_ids"])
    if not ids:
        raise Refused("The prompt", "holds nothing that this model's vocabulary knows", "Write something else")
    return ids


def require_known(tokens: Sequence[int], vocab_rows: int, tokenizer: Any, who: str) -> None:
    """Raises Refused for a token that the tokenizer knows and the model's embedding of `vocab_rows` rows does not."""
    beyond = next((t for t in tokens if not 0 <= t < vocab_rows), None)
    if beyond is not None:
        text = tokenizer.convert_ids_to_tokens(beyond)
        raise Refused(
            who,
            f"has no embedding for the token {text!r}: its number is {beyond} and there are {vocab_rows}",
            "Leave it out of the prompt, or switch chat off if the chat template adds it",
        )


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, with what is needed to turn text into its tokens and back."""

    name: str
    model: Any
    tokenizer: Any
    weights: str
    stop_tokens: frozenset[int]
    source: str

"""A model ready to run, with its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmlab.errors import Refused


def prompt_tokens(loaded: Loaded, prompt: str, chat: bool | None = None) -> list[int]:
    """A prompt as the model reads it; `chat` as in `Settings`. Raises Refused where nothing comes of it."""
    tokenizer = loaded.tokenizer
    if chat and not tokenizer.chat_template:
        raise Refused(loaded.name, "has no chat template", "Switch chat off")
    if chat or (chat is None and tokenizer.chat_template):
        messages = [{"role": "user", "content": prompt}]
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])
    ids = list(tokenizer(prompt)["input_ids"])
    if not ids:
        raise Refused("The prompt", "holds nothing that this model's vocabulary knows", "Write something else")
    return ids


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, with what is needed to turn text into its tokens and back."""

    name: str
    model: Any
    tokenizer: Any
    weights: str
    stop_tokens: frozenset[int]
    source: str


def stop_tokens(tokenizer: Any, config: Any) -> frozenset[int]:
    """The ids at which an answer ends, from the config and the tokenizer, and a chat turn's end where there is one."""
    found: set[int | None] = set()
    for source in (getattr(config, "eos_token_id", None), tokenizer.eos_token_id):
        found.update(source if isinstance(source, list | tuple) else [source])
    for name in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>"):
        number = tokenizer.convert_tokens_to_ids(name)
        if number is not None and number != tokenizer.unk_token_id:
            found.add(number)
    return frozenset(t for t in found if t is not None)

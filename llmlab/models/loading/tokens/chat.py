"""Prompts in a model's chat template. Templates are strangers' programs: what one does ends in text or a refusal."""

from __future__ import annotations

from typing import Any

from llmlab.errors import Refused

PROBE = "llmlab probes 7f3a"
"""A text that no template holds, to see what becomes of a message."""
LITERAL = ("'type': 'text'", '"type": "text"')
"""How a list of parts looks to a template that takes it for text."""
OFF = "Switch chat off"


def chat_text(tokenizer: Any, who: str, prompt: str) -> str:
    """The prompt as the only message of a chat, up to where the model's answer begins.

    Raises Refused where the template fails, with its own message, and where it leaves the prompt out.
    """
    parts = _wants_parts(tokenizer, who)
    text = _render(tokenizer, who, [{"role": "user", "content": _content(prompt, parts)}], True)
    if prompt.strip() not in text:
        raise Refused(f"The chat template of {who}", "leaves out the prompt or a part of it", OFF)
    return text


def turn_end(tokenizer: Any) -> int | None:
    """The special token with which the template closes an answer, None where it has none or cannot say."""
    if not tokenizer.chat_template:
        return None
    try:
        parts = _wants_parts(tokenizer, "")
        turns = [{"role": r, "content": _content(t, parts)} for r, t in (("user", "Hello"), ("assistant", PROBE))]
        _, found, after = _render(tokenizer, "", turns, False).rpartition(PROBE)
    except Refused:  # the template may allow a question and no answer; a prompt then tells
        return None
    special = {str(t): i for i, t in tokenizer.added_tokens_decoder.items()}
    closing = [t for t in special if t and found and after.lstrip().startswith(t)]
    return special[max(closing, key=len)] if closing else None


def _wants_parts(tokenizer: Any, who: str) -> bool:
    """Whether messages are lists of parts, seen from which of the two the template shows, as llama.cpp does it."""
    failures = []
    for parts in (False, True):
        try:
            text = _render(tokenizer, who, [{"role": "user", "content": _content(PROBE, parts)}], True)
            if PROBE in text and not any(t in text for t in LITERAL):
                return parts
        except Refused as e:
            failures.append(e)
    if failures:
        raise failures[0]
    return False


def _content(text: str, parts: bool) -> Any:
    return [{"type": "text", "text": text}] if parts else text


def _template(tokenizer: Any, who: str) -> str:
    """The template itself; of several the default one."""
    found = tokenizer.chat_template
    if isinstance(found, list):
        found = {str(t.get("name")): t.get("template") for t in found if isinstance(t, dict)}
    if isinstance(found, dict):
        names = sorted(found)
        found = found.get("default", next(iter(found.values())) if len(found) == 1 else None)
        if found is None:
            raise Refused(who, f"has the chat templates {', '.join(names)[:80]} and none of them is the default", OFF)
    if not isinstance(found, str):
        raise Refused(who, "has a chat template that is no text", OFF)
    return found


def _render(tokenizer: Any, who: str, messages: list[dict[str, Any]], answer: bool) -> str:
    template = _template(tokenizer, who)
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=answer, tokenize=False
        )
    except Exception as e:  # a template raises what it likes, and jinja what it must
        said = " ".join(str(e).split())[:200].rstrip(".") or type(e).__name__
        raise Refused(f"The chat template of {who}", f"fails: {said}", OFF) from e
    return str(text)

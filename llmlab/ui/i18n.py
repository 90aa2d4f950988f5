"""The page's words in English and Simplified Chinese: one catalogue for Gradio's labels and for sentences made here."""

from __future__ import annotations

import json
from functools import cache
from html import escape
from pathlib import Path
from typing import Any


@cache  # one value
def catalogue() -> dict[str, dict[str, str]]:
    """Every word by language and key; both languages hold the same keys."""
    found: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("i18n.json").read_text(encoding="utf-8"))
    return found


def language(accept: str | None) -> str:
    """The page's language for a browser's Accept-Language header."""
    first = (accept or "").split(",")[0].strip().lower()
    return "zh-CN" if first.startswith("zh") else "en"


def word(key: str, lang: str = "en", **values: Any) -> str:
    """The text called `key`, with its {placeholders} filled in."""
    text = catalogue()[lang][key]
    return text.format(**values) if values else text


def both(en: str, zh: str) -> str:
    """Two plain texts as HTML of which the page shows the visitor's: for HTML that is made before anyone visits."""
    return f'<span class="en">{escape(en)}</span><span class="zh">{escape(zh)}</span>'


def both_words(key: str, **values: Any) -> str:
    """The text called `key` in both languages, as `both` makes it."""
    return both(word(key, "en", **values), word(key, "zh-CN", **values))

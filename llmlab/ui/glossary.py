"""The glossary: every figure that the page shows, by the definition it is computed by."""

from __future__ import annotations

from llmlab.ui.i18n import both_words, catalogue

PREFIX, MEANING = "g_", "_m"


def terms() -> list[str]:
    """The keys of the terms in the words, in the page's order; with `MEANING` behind it a key names its definition."""
    return [key for key in catalogue()["en"] if key.startswith(PREFIX) and not key.endswith(MEANING)]


def glossary_html() -> str:
    """The terms with their definitions, in both languages."""
    listed = "".join(f"<dt>{both_words(t)}</dt><dd>{both_words(t + MEANING)}</dd>" for t in terms())
    return f'<div class="card"><dl>{listed}</dl></div>'

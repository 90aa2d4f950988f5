"""The glossary names every figure of the account, in both languages, with a definition."""

from __future__ import annotations

from llmlab.ui.glossary import MEANING, glossary_html, terms
from llmlab.ui.i18n import catalogue

ASKED = ("g_rate", "g_length", "g_position", "g_tokens_pass", "g_layers", "g_rows", "g_kl", "g_ppl", "g_memory")


def test_every_term_has_a_definition_in_both_languages() -> None:
    assert set(ASKED) <= set(terms())
    for words in catalogue().values():
        for term in terms():
            assert words[term].strip()
            assert len(words[term + MEANING]) > 10


def test_the_glossary_says_whose_definitions_they_are() -> None:
    html = glossary_html()
    for name in ("vLLM", "llama.cpp", "num_draft_tokens", "draft_n_accepted", "mean acceptance length"):
        assert name in html

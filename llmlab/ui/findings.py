"""What a study says to the papers' claims, for the page. Takes the JSON of schema llmlab.study/1."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from llmlab.lab.findings import verdict_of
from llmlab.ui.i18n import both_words


def claims_html(found: Mapping[str, Any]) -> str:
    """The claims with their badges, and the notes, as HTML in both languages; whatever a study wrote is escaped."""
    told = []
    for c in found["claims"]:
        kind = verdict_of(c)
        badge = f'<span class="badge badge-{kind}">{both_words(kind)}</span>'
        claim = f"{escape(c['claim'])} <cite>{escape(c['source'])}</cite>"
        told.append(f'<li data-holds="{kind}">{badge} <b>{claim}</b><br>{escape(c["evidence"])}</li>')
    notes = "".join(f'<p class="hint">{escape(note)}</p>' for note in found["notes"])
    return (f'<ul class="claims">{"".join(told)}</ul>' if told else "") + notes

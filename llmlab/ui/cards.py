"""What the page says about a technique: its claim, its badge and its card, all from the technique's own class."""

from __future__ import annotations

import json
import re
from functools import cache
from html import escape

from llmlab.assets import ASSETS
from llmlab.lab.study import Study
from llmlab.runtime.configurable import LABELS, Configurable, card, title
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import Technique, registry
from llmlab.ui.i18n import both, both_words, catalogue, word

LANGUAGES = tuple(catalogue())


def badge(kind: str) -> str:
    """A small label in both languages; `kind` is "lossless", "lossy", "plain" or "simulated"."""
    return f'<span class="badge badge-{kind}">{both_words(kind)}</span>'


def stack_badge(stack: Stack) -> str:
    """The badges of a whole stack, computed from its members and their knobs."""
    badges = [badge(("lossless" if stack.lossless() else "lossy") if len(stack) else "plain")]
    if stack.simulated():
        badges.append(badge("simulated"))
    return f'<p class="hint">{both_words("stack_is")} {" ".join(badges)}</p>'


def summary(technique: type[Technique]) -> str:
    """Badges and claim on one line."""
    badges = badge("lossless" if technique.exact else "lossy")
    if technique.speed == "simulated":
        badges += " " + badge("simulated")
    return f'<p class="claim">{badges} {both(technique.claim, technique.claim_zh)}</p>'


def study_head(study: type[Study]) -> str:
    """A study's title and claim."""
    badges = badge("simulated") + " " if study.speed == "simulated" else ""
    return f'<h2>{escape(title(study))}</h2><p class="claim">{badges}{both(study.claim, study.claim_zh)}</p>'


def search_box() -> str:
    """Where a visitor looks for a technique; page.js does the looking, in `search_index`."""
    en, zh = word("search", "en"), word("search", "zh-CN")
    field = '<input type="search" autocomplete="off" maxlength="60" data-search aria-label="{0}" placeholder="{0}">'
    none = f'<p class="hint" hidden data-search-none>{both_words("search_none")}</p>'
    return "".join(f'<span class="{c}">{field.format(escape(t))}</span>' for c, t in (("en", en), ("zh", zh))) + none


def search_index() -> dict[str, dict[str, str]]:
    """Per technique its family and the words by which it is found: name, claims and papers, in lower case."""
    found = {}
    for name, t in registry().items():
        papers = " ".join(re.sub(r"<[^>]*>", "", _source(c)) for c in t.covers)
        words = [name, title(t), t.claim, t.claim_zh, papers, *(word(t.role, lang) for lang in LANGUAGES)]
        found[name] = {"role": t.role, "words": " ".join(words).lower()}
    return found


def fold(role: str, count: int, open_: bool) -> str:
    """The button that folds and unfolds a family of techniques."""
    told = f'{both_words(role)} <span class="count">{count}</span>'
    return f'<button type="button" class="fold" data-fold="{role}" aria-expanded="{str(open_).lower()}">{told}</button>'


def body(technique: type[Configurable]) -> str:
    """The card's four paragraphs and the papers it covers, as escaped HTML."""
    parts = card(technique)
    texts = {label: re.sub(r"`(.+?)`", r"<code>\1</code>", escape(parts.get(label, ""))) for label in LABELS}
    rows = "".join(f"<dt>{label}</dt><dd>{text}</dd>" for label, text in texts.items())
    sources = [_source(c) for c in technique.covers]
    return f'<dl class="card">{rows}<dt>Source</dt><dd>{", ".join(sources)}</dd></dl>'


def _source(cover: str) -> str:
    if cover.startswith("https://"):
        short = cover.removeprefix("https://").removeprefix("arxiv.org/abs/")
        label = f"arXiv {short}" if "arxiv.org" in cover else short
        return f'<a href="{escape(cover)}" target="_blank" rel="noopener">{escape(label)}</a>'
    return _survey().get(cover, escape(cover))


@cache
def _survey() -> dict[str, str]:
    """Each row of the survey as a link, by id."""
    found = {}
    for r in json.loads((ASSETS / "survey.json").read_text(encoding="utf-8")):
        label = escape(f"{r['title']} ({r['year']})" if r.get("year") else r["title"])
        if r.get("arxiv"):
            at = f"https://arxiv.org/abs/{escape(r['arxiv'])}"
            label = f'<a href="{at}" target="_blank" rel="noopener">{label}</a>'
        found[r["id"]] = label
    return found

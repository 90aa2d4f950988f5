"""What is shown after a run: the summary, the figures, the table of passes, quality, links and files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import gradio as gr

from llmlab.lab.records import record
from llmlab.lab.settings import Settings
from llmlab.measure import trace
from llmlab.runtime.events import Event
from llmlab.ui import links
from llmlab.ui.exports import Exports
from llmlab.ui.figures import run as run_figures
from llmlab.ui.i18n import both_words, word
from llmlab.ui.playground.layout import Account
from llmlab.ui.run_summary import lane_name, run_summary
from llmlab.ui.tables import table

PASSES = (
    *("r_lane", "r_round", "r_t", "r_ms", "r_drafted", "r_accepted"),
    *("r_tokens", "r_text", "r_rows", "r_layers", "r_computed"),
)
"""Headings of the table of passes."""


def account(
    tabs: Account,
    exports: Exports,
    events: Sequence[Event],
    settings: Settings,
    compare: bool,
    lang: str,
    run: tuple[str, str],
) -> dict[Any, Any]:
    """The new value of every component of `tabs`, for a run's events so far; `run`: its id in the panel, its name."""
    drawn = run_figures.all_of(events, lang)
    files = exports.write(texts(events))
    return {
        tabs.whose: whose_html(*run),
        tabs.summary: run_summary(events, lang),
        **{p: gr.update(value=f, visible=f is not None) for p, f in zip(tabs.plots, drawn, strict=True)},
        tabs.passes: table([word(k, lang) for k in PASSES], passes_table(events, lang)),
        tabs.quality: quality_table(trace.quality(events), lang),
        tabs.query: links.to_query(settings),
        tabs.command: links.command_line(settings, compare),
        tabs.python: links.python(settings),
        **dict(zip(tabs.downloads, files, strict=True)),
    }


def whose_html(run: str, name: str) -> str:
    """Of which run the account is; page.js shows the second wording while the panel shows another run."""
    told = "".join(f'<span class="{key}">{both_words(key, name=name)}</span>' for key in ("account_of", "account_old"))
    return f'<p class="hint" data-run="{escape(run)}">{told}</p>'


def run_name(settings: Settings, compare: bool) -> str:
    """A run in a few words: its model, its techniques, whether the baseline ran too."""
    return " · ".join([settings.model, *(t.title for t in settings.stack), *(["A/B"] if compare else [])])


def passes_table(events: Sequence[Event], lang: str) -> list[list[Any]]:
    """One row per pass, in the order of PASSES."""
    rows = []
    for lane, run in trace.lanes(events).items():
        for n, t, seconds, drafted, accepted, tokens, text, kept, _, layers, computed, *_ in trace.rounds(run):
            counts = [round(t, 3), round(seconds * 1000, 1), drafted, accepted, tokens]
            rows.append([lane_name(lane, lang), n, *counts, text, kept, round(layers, 1), computed or "—"])
    return rows


def texts(events: Sequence[Event]) -> dict[str, str]:
    """The files that a visitor can download, by name: the trace, the record, and the last lane's passes."""
    lanes = trace.lanes(events)
    records: Any = {lane: record(run) for lane, run in lanes.items()}
    if len(lanes) == 1:
        records = next(iter(records.values()))
    return {
        "llmlab-trace.jsonl": trace.dumps(events),
        "llmlab-run.json": json.dumps(records, ensure_ascii=False, indent=2) + "\n",
        "llmlab-rounds.csv": trace.rounds_csv(list(lanes.values())[-1]),
    }


def _with_error(value: Any, error: Any, form: str) -> str:
    """A value and its standard error, which an earlier version did not measure."""
    if value is None:
        return "—"
    return f"{value:{form}}" if error is None else f"{value:{form}} ± {error:{form}}"


Written = Callable[[dict[str, Any], str], str]

QUALITY: dict[str, Written] = {
    "q_identical": lambda q, lang: word("yes" if q["identical"] else "no", lang),
    "q_first": lambda q, lang: "—" if q["first_difference"] is None else str(int(q["first_difference"])),
    "q_margin": lambda q, lang: "—" if q["margin"] is None else f"{q['margin']:.3f}",
    "q_kl": lambda q, lang: _with_error(q["kl_mean"], q.get("kl_error"), ".2g"),
    "q_top1": lambda q, lang: "—" if q["top1_agreement"] is None else f"{q['top1_agreement']:.1%}",
    "q_ppl": lambda q, lang: _with_error(q["perplexity_ratio"], q.get("perplexity_ratio_error"), ".3f"),
    "q_kl_text": lambda q, lang: _with_error(q.get("kl_text"), q.get("kl_text_error"), ".2g"),
}
"""Per figure of quality its key in the words and how it is written."""
WITHHELD = ("lossless", "acceptance", "idle", "unfinished")


def quality_table(quality: dict[str, Any] | None, lang: str) -> str:
    """The cost in quality as a Markdown table with the meaning of each figure, and what was not measured and why."""
    if not quality:
        return word("q_none", lang)
    rows = [f"| {word('q_question', lang)} | {word('q_answer', lang)} | {word('q_meaning', lang)} |", "|---|---|---|"]
    for key, written in QUALITY.items():
        rows.append(f"| {word(key, lang)} | {_answer(written, quality, lang)} | {word(key + '_m', lang)} |")
    kinds = quality.get("kinds")
    for kind in ("prose", "code", "own"):
        if isinstance(kinds, dict) and isinstance(kinds.get(kind), dict):
            answer, n = (
                _answer(_of_kind, kinds[kind], lang),
                _answer(lambda q, _: str(int(q["tokens"])), kinds[kind], lang),
            )
            rows.append(f"| {word('q_kind_' + kind, lang)} | {answer} | {word('q_kind_m', lang, n=n)} |")
    why = quality.get("withheld")
    told = [word(f"q_withheld_{why}", lang), ""] if why in WITHHELD else []
    return "\n".join([*told, *rows])


def _of_kind(q: dict[str, Any], lang: str) -> str:
    ratio = _with_error(q["perplexity_ratio"], q["perplexity_ratio_error"], ".3f")
    return f"{ratio} · KL {_with_error(q['kl'], q['kl_error'], '.2g')} · {q['top1_agreement']:.1%}"


def _answer(written: Written, quality: dict[str, Any], lang: str) -> str:
    try:
        return written(quality, lang)
    except (KeyError, TypeError, ValueError, OverflowError):  # a stranger's trace may hold anything
        return "—"

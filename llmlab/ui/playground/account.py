"""What is shown after a run: the summary, the figures, the table of passes, quality, links and files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from llmlab.lab.records import record
from llmlab.lab.settings import Settings
from llmlab.measure import trace
from llmlab.runtime.events import Event
from llmlab.ui import links
from llmlab.ui.exports import Exports
from llmlab.ui.figures import run as run_figures
from llmlab.ui.i18n import word
from llmlab.ui.playground.layout import Account
from llmlab.ui.run_summary import lane_name, run_summary
from llmlab.ui.tables import table

PASSES = (
    *("r_lane", "r_round", "r_t", "r_ms", "r_drafted", "r_accepted"),
    *("r_tokens", "r_text", "r_rows", "r_layers", "r_computed"),
)
"""Headings of the table of passes."""


def account(
    tabs: Account, exports: Exports, events: Sequence[Event], settings: Settings, compare: bool, lang: str
) -> dict[Any, Any]:
    """The new value of every component of `tabs`, for a run's events so far."""
    drawn = run_figures.all_of(events, lang)
    files = exports.write(texts(events))
    return {
        tabs.summary: run_summary(events, lang),
        **{p: gr.update(value=f, visible=f is not None) for p, f in zip(tabs.plots, drawn, strict=True)},
        tabs.passes: table([word(k, lang) for k in PASSES], passes_table(events, lang)),
        tabs.quality: quality_table(trace.quality(events), lang),
        tabs.query: links.to_query(settings),
        tabs.command: links.command_line(settings, compare),
        tabs.python: links.python(settings),
        **dict(zip(tabs.downloads, files, strict=True)),
    }


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


QUALITY: dict[str, tuple[str, Callable[[Any, str], str]]] = {
    "identical": ("q_identical", lambda v, lang: word("yes" if v else "no", lang)),
    "first_difference": ("q_first", lambda v, lang: "—" if v is None else str(int(v))),
    "margin": ("q_margin", lambda v, lang: "—" if v is None else f"{v:.3f}"),
    "kl_mean": ("q_kl", lambda v, lang: f"{v:.2g}"),
    "top1_agreement": ("q_top1", lambda v, lang: f"{v:.1%}"),
    "perplexity_ratio": ("q_ppl", lambda v, lang: "—" if v is None else f"{v:.3f}"),
}
"""Per figure of quality its key in the words and how it is written."""


def quality_table(quality: dict[str, Any] | None, lang: str) -> str:
    """The cost in quality as a Markdown table with the meaning of each figure."""
    if not quality:
        return word("q_none", lang)
    rows = [f"| {word('q_question', lang)} | {word('q_answer', lang)} | {word('q_meaning', lang)} |", "|---|---|---|"]
    for name, (key, written) in QUALITY.items():
        try:
            answer = written(quality.get(name), lang)
        except (TypeError, ValueError):  # a stranger's trace may hold anything
            answer = "—"
        rows.append(f"| {word(key, lang)} | {answer} | {word(key + '_m', lang)} |")
    return "\n".join(rows)

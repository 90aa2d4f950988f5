"""What is shown of a study: how far it is while it runs, and its findings when it is through."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

import gradio as gr

from llmlab.lab.findings import cell
from llmlab.lab.queue import Job, StudyRun
from llmlab.ui.exports import Exports
from llmlab.ui.figures.study import study_figures
from llmlab.ui.findings import claims_html
from llmlab.ui.gradio_events import refusal_html
from llmlab.ui.i18n import both_words, word
from llmlab.ui.studies.layout import MOST_FIGURES, Findings, none_yet
from llmlab.ui.tables import table


def no_findings(places: Findings) -> dict[Any, Any]:
    """Updates that show a study before it has run."""
    hidden = {c: gr.update(visible=False) for c in (*places.plots, places.table, places.json)}
    return {places.claims: none_yet(), **hidden}


def findings(places: Findings, exports: Exports, job: StudyRun, lang: str) -> dict[Any, Any]:
    """Updates that show what a study found (schema llmlab.study/1)."""
    found = job.findings or {}
    drawn = study_figures(found, type(job.study).bench, lang)
    claims = claims_html(found)
    if len(drawn) > MOST_FIGURES:
        claims += f'<p class="hint">{escape(word("study_more", lang, n=len(drawn) - MOST_FIGURES))}</p>'
    shown: dict[Any, Any] = {places.claims: claims}
    for i, plot in enumerate(places.plots):
        shown[plot] = gr.update(value=drawn[i], visible=True) if i < len(drawn) else gr.update(visible=False)
    (path,) = exports.write({f"llmlab-{job.study.id}.json": json.dumps(found, ensure_ascii=False, indent=2) + "\n"})
    return shown | {places.table: table_update(found), places.json: gr.update(value=path, visible=True)}


def table_update(found: Mapping[str, Any]) -> Any:
    """The update that shows the rows under their headings."""
    rows = [[_number_or_text(row.get(name)) for name in found["columns"]] for row in found["rows"]]
    return table(list(found["columns"].values()), rows)


def _number_or_text(value: Any) -> Any:
    """A cell of the table: numbers stay numbers, so that sorting a column sorts them, in four digits."""
    if isinstance(value, float):
        return cell(value) if value != value or abs(value) == float("inf") else float(f"{value:.4g}")
    return value if isinstance(value, int) and not isinstance(value, bool) else cell(value)


def progress_html(job: Job) -> str:
    """How far a study is, in both languages."""
    if job.state == "error":
        return f'<div data-state="error">{refusal_html(job.note)}</div>'
    bar, text = "", both_words("study_next")
    if job.state == "queued":
        n, _, seconds = job.note.removeprefix("waiting:").partition(":")
        if n.isdigit() and n != "0":
            text = both_words("study_wait_about", n=n, s=seconds) if seconds else both_words("study_wait", n=n)
    elif job.state == "done":
        seconds = f"{job.findings['seconds']:.1f}" if isinstance(job, StudyRun) and job.findings else ""
        text = both_words("study_stopped") if job.note == "stopped" else both_words("study_done", s=seconds)
    elif job.note.count("|") == 2:
        bar, text = _bar(*job.note.split("|"))
    return f'<div class="study-progress" role="status" data-state="{job.state}">{bar}<span>{text}</span></div>'


def _bar(what: str, done: str, total: str) -> tuple[str, str]:
    """A job's report as a bar and a text; a total above 2**20 counts bytes, a total of 0 is not known."""
    n, of = int(done), int(total)
    if not of:
        return "", f"{escape(what)} …"
    size = f"{n / 1e6:.0f} / {of / 1e6:.0f} MB" if of > 1 << 20 else f"{n} / {of}"
    return f'<progress max="{of}" value="{n}"></progress>', f"{escape(what)} · {size}"

"""What stands where in the view of studies: choice and settings on the left, then card, claims, figures, table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from llmlab.lab.settings import STUDIED
from llmlab.ui import cards, links
from llmlab.ui.controls import Translate
from llmlab.ui.form import Form
from llmlab.ui.i18n import both_words
from llmlab.ui.studies.picker import StudyPicker

MOST_FIGURES = 8
"""Figures that the page has room for."""


def none_yet() -> str:
    """What stands in place of the claims before a study has run."""
    return f'<p class="hint">{both_words("study_none")}</p>'


@dataclass(frozen=True)
class Findings:
    """Where a study's findings are shown."""

    claims: gr.HTML
    plots: list[gr.Plot]
    table: gr.Dataframe
    json: gr.DownloadButton


@dataclass(frozen=True)
class View:
    """The components of the view of studies."""

    form: Form
    picker: StudyPicker
    head: gr.HTML
    run: gr.Button
    stop: gr.Button
    progress: gr.HTML
    card_fold: gr.Accordion
    card: gr.HTML
    findings: Findings
    link: gr.Textbox
    command: gr.Code
    query: gr.Textbox

    @property
    def outputs(self) -> list[Any]:
        """Everything that opening a study may change."""
        f = self.findings
        about = [self.head, self.card, self.progress, self.query, self.command, self.card_fold]
        return [*self.form.inputs, *self.picker.outputs, *about, f.claims, *f.plots, f.table, f.json]


def draw(_: Translate) -> View:
    form = Form("study-")
    picker = StudyPicker(form)
    with gr.Row(elem_id="studies", elem_classes="two"):
        with gr.Column(scale=0, min_width=330, elem_id="study-controls", elem_classes="side"):
            gr.HTML(f'<p class="hint">{both_words("studies_info")}</p>')
            picker.draw(_)
            form.draw_model(_, links.DEFAULTS["model"])
            with gr.Accordion(_("advanced"), open=False):
                form.draw_settings(_, STUDIED)
        with gr.Column(scale=1, min_width=320, elem_id="study-main", elem_classes="wide"):
            return _draw_main(_, form, picker)


def _draw_main(_: Translate, form: Form, picker: StudyPicker) -> View:
    first = picker.known[picker.first]
    head = gr.HTML(cards.study_head(first), elem_id="study-head")
    with gr.Row(elem_classes="chips"):
        run = gr.Button(_("study_run"), variant="primary", elem_id="study-run", min_width=90)
        stop = gr.Button(_("study_stop"), variant="stop", elem_id="study-stop", min_width=90)
    progress = gr.HTML("", elem_id="study-progress")
    with gr.Accordion(_("card"), open=True, elem_id="study-card") as card_fold:
        card = gr.HTML(cards.body(first))
    findings = _draw_findings(_)
    with gr.Accordion(_("reproduce"), open=False, elem_id="study-reproduce"):
        link = gr.Textbox("", label=_("link_here"), buttons=["copy"], interactive=False, elem_id="study-link")
        at: dict[str, Any] = {"label": _("command_line"), "interactive": False, "wrap_lines": True}
        command = gr.Code("", language="shell", elem_id="study-command", **at)
    query = gr.Textbox("", visible="hidden", elem_id="study-query")
    return View(form, picker, head, run, stop, progress, card_fold, card, findings, link, command, query)


def _draw_findings(_: Translate) -> Findings:
    hidden: dict[str, Any] = {"visible": False}
    claims = gr.HTML(none_yet(), elem_id="study-claims")
    with gr.Row(elem_id="study-figures", elem_classes="figures"):
        plots = [
            gr.Plot(show_label=False, min_width=300, elem_id=f"study-figure-{i}", **hidden) for i in range(MOST_FIGURES)
        ]
    table = gr.Dataframe(interactive=False, label=_("study_table"), wrap=True, elem_id="study-table", **hidden)
    with gr.Row(elem_classes="chips"):
        file = gr.DownloadButton(_("study_json"), size="sm", elem_id="study-json", **hidden)
    return Findings(claims, plots, table, file)

"""What stands where in the playground: controls on the left, the live panel, and the account of a run in tabs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from llmlab.lab.settings import Settings
from llmlab.ui.architectures import architectures_html
from llmlab.ui.controls import Translate, setting_control
from llmlab.ui.figures import run as run_figures
from llmlab.ui.form import Form
from llmlab.ui.glossary import glossary_html
from llmlab.ui.i18n import both_words
from llmlab.ui.live.panel import LivePanel, Snapshot
from llmlab.ui.playground.samples import examples, recordings
from llmlab.ui.playground.techniques import TechniquePicker

FIRST_MODEL = "smollm2-135m"
CHIP: dict[str, Any] = {"size": "sm", "min_width": 60}
"""A small button in a row of them."""


@dataclass(frozen=True)
class Controls:
    """The left column: model, techniques and the rest of the settings."""

    form: Form
    techniques: TechniquePicker
    fit: gr.HTML


@dataclass(frozen=True)
class Prompt:
    """Above the panel: what to run, the buttons that run it, and why it cannot run."""

    run: gr.Button
    compare: gr.Button
    stop: gr.Button
    count: gr.HTML
    asked: gr.Number
    badge: gr.HTML
    refusal: gr.HTML
    examples: list[tuple[gr.Button, dict[str, Any]]]


@dataclass(frozen=True)
class Account:
    """Below the panel: the account of a run, in tabs. `whose` says of which run."""

    whose: gr.HTML
    summary: gr.Markdown
    plots: list[gr.Plot]
    passes: gr.Dataframe
    quality: gr.Markdown
    link: gr.Textbox
    command: gr.Code
    python: gr.Code
    downloads: list[gr.DownloadButton]
    query: gr.Textbox

    @property
    def outputs(self) -> list[Any]:
        """What an account changes. The link follows from the query in the browser, which knows the page's address."""
        told = [self.whose, self.summary, *self.plots, self.passes, self.quality, self.query, self.command, self.python]
        return [*told, *self.downloads]


@dataclass(frozen=True)
class View:
    """The components of the playground."""

    controls: Controls
    prompt: Prompt
    live: LivePanel
    recordings: list[tuple[gr.Button, dict[str, Any]]]
    upload: gr.UploadButton
    account: Account


def draw(_: Translate, snapshot: Snapshot) -> View:
    """Draw the view. `snapshot` gives the panel a run again from its beginning."""
    with gr.Row(elem_id="body", elem_classes="two"):
        with gr.Column(scale=0, min_width=330, elem_id="controls", elem_classes="side"):
            controls = _draw_controls(_)
        with gr.Column(scale=1, min_width=320, elem_id="main", elem_classes="wide"):
            prompt = _draw_prompt(_, controls.form)
            live = LivePanel(elem_id="live", snapshot=snapshot)
            chips, upload = _draw_recordings(_)
            account = _draw_account(_)
    return View(controls, prompt, live, chips, upload, account)


def _draw_controls(_: Translate) -> Controls:
    form = Form()
    form.draw_model(_, FIRST_MODEL)
    fit = gr.HTML("", elem_id="fit")
    with gr.Accordion(_("models_run"), open=False, elem_id="architectures"):
        gr.HTML(architectures_html())
    techniques = TechniquePicker(form)
    techniques.draw(_)
    with gr.Accordion(_("advanced"), open=False, elem_id="advanced"):
        form.draw_settings(_, [k.name for k in Settings.knobs()])
        about = {"label": _("quality_text"), "info": _("quality_text_info"), "elem_id": "quality-text"}
        form.add("quality_text", gr.Textbox("", lines=2, max_lines=4, **about))
    return Controls(form, techniques, fit)


def _draw_prompt(_: Translate, form: Form) -> Prompt:
    form.add("prompt", setting_control("prompt", _, lines=3, max_lines=8, placeholder=_("prompt_placeholder")))
    count = gr.HTML("", elem_id="prompt-count")
    asked = gr.Number(0, precision=0, visible="hidden")  # see gradio_events.numbered
    with gr.Row(elem_id="buttons"):
        run = gr.Button(_("run"), variant="primary", elem_id="run", min_width=90)
        compare = gr.Button(_("ab"), elem_id="ab", min_width=90)
        stop = gr.Button(_("stop"), variant="stop", elem_id="stop", min_width=90)
    badge = gr.HTML("", elem_id="stack-badge")
    refusal = gr.HTML("", elem_id="refusal")
    with gr.Accordion(_("examples"), open=False, elem_id="examples"), gr.Row(elem_classes="chips"):
        chips = _chips(_, "example", examples())
    return Prompt(run, compare, stop, count, asked, badge, refusal, chips)


def _draw_recordings(_: Translate) -> tuple[list[tuple[gr.Button, dict[str, Any]]], gr.UploadButton]:
    with gr.Accordion(_("recorded"), open=True, elem_id="recorded"):
        with gr.Row(elem_classes="chips"):
            chips = _chips(_, "recorded", recordings())
            upload = gr.UploadButton(_("open_trace"), file_types=[".jsonl"], elem_id="open-trace", **CHIP)
        gr.HTML(f'<p class="hint">{both_words("recorded_info")}</p>')
    return chips, upload


def _chips(_: Translate, kind: str, items: list[dict[str, Any]]) -> list[tuple[gr.Button, dict[str, Any]]]:
    return [(gr.Button(_(f"{kind}-{i['id']}"), elem_id=f"{kind}-{i['id']}", **CHIP), i) for i in items]


def _draw_account(_: Translate) -> Account:
    code: dict[str, Any] = {"interactive": False, "wrap_lines": True}
    whose = gr.HTML("", elem_id="whose")
    with gr.Tabs(elem_id="after"):
        with gr.Tab(_("happened"), id="happened"):
            summary = gr.Markdown(_("after"), elem_id="story", sanitize_html=True)
        with gr.Tab(_("charts"), id="charts"), gr.Row(elem_id="figures", elem_classes="figures"):
            plots = [
                gr.Plot(show_label=False, min_width=300, elem_id=f"figure-{i}") for i in range(len(run_figures.DRAWN))
            ]
        with gr.Tab(_("rounds"), id="rounds"):
            passes = gr.Dataframe(interactive=False, show_label=False, wrap=True, elem_id="rounds-table")
        with gr.Tab(_("quality"), id="quality"):
            quality = gr.Markdown("", elem_id="quality-table", sanitize_html=True)
        with gr.Tab(_("reproduce"), id="reproduce"):
            link = gr.Textbox("", label=_("link"), buttons=["copy"], interactive=False, elem_id="link")
            command = gr.Code("", language="shell", label=_("command_line"), elem_id="command", **code)
            python = gr.Code("", language="python", label="Python", elem_id="python", **code)
        with gr.Tab(_("export"), id="export"), gr.Row(elem_classes="chips"):
            downloads = [
                gr.DownloadButton(_(f"export_{kind}"), elem_id=f"export-{kind}", **CHIP)
                for kind in ("trace", "record", "rounds")
            ]
    with gr.Accordion(_("glossary"), open=False, elem_id="glossary"):
        gr.HTML(glossary_html())
    gr.HTML(f'<p class="hint">{both_words("help")} {both_words("offline_note")}</p>', elem_id="help")
    query = gr.Textbox("", visible="hidden", elem_id="query")
    return Account(whose, summary, plots, passes, quality, link, command, python, downloads, query)

"""The page: a header and two views over one engine."""

from __future__ import annotations

import json
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from llmlab.assets import ASSETS
from llmlab.lab.queue import Engine
from llmlab.ui.cards import search_index
from llmlab.ui.chosen_language import ChosenLanguageFirst
from llmlab.ui.exports import Exports
from llmlab.ui.form import Form
from llmlab.ui.gradio_events import SMALL, language_of
from llmlab.ui.i18n import both_words, catalogue, word
from llmlab.ui.machine import hardware_line
from llmlab.ui.playground import layout as playground_layout
from llmlab.ui.playground.handlers import Playground, snapshot
from llmlab.ui.playground.samples import translations
from llmlab.ui.studies import layout as studies_layout
from llmlab.ui.studies.handlers import Studies
from llmlab.ui.theme import theme

HERE = Path(__file__).parent
VIEWS = ("playground", "studies")


class Page:
    """Builds the page over an engine. After `build`, `playground` and `studies` hold the handlers of the views."""

    playground: Playground
    studies: Studies

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.i18n = gr.I18n(**translations())

    @property
    def form(self) -> Form:
        """The playground's controls, whose values the endpoints /run and /compare take in order."""
        return self.playground.form

    def build(self) -> gr.Blocks:
        _, exports = self.i18n, Exports()
        demo = gr.Blocks(title="llmlab", analytics_enabled=False, delete_cache=(3600, 3600))
        with demo:
            with gr.Row(elem_id="header"):
                gr.HTML(f'<h1>llmlab</h1><p class="tagline">{both_words("tagline")}</p>', elem_id="title")
                gr.HTML(view_switch(), elem_id="views")
                self.machine = gr.HTML("", elem_id="machine")
                other = gr.Button(_("other_language"), size="sm", elem_id="language", scale=0, min_width=80)
                copy_run, copy_study = [
                    gr.Button(_("copy_link"), size="sm", elem_id=name, elem_classes="copy", scale=0, min_width=110)
                    for name in ("copy-link", "copy-study-link")
                ]
            # Two views, of which the style sheet hides one: the live panel must stay mounted to miss no message.
            view = playground_layout.draw(_, partial(snapshot, self.engine))
            self.playground = Playground(self.engine, exports, view)
            self.studies = Studies(self.engine, exports, studies_layout.draw(_))
            self.playground.wire(copy_run)
            self.studies.wire(copy_study)
            self._wire_arrival(demo)
            self._wire_language(other)
        demo.queue(max_size=32, api_open=False, default_concurrency_limit=16)
        # Gradio looks for new events a thousand times a second, each time taking the interpreter from the engine.
        demo._queue.sleep_when_free = 0.02
        return demo

    def _wire_arrival(self, demo: gr.Blocks) -> None:
        playground, studies = self.playground, self.studies
        shown = [self.machine, *playground.shown, *studies.shown]
        arrived = demo.load(self.arrive, None, shown, **SMALL)
        refreshed = playground.then_refresh(arrived)
        refreshed.then(**playground.show_link).then(**studies.show_link)
        demo.unload(playground.halt)

    def _wire_language(self, button: gr.Button) -> None:
        """The button loads the page anew in the other language, with the link of what the controls show."""
        playground, studies = self.playground, self.studies
        queries = [playground.view.account.query, studies.view.query]
        asked = button.click(playground.told, playground.form.inputs, queries[0], **SMALL)
        both = asked.then(studies.told, studies.form.inputs, [queries[1], studies.view.command], **SMALL)
        both.then(None, queries, None, js="(run, study) => llmlabLanguage(run, study)", show_progress="hidden")

    def arrive(self, request: gr.Request) -> dict[Any, Any]:
        """The first sight of both views: as drawn, or as the link asks for."""
        lang = language_of(request)
        parameters = {k: v for k, v in dict(request.query_params or {}).items() if not k.startswith("__")}
        shown = self.playground.arrive(parameters, lang) | self.studies.arrive(parameters, lang)
        for form in (self.playground.form, self.studies.form):
            for model, update in form.show_here(lang).items():
                shown[model] = {**update, **({"value": shown[model]} if model in shown else {})}
        return shown | {self.machine: f'<p class="machine">{escape(hardware_line(lang))}</p>'}


def view_switch() -> str:
    """The switch between the page's two views; page.js moves it."""
    buttons = "".join(
        f'<button type="button" data-view="{v}" aria-pressed="{str(v == VIEWS[0]).lower()}">'
        f"{both_words(f'view_{v}')}</button>"
        for v in VIEWS
    )
    return f'<nav class="views" aria-label="llmlab">{buttons}</nav>'


def launch_options(page: Page) -> dict[str, Any]:
    """What `launch` needs besides host and port: looks, keyboard, languages, and nothing from any other host."""
    css = (HERE / "page.css").read_text(encoding="utf-8")
    words = json.dumps({lang: {"copied": word("copied", lang)} for lang in catalogue()}, ensure_ascii=False)
    index = json.dumps(search_index(), ensure_ascii=False).replace("</", "<\\/")
    script = (HERE / "page.js").read_text(encoding="utf-8").replace("WORDS", words).replace("TECHNIQUES", index)
    return {
        "theme": theme(),
        # In the head rather than as `css`, which Gradio confines to what lies inside its container.
        "head": f"<style>{css}</style><script>{script}</script>",
        "i18n": page.i18n,
        "pwa": True,
        "favicon_path": str(ASSETS / "icon.png"),
        "run_history": False,
        "ssr_mode": False,
        "footer_links": [],
        "max_file_size": "8mb",
        "show_error": True,
        "state_session_capacity": 500,
        "enable_monitoring": False,
        "app_kwargs": {"middleware": [Middleware(ChosenLanguageFirst)]},
        "share": False,
        "quiet": True,
    }

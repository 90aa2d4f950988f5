"""The page: a header and two views over one engine."""

from __future__ import annotations

import json
import os
import webbrowser
from collections.abc import Iterable, Iterator
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import transformers  # noqa: F401  # here, by one thread: two that import it at once find it half made
from starlette.middleware import Middleware

from llmlab.assets import ASSETS
from llmlab.lab.queue import Engine
from llmlab.ui.blocks import MOST_EVENTS, Blocks
from llmlab.ui.cards import search_index
from llmlab.ui.chosen_language import ChosenLanguageFirst
from llmlab.ui.exports import Exports
from llmlab.ui.form import Form
from llmlab.ui.gradio_events import SMALL, language_of
from llmlab.ui.host_names import HostNames, OwnNamesOnly
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

    demo: gr.Blocks
    playground: Playground
    studies: Studies

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.exports = Exports()
        self.i18n = gr.I18n(**translations())

    @property
    def form(self) -> Form:
        """The playground's controls, whose values the endpoints /run and /compare take in order."""
        return self.playground.form

    def build(self) -> gr.Blocks:
        _, exports = self.i18n, self.exports
        demo = Blocks(title="llmlab", analytics_enabled=False, delete_cache=(3600, 3600))
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
        self.demo = demo.queued()
        return demo

    def close(self) -> None:
        """Stop what runs and waits, and the server; the files that visitors could fetch go."""
        self.engine.close()
        self.demo.close(verbose=False)
        self.exports.close()

    def _wire_arrival(self, demo: gr.Blocks) -> None:
        playground, studies = self.playground, self.studies
        shown = [self.machine, *playground.shown, *studies.shown]
        arrived = demo.load(self.arrive, None, shown, **SMALL)
        refreshed = playground.then_refresh(arrived)
        refreshed.then(**playground.show_link).then(**studies.show_link)
        # No `unload`: for it Gradio holds a connection open in every tab, beside the one of a run, and a browser opens
        # six to a host in all. Three tabs that run would get no answer. Who leaves is missed by the run's own stream.

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


def serve(page: Page, host: str, ports: Iterator[int], names: Iterable[str], browser: bool) -> tuple[str, str]:
    """Serve the page at the first of `ports` that is still free, from threads of its own; returns once it answers.

    (its address, which names it answers to, in a sentence or empty). Raises whatever `ports` raises at its end.
    """
    demo, known = page.build(), HostNames.of(host, names, os.environ)
    for port in ports:
        try:
            demo.launch(
                server_name=f"[{host}]" if ":" in host else host,
                server_port=port,
                inbrowser=False,
                prevent_thread_lock=True,
                **launch_options(page, known),
            )
        except OSError:  # somebody else was faster
            continue
        url = str(demo.local_url).rstrip("/")
        if browser:
            webbrowser.open(url)
        return url, known.told()
    raise AssertionError("ports end by raising")


def launch_options(page: Page, names: HostNames | None = None) -> dict[str, Any]:
    """What `launch` needs besides host and port: looks, keyboard, languages, to which names the page answers (by
    default loopback's), and nothing from any other host."""
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
        "share": False,
        "max_threads": MOST_EVENTS,
        "app_kwargs": {
            "middleware": [
                Middleware(OwnNamesOnly, names=names or HostNames.of("127.0.0.1")),
                Middleware(ChosenLanguageFirst),
            ]
        },
        "quiet": True,
    }

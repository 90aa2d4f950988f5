"""The page: controls on the left, the live panel on the right, and after a run its account in tabs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from llmlab.assets import ASSETS
from llmlab.errors import Refused
from llmlab.lab.queue import Engine, Run
from llmlab.lab.records import record
from llmlab.lab.settings import Settings
from llmlab.measure import trace
from llmlab.measure.hardware import free_memory, hardware
from llmlab.models.loading import catalog, environment, fit, locate
from llmlab.models.loading.fit import gigabytes
from llmlab.runtime.events import Event, Started
from llmlab.ui import figures, links
from llmlab.ui.cards import search_index, switch_rules
from llmlab.ui.controls import Form
from llmlab.ui.exports import Exports
from llmlab.ui.i18n import both, both_words, catalogue, word
from llmlab.ui.live.panel import LivePanel, message, recorded
from llmlab.ui.run_summary import quality_table, run_summary
from llmlab.ui.studies import PRIVATE, Studies, language_of, owner_of, refusal

HERE = Path(__file__).parent
PERIOD = 0.11
"""Seconds between messages to the live panel."""
RUNS = ASSETS / "runs"


@cache
def recordings() -> list[dict[str, Any]]:
    """The runs that ship with the lab: id, file and label in both languages, the first visit's run first."""
    return json.loads((RUNS / "index.json").read_text(encoding="utf-8"))


@cache
def examples() -> list[dict[str, Any]]:
    return json.loads((ASSETS / "texts" / "prompts.json").read_text(encoding="utf-8"))


def translations() -> dict[str, dict[str, str]]:
    """Every label of the page by language and key, those of examples and recorded runs included."""
    words = {lang: dict(known) for lang, known in catalogue().items()}
    for kind, items in (("example", examples()), ("recorded", recordings())):
        for item in items:
            for lang, known in words.items():
                known[f"{kind}-{item['id']}"] = item["label"][lang]
    return words


class Page:
    """Builds the page over an engine; its methods are the handlers of the page's events."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.form = Form()
        self.i18n = gr.I18n(**translations())
        self.refused: dict[str, str] = {}
        self.exports = Exports()
        self.studies = Studies(engine, self.exports)

    # Drawing ------------------------------------------------------------------------------------------------------

    def build(self) -> gr.Blocks:
        _, form = self.i18n, self.form
        with gr.Blocks(title="llmlab", analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
            with gr.Row(elem_id="header"):
                gr.HTML(f'<h1>llmlab</h1><p class="tagline">{both_words("tagline")}</p>', elem_id="title")
                gr.HTML(views(), elem_id="views")
                self.machine = gr.HTML("", elem_id="machine")
                copies = [
                    gr.Button(_("copy_link"), size="sm", elem_id=name, elem_classes="copy", scale=0, min_width=110)
                    for name in ("copy-link", "copy-study-link")
                ]
            # Two views, of which the style sheet hides one: the live panel must stay mounted to miss no message.
            with gr.Row(elem_id="body", elem_classes="two"):
                with gr.Column(scale=0, min_width=330, elem_id="controls", elem_classes="side"):
                    form.draw_model(_, "smollm2-135m")
                    form.draw_techniques(_)
                    with gr.Accordion(_("advanced"), open=False, elem_id="advanced"):
                        form.draw_advanced(_)
                with gr.Column(scale=1, min_width=320, elem_id="main", elem_classes="wide"):
                    self._draw_main()
            self.studies.draw(_)
            self._wire(demo, copies[0])
            self.studies.wire(copies[1])
        demo.queue(max_size=32, api_open=False, default_concurrency_limit=16)
        # Gradio looks for new events a thousand times a second, each time taking the interpreter from the engine.
        demo._queue.sleep_when_free = 0.02
        return demo

    def _draw_main(self) -> None:
        _ = self.i18n
        place = _("prompt_placeholder")
        self.form.add(
            "prompt", gr.Textbox("", label=_("prompt"), placeholder=place, lines=3, max_lines=8, elem_id="prompt")
        )
        with gr.Row(elem_id="buttons"):
            self.run = gr.Button(_("run"), variant="primary", elem_id="run", min_width=90)
            self.ab = gr.Button(_("ab"), elem_id="ab", min_width=90)
            self.stop = gr.Button(_("stop"), variant="stop", elem_id="stop", min_width=90)
        self.form.badge = gr.HTML("", elem_id="stack-badge")
        self.refusal = gr.HTML("", elem_id="refusal")
        with gr.Accordion(_("examples"), open=False, elem_id="examples"), gr.Row(elem_classes="chips"):
            self.examples = [
                (gr.Button(_(f"example-{e['id']}"), size="sm", min_width=60, elem_id=f"example-{e['id']}"), e)
                for e in examples()
            ]
        self.live = LivePanel(elem_id="live", snapshot=self.snapshot)
        with gr.Accordion(_("recorded"), open=True, elem_id="recorded"):
            with gr.Row(elem_classes="chips"):
                self.recordings = [
                    (gr.Button(_(f"recorded-{r['id']}"), size="sm", min_width=60, elem_id=f"recorded-{r['id']}"), r)
                    for r in recordings()
                ]
                self.upload = gr.UploadButton(
                    _("open_trace"), file_types=[".jsonl"], size="sm", min_width=60, elem_id="open-trace"
                )
            gr.HTML(f'<p class="hint">{both_words("recorded_info")}</p>')
        with gr.Tabs(elem_id="after"):
            with gr.Tab(_("happened"), id="happened"):
                self.story = gr.Markdown(_("after"), elem_id="story", sanitize_html=True)
            with gr.Tab(_("charts"), id="charts"), gr.Row(elem_id="figures", elem_classes="figures"):
                self.plots = [
                    gr.Plot(show_label=False, min_width=300, elem_id=f"figure-{i}") for i in range(len(figures.DRAWN))
                ]
            with gr.Tab(_("rounds"), id="rounds"):
                self.rounds = gr.Dataframe(interactive=False, show_label=False, wrap=True, elem_id="rounds-table")
            with gr.Tab(_("quality"), id="quality"):
                self.quality = gr.Markdown("", elem_id="quality-table", sanitize_html=True)
            with gr.Tab(_("reproduce"), id="reproduce"):
                self.link = gr.Textbox("", label=_("link"), buttons=["copy"], interactive=False, elem_id="link")
                self.command = gr.Code(
                    "", language="shell", label=_("command_line"), interactive=False, wrap_lines=True, elem_id="command"
                )
                self.python = gr.Code(
                    "", language="python", label="Python", interactive=False, wrap_lines=True, elem_id="python"
                )
            with gr.Tab(_("export"), id="export"), gr.Row(elem_classes="chips"):
                self.downloads = [
                    gr.DownloadButton(_(f"export_{kind}"), size="sm", min_width=60, elem_id=f"export-{kind}")
                    for kind in ("trace", "record", "rounds")
                ]
        gr.HTML(f'<p class="hint">{both_words("help")} {both_words("offline_note")}</p>', elem_id="help")
        self.query = gr.Textbox("", visible="hidden", elem_id="query")

    def _wire(self, demo: gr.Blocks, copy: gr.Button) -> None:
        form = self.form
        after = [
            self.story,
            *self.plots,
            self.rounds,
            self.quality,
            self.query,
            self.command,
            self.python,
            *self.downloads,
        ]
        show_link = {"fn": None, "inputs": [self.query], "outputs": [self.link], "js": "(q) => llmlabLink(q)"}
        for button, compare in ((self.run, False), (self.ab, True)):
            button.click(lambda: "", None, self.refusal, **PRIVATE)
            ran = button.click(
                self.starter(compare),
                form.inputs,
                self.live,  # alone: Gradio makes every other output of a stream anew with each message
                show_progress="hidden",
                concurrency_limit=16,
                concurrency_id="engine",
                api_name="compare" if compare else "run",
                api_visibility="undocumented",
            )
            ran.then(self.finish, None, [self.refusal, *after], **PRIVATE).then(**show_link, show_progress="hidden")
        self.stop.click(self.halt, None, None, **PRIVATE)
        for button, example in self.examples:
            button.click(lambda e=example: e["prompt"], None, form.fields["prompt"], **PRIVATE)
        shown = [*form.inputs, self.live, self.refusal, *after]
        for button, item in self.recordings:
            button.click(self.player(item), None, shown, **PRIVATE).then(**show_link, show_progress="hidden")
        opened = self.upload.upload(self.open_trace, self.upload, shown, **PRIVATE)
        opened.then(**show_link, show_progress="hidden")
        copy.click(self.share, form.inputs, self.query, **PRIVATE).then(
            fn=None, inputs=[self.query], outputs=[self.link], js="(q) => llmlabCopy(q)", show_progress="hidden"
        )
        switches = [c.change for n, c in form.fields.items() if n not in ("prompt", "own")]
        watched = [*form.watched, form.fit]
        gr.on(switches, self.refresh, form.inputs, watched, trigger_mode="always_last", **PRIVATE)
        demo.load(self.arrive, None, [self.machine, *shown, *self.studies.shown], **PRIVATE).then(
            self.refresh, form.inputs, watched, **PRIVATE
        ).then(**show_link, show_progress="hidden").then(**self.studies.show_link, show_progress="hidden")
        demo.unload(self.halt)

    # Handlers -----------------------------------------------------------------------------------------------------

    def arrive(self, request: gr.Request) -> dict[Any, Any]:
        """The first view: a recorded run with its settings, or those that the link asks for."""
        lang = language_of(request)
        parameters = {k: v for k, v in dict(request.query_params or {}).items() if not k.startswith("__")}
        first = recordings()[0]
        item = next((r for r in recordings() if r["id"] == parameters.get("run")), first)
        events = trace.load(RUNS / item["file"])
        shown = self._replayed(events, item["label"][lang], lang)
        if set(parameters) & {*links.SHORT.values(), "t"} and "study" not in parameters:
            try:
                settings = links.from_query(parameters, links.settings_of(events[0]))
                shown |= self.form.write(settings) | {self.query: links.to_query(settings)}
            except Refused as e:
                shown[self.refusal] = refusal(str(e))
        shown |= self.studies.arrive(parameters)
        return shown | {self.machine: f'<p class="machine">{escape(hardware_line(lang))}</p>'}

    def refresh(self, *values: Any) -> list[Any]:
        """What follows from a changed control: greyed switches, badge, and whether the model fits."""
        v = dict(zip(self.form.fields, values, strict=True))
        entry = catalog.MODELS.get(v["model"])
        own = (v["own"] or "").strip()
        abilities = self.engine.lab.model_cache.capabilities(v["model"]) if entry and not own else None
        fit = "" if entry is None or own else fit_html(entry, v["weights"], int(v["max_new_tokens"] or 0) + 512)
        return [*self.form.refresh(values, abilities), fit]

    def starter(self, compare: bool) -> Callable[..., Iterator[dict[str, Any]]]:
        """The handler of Run or of Run A/B."""

        def start(request: gr.Request, *values: Any) -> Iterator[dict[str, Any]]:
            """Run, and pass the run's events on to the panel about ten times a second."""
            owner = owner_of(request)
            try:
                run = self.engine.start(self.form.read(values), compare, owner)
            except Refused as e:
                self.refused[owner] = str(e)
                yield gr.skip()
                return
            with closing(run.tail(PERIOD)) as tail:  # a visitor who has left needs no more tokens
                for seq, events in enumerate(tail):
                    yield message(run.id, seq, events, run.state, run.note, reset=seq == 0)

        return start

    def snapshot(self, run_id: str) -> dict[str, Any] | None:
        """All of a run so far, for a panel that has missed a message."""
        run = self.engine.find(run_id)
        if run is None:
            return None
        return message(run.id, 0, list(run.events), run.state, run.note, reset=True)

    def halt(self, request: gr.Request) -> None:
        """Stop what the visitor has running or waiting: asked to, or because the tab was closed."""
        self.engine.stop(owner_of(request))

    def finish(self, request: gr.Request) -> dict[Any, Any]:
        """The account of the visitor's last run, whole or stopped; or why there was none."""
        if owner_of(request) in self.refused:
            return {self.refusal: refusal(self.refused.pop(owner_of(request)))}
        run: Run | None = self.engine.latest(owner_of(request))
        if run is None or not any(isinstance(e, Started) for e in run.events):
            return {self.story: gr.skip()}
        return self._account(list(run.events), run.settings, run.compare, language_of(request))

    def player(self, item: dict[str, Any]) -> Callable[[gr.Request], dict[Any, Any]]:
        """The handler of a recorded run's button."""

        def play(request: gr.Request) -> dict[Any, Any]:
            lang = language_of(request)
            return self._replayed(trace.load(RUNS / item["file"]), item["label"][lang], lang)

        return play

    def open_trace(self, path: str, request: gr.Request) -> dict[Any, Any]:
        """A visitor's own trace; refused in a sentence, with what is on the page left as it was."""
        try:
            events = trace.load(path)
            return self._replayed(events, Path(path).name[:60], language_of(request))
        except Refused as e:
            return {self.refusal: refusal(str(e))}

    def share(self, *values: Any) -> str:
        try:
            return links.to_query(self.form.read(values))
        except Refused as e:
            raise gr.Error(str(e), print_exception=False) from e

    # Accounts -----------------------------------------------------------------------------------------------------

    def _replayed(self, events: list[Event], name: str, lang: str) -> dict[Any, Any]:
        """Controls, panel and account of a finished trace."""
        settings = links.settings_of([e for e in events if isinstance(e, Started)][-1])
        account = self._account(events, settings, len(trace.lanes(events)) > 1, lang)
        return self.form.write(settings) | {self.live: recorded(events, name), self.refusal: ""} | account

    def _account(self, events: list[Event], settings: Settings, compare: bool, lang: str) -> dict[Any, Any]:
        return {
            self.story: run_summary(events, lang),
            **{
                plot: gr.update(value=drawn, visible=drawn is not None)
                for plot, drawn in zip(self.plots, figures.all_of(events, lang), strict=True)
            },
            self.rounds: {"headers": [word(k, lang) for k in ROUNDS], "data": _table(events, lang)},
            self.quality: quality_table(trace.quality(events), lang),
            self.query: links.to_query(settings),
            self.command: links.command_line(settings, compare),
            self.python: links.python(settings),
            **dict(zip(self.downloads, self._files(events), strict=True)),
        }

    def _files(self, events: list[Event]) -> list[str]:
        lanes = trace.lanes(events)
        value: Any = {lane: record(run) for lane, run in lanes.items()}
        if len(lanes) == 1:
            value = next(iter(value.values()))
        last = list(lanes.values())[-1]
        texts = {
            "llmlab-trace.jsonl": trace.dumps(events),
            "llmlab-run.json": json.dumps(value, ensure_ascii=False, indent=2) + "\n",
            "llmlab-rounds.csv": trace.rounds_csv(last),
        }
        return self.exports.write(texts)


ROUNDS = ("r_lane", "r_round", "r_t", "r_ms", "r_drafted", "r_accepted", "r_tokens", "r_text", "r_rows", "r_layers")


def _table(events: Sequence[Event], lang: str) -> list[list[Any]]:
    rows = []
    for lane, run in trace.lanes(events).items():
        name = word(lane, lang) if lane in ("baseline", "stack") else lane
        for n, t, seconds, drafted, accepted, tokens, text, kept, _, layers in trace.rounds(run):
            shown = [name, n, round(t, 3), round(seconds * 1000, 1), drafted, accepted, tokens]
            rows.append([*shown, text, kept, round(layers, 1)])
    return rows


def views() -> str:
    """The switch between the page's two views; page.js moves it."""
    buttons = "".join(
        f'<button type="button" data-view="{v}" aria-pressed="{str(v == "playground").lower()}">'
        f"{both_words(f'view_{v}')}</button>"
        for v in ("playground", "studies")
    )
    return f'<nav class="views" aria-label="llmlab">{buttons}</nav>'


def hardware_line(lang: str) -> str:
    """The machine in a few words, with what is free on it now."""
    h = hardware()
    sizes = {"free": gigabytes(free_memory(h.device)), "total": gigabytes(h.total)}
    if h.device == "cpu":
        return word("hardware_cpu", lang, cores=h.cores, **sizes)
    return word("hardware_gpu", lang, name=h.name, **sizes)


def fit_html(entry: catalog.Entry, weights: str, rows: int) -> str:
    """Whether a catalogue model fits now: breakdown and a bar, or the refusal with its way out."""
    h = hardware()
    free = free_memory(h.device)
    try:
        f = fit.require_fit(entry.size, weights, rows, free, entry.title, entry.formats, catalog.open_sizes())
    except Refused as e:
        return refusal(str(e))
    shares = {"w": 100 * f.weights / max(free, 1), "kv": 100 * f.kv / max(free, 1)}
    bar = "".join(f'<i class="{name}" style="width:{max(share, 0.5):.1f}%"></i>' for name, share in shares.items())
    sizes = {"weights": gigabytes(f.weights), "kv": gigabytes(f.kv), "free": gigabytes(free)}
    here = locate.downloaded(entry)

    def about(lang: str) -> str:
        told = [word("fits_about", lang, licence=entry.licence, parameters=f"{entry.parameters / 1e6:.0f}")]
        if entry.drafts:
            told.append(word("drafts", lang, names=", ".join(entry.drafts)))
        if entry.gated:
            told.append(word("gated", lang))
        if not here:
            size = f" ({gigabytes(entry.mirror.nbytes)})" if entry.mirror else ""
            told.append(word("missing", lang) if environment.offline() else word("not_here", lang, size=size))
        return " · ".join(told)

    fits = both(*(word("fits", lang, title=entry.title, **sizes) for lang in catalogue()))
    return f'<div class="bar">{bar}</div><p class="hint">{fits}<br>{both(*map(about, catalogue()))}</p>'


def launch_options(page: Page) -> dict[str, Any]:
    """What `launch` needs besides host and port: looks, keyboard, languages, and nothing from any other host."""
    css = (HERE / "page.css").read_text(encoding="utf-8") + switch_rules()
    words = json.dumps({lang: {"copied": word("copied", lang)} for lang in catalogue()}, ensure_ascii=False)
    index = json.dumps(search_index(), ensure_ascii=False).replace("</", "<\\/")
    script = (HERE / "page.js").read_text(encoding="utf-8").replace("WORDS", words).replace("TECHNIQUES", index)
    return {
        "theme": gr.themes.Default(primary_hue="blue", neutral_hue="slate"),
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
        "quiet": True,
    }

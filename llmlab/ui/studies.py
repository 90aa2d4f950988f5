"""The page's second view: choose a study, turn its knobs, run it on the engine's one thread, read what it found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from html import escape
from typing import Any

import gradio as gr

from llmlab.errors import Refused
from llmlab.lab.findings import cell
from llmlab.lab.queue import Engine, Job, StudyRun
from llmlab.lab.settings import Settings
from llmlab.lab.study import Study, make_study, studies
from llmlab.measure.hardware import cores
from llmlab.models.loading import catalog
from llmlab.runtime.configurable import title
from llmlab.ui import cards, figures, links
from llmlab.ui.controls import Translate, draw_knobs, model_controls
from llmlab.ui.exports import Exports
from llmlab.ui.findings import claims_html
from llmlab.ui.i18n import both, both_words, catalogue, language, word

PERIOD = 0.3
"""Seconds between two looks at a study's progress."""
MOST = 8
"""Figures that the page has room for."""
BENCHES = ("sweep", "classification", "cascade", "serving")
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
"""How the page's own small events are wired."""


def refusal(text: str) -> str:
    return f'<p class="refusal" role="alert">{escape(text)}</p>'


def owner_of(request: gr.Request) -> str:
    return str(request.session_hash)


def language_of(request: gr.Request) -> str:
    return language(request.headers.get("accept-language"))


class Studies:
    """Draws the view over an engine; its methods are the handlers of the view's events."""

    def __init__(self, engine: Engine, exports: Exports) -> None:
        self.engine = engine
        self.exports = exports
        self.known = studies()
        self.fields: dict[str, Any] = {}
        self.benches: dict[str, gr.Radio] = {}
        self.boxes: dict[str, gr.Group] = {}
        self.refused: set[str] = set()
        self.first = next(n for bench in self._benches() for n, s in self.known.items() if s.bench == bench)

    def _benches(self) -> list[str]:
        """Every kind of study there is, in the page's order."""
        return sorted({s.bench for s in self.known.values()}, key=lambda b: ([*BENCHES, b].index(b), b))

    def add(self, name: str, component: Any) -> Any:
        self.fields[name] = component
        return component

    @property
    def inputs(self) -> list[Any]:
        return list(self.fields.values())

    # Drawing ------------------------------------------------------------------------------------------------------

    def draw(self, _: Translate) -> None:
        with gr.Row(elem_id="studies", elem_classes="two"):
            with gr.Column(scale=0, min_width=330, elem_id="study-controls", elem_classes="side"):
                self._draw_controls(_)
            with gr.Column(scale=1, min_width=320, elem_id="study-main", elem_classes="wide"):
                self._draw_main(_)

    def _draw_controls(self, _: Translate) -> None:
        gr.HTML(f'<p class="hint">{both_words("studies_info")}</p>')
        self.add("study", gr.Textbox(self.first, visible="hidden", elem_id="study-id"))
        for bench in self._benches():
            choices = [(title(s), n) for n, s in self.known.items() if s.bench == bench]
            at = {"label": _(f"bench_{bench}"), "info": _(f"bench_{bench}_info"), "elem_id": f"bench-{bench}"}
            value = self.first if self.known[self.first].bench == bench else None
            with gr.Group(elem_classes="family"):
                self.benches[bench] = gr.Radio(choices, value=value, **at)
        for name, study in self.known.items():
            with gr.Group(visible=name == self.first, elem_classes="box", elem_id=f"study-box-{name}") as box:
                draw_knobs(study, _, self.add, f"study-{name}")
            self.boxes[name] = box
        model, weights = model_controls(_, links.DEFAULTS["model"], "study-")
        self.add("model", model)
        self.add("weights", weights)
        with gr.Accordion(_("advanced"), open=False):
            info = _("own_model_info")
            self.add("own", gr.Textbox("", label=_("own_model"), info=info, max_lines=1, elem_id="study-own"))
            devices = ["auto", "cpu", "cuda"]
            self.add("device", gr.Dropdown(devices, value="auto", label=_("device"), elem_id="study-device"))
            self.add("seed", gr.Number(0, precision=0, label=_("seed"), elem_id="study-seed"))
            info = _("threads_info")
            self.add("threads", gr.Slider(0, cores(), 0, step=1, label=_("threads"), info=info))

    def _draw_main(self, _: Translate) -> None:
        first = self.known[self.first]
        self.head = gr.HTML(cards.study_head(first), elem_id="study-head")
        with gr.Row(elem_classes="chips"):
            self.run = gr.Button(_("study_run"), variant="primary", elem_id="study-run", min_width=90)
            self.stop = gr.Button(_("study_stop"), variant="stop", elem_id="study-stop", min_width=90)
        self.progress = gr.HTML("", elem_id="study-progress")
        with gr.Accordion(_("card"), open=True, elem_id="study-card") as self.folded:
            self.card = gr.HTML(cards.body(first))
        self.claims = gr.HTML(f'<p class="hint">{both_words("study_none")}</p>', elem_id="study-claims")
        with gr.Row(elem_id="study-figures", elem_classes="figures"):
            self.plots = [
                gr.Plot(show_label=False, visible=False, min_width=300, elem_id=f"study-figure-{i}")
                for i in range(MOST)
            ]
        self.table = gr.Dataframe(
            interactive=False, visible=False, label=_("study_table"), wrap=True, elem_id="study-table"
        )
        with gr.Row(elem_classes="chips"):
            self.json = gr.DownloadButton(_("study_json"), visible=False, size="sm", elem_id="study-json")
        with gr.Accordion(_("reproduce"), open=False, elem_id="study-reproduce"):
            self.link = gr.Textbox("", label=_("link_here"), buttons=["copy"], interactive=False, elem_id="study-link")
            at: dict[str, Any] = {"label": _("command_line"), "interactive": False, "wrap_lines": True}
            self.command = gr.Code("", language="shell", elem_id="study-command", **at)
        self.query = gr.Textbox("", visible="hidden", elem_id="study-query")

    @property
    def results(self) -> list[Any]:
        return [self.folded, self.claims, *self.plots, self.table, self.json]

    @property
    def shown(self) -> list[Any]:
        """Everything that opening a study may change."""
        about = [self.head, self.card, self.progress, self.query, self.command]
        return [*self.inputs, *self.benches.values(), *self.boxes.values(), *about, *self.results]

    @property
    def show_link(self) -> dict[str, Any]:
        """The step that writes the view's link into its box and, while the view is open, into the address bar."""
        return {"fn": None, "inputs": [self.query], "outputs": [self.link], "js": "(q) => llmlabStudyLink(q)"}

    def wire(self, copy: gr.Button) -> None:
        show_link = self.show_link
        told = [self.query, self.command]
        for radio in self.benches.values():
            radio.input(self.choose, radio, self.shown, **PRIVATE).then(self.told, self.inputs, told, **PRIVATE).then(
                **show_link, show_progress="hidden"
            )
        ran = self.run.click(
            self.start,
            self.inputs,
            self.progress,  # alone: Gradio makes every other output of a stream anew with each message
            show_progress="hidden",
            concurrency_limit=16,
            concurrency_id="engine",
            api_name="study",
            api_visibility="undocumented",
        )
        ran.then(self.finish, self.fields["study"], self.shown, **PRIVATE).then(
            self.told, self.inputs, told, **PRIVATE
        ).then(**show_link, show_progress="hidden")
        self.stop.click(self.halt, None, None, **PRIVATE)
        copy.click(self.told, self.inputs, told, **PRIVATE).then(
            fn=None, inputs=[self.query], outputs=[self.link], js="(q) => llmlabCopy(q)", show_progress="hidden"
        )

    # Reading and writing ------------------------------------------------------------------------------------------

    def read(self, values: Sequence[Any]) -> tuple[Study, Settings]:
        """The study and the settings that the controls show, in the order of `inputs`. Raises Refused."""
        v = dict(zip(self.fields, values, strict=True))
        name = str(v["study"])
        knobs = self.known[name].knobs() if name in self.known else ()
        study = make_study(name, **{k.name: v[f"{name}.{k.name}"] for k in knobs})
        given = {n: v[n] for n in ("weights", "device", "seed", "threads")}
        return study, Settings(model=(v["own"] or "").strip() or v["model"], **given)

    def opened(self, study: Study, settings: Settings | None = None) -> dict[Any, Any]:
        """Updates that bring a study up: its controls, its card, and no findings yet."""
        cls = type(study)
        shown: dict[Any, Any] = {self.fields["study"]: study.id}
        for bench, radio in self.benches.items():
            shown[radio] = study.id if bench == cls.bench else None
        for name, box in self.boxes.items():
            shown[box] = gr.update(visible=name == study.id)
        shown |= {self.fields[f"{study.id}.{k.name}"]: getattr(study, k.name) for k in cls.knobs()}
        shown |= {self.head: cards.study_head(cls), self.card: cards.body(cls), self.progress: ""}
        shown |= {c: gr.update(visible=False) for c in (*self.plots, self.table, self.json)}
        shown[self.claims] = f'<p class="hint">{both_words("study_none")}</p>'
        shown[self.folded] = gr.update(open=True)
        if settings is not None:
            listed = settings.model in catalog.MODELS
            if listed:
                shown[self.fields["model"]] = settings.model
            shown[self.fields["own"]] = "" if listed else settings.model
            shown |= {self.fields[n]: getattr(settings, n) for n in ("weights", "device", "seed", "threads")}
            shown[self.query] = links.study_query(study, settings)
            shown[self.command] = links.study_command(study, settings)
        return shown

    # Handlers -----------------------------------------------------------------------------------------------------

    def arrive(self, parameters: Mapping[str, str]) -> dict[Any, Any]:
        """What a link asks for; a link without a study leaves the view as it was drawn."""
        if "study" not in parameters:
            study = make_study(self.first)
            return {self.query: links.study_query(study, Settings())}
        try:
            return self.opened(*links.study_from_query(parameters))
        except Refused as e:
            return {self.progress: refusal(str(e))}

    def choose(self, name: str) -> dict[Any, Any]:
        return self.opened(make_study(name))

    def told(self, *values: Any) -> dict[Any, Any]:
        """The link and the command line of what the controls show; as they were where they show nothing that works."""
        try:
            study, settings = self.read(values)
        except Refused:
            return {self.query: gr.skip()}
        return {self.query: links.study_query(study, settings), self.command: links.study_command(study, settings)}

    def start(self, request: gr.Request, *values: Any) -> Iterator[str]:
        """Carry the study out, and say how far it is a few times a second."""
        try:
            job = self.engine.study(*self.read(values), owner_of(request))
        except Refused as e:
            self.refused.add(owner_of(request))
            yield refusal(str(e))
            return
        said = None
        with closing(job.beats(PERIOD)) as beats:  # a visitor who has left needs no findings
            for _ in beats:
                if (job.state, job.note) != said:
                    said = (job.state, job.note)
                    yield progress_html(job)

    def halt(self, request: gr.Request) -> None:
        self.engine.stop(owner_of(request))

    def finish(self, open_now: str, request: gr.Request) -> dict[Any, Any]:
        """What the visitor's last study found; nothing changes where it was refused or stopped."""
        owner = owner_of(request)
        job = self.engine.latest(owner, StudyRun)
        if owner in self.refused or job is None or job.findings is None:
            self.refused.discard(owner)
            return {self.claims: gr.skip()}
        found, lang = job.findings, language_of(request)
        drawn = figures.study_figures(found, type(job.study).bench, lang)
        claims = claims_html(found)
        if len(drawn) > MOST:
            claims += f'<p class="hint">{escape(word("study_more", lang, n=len(drawn) - MOST))}</p>'
        # Another one may have been opened while this one ran; its findings belong under its own head.
        shown = {} if open_now == job.study.id else self.opened(job.study, job.settings)
        shown |= {self.claims: claims, self.folded: gr.update(open=False)}
        for i, plot in enumerate(self.plots):
            shown[plot] = gr.update(value=drawn[i], visible=True) if i < len(drawn) else gr.update(visible=False)
        rows = [[_shown(row.get(name)) for name in found["columns"]] for row in found["rows"]]
        value = {"headers": list(found["columns"].values()), "data": rows}
        (path,) = self.exports.write(
            {f"llmlab-{job.study.id}.json": json.dumps(found, ensure_ascii=False, indent=2) + "\n"}
        )
        widths = [_width(name, [row[i] for row in rows]) for i, name in enumerate(value["headers"])]
        shown[self.table] = gr.update(value=value, column_widths=widths, visible=True)
        shown[self.json] = gr.update(value=path, visible=True)
        return shown


def _width(heading: str, values: Sequence[Any]) -> int:
    """Pixels for a column: for its longest value and for the longest word of its heading, within reason."""
    longest = max([len(str(v)) for v in values] + [len(w) for w in heading.split()], default=0)
    return min(320, max(70, 28 + 9 * longest))


def _shown(value: Any) -> Any:
    """A cell of the table: numbers stay numbers, so that sorting a column sorts them, in four digits."""
    if isinstance(value, float):
        return cell(value) if value != value or abs(value) == float("inf") else float(f"{value:.4g}")
    return value if isinstance(value, int) and not isinstance(value, bool) else cell(value)


def progress_html(job: Job) -> str:
    """How far a study is, in both languages."""
    bar, parts = "", job.note.split("|")
    if job.state == "queued":
        n = job.note.removeprefix("waiting:")
        told = both(*(word("study_wait", lang, n=n) for lang in catalogue())) if n.isdigit() and n != "0" else ""
        told = told or both_words("study_next")
    elif job.state == "error":
        return f'<div data-state="error">{refusal(job.note)}</div>'
    elif job.state == "done" and job.note == "stopped":
        told = both_words("study_stopped")
    elif job.state == "done":
        seconds = f"{job.findings['seconds']:.1f}" if isinstance(job, StudyRun) and job.findings else ""
        told = both(*(word("study_done", lang, s=seconds) for lang in catalogue()))
    elif len(parts) == 3:
        done, total = int(parts[1]), int(parts[2])
        size = f" · {done / 1e6:.0f} / {total / 1e6:.0f} MB" if total > 1 << 20 else f" · {done} / {total}"
        told = escape(parts[0]) + (size if total else " …")
        bar = f'<progress max="{total}" value="{done}"></progress>' if total else ""
    else:
        told = both_words("study_next")
    return f'<div class="study-progress" role="status" data-state="{job.state}">{bar}<span>{told}</span></div>'

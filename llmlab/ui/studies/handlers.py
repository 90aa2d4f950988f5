"""What a click in the view of studies does."""

from __future__ import annotations

from asyncio import to_thread
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr

from llmlab.errors import Faults, Refused, noted
from llmlab.lab.queue import Engine, StudyRun
from llmlab.lab.settings import Settings
from llmlab.lab.study import Study, make_study
from llmlab.ui import cards, links
from llmlab.ui.exports import Exports
from llmlab.ui.gradio_events import SMALL, STREAM, Refusals, language_of, owner_of, refusal_html, write_link
from llmlab.ui.studies.account import findings, no_findings, progress_html
from llmlab.ui.studies.layout import View

PERIOD = 0.3
"""Seconds between two looks at a study's progress."""


class Studies:
    """The handlers of the view's events over an engine."""

    def __init__(self, engine: Engine, exports: Exports, view: View) -> None:
        self.engine = engine
        self.exports = exports
        self.view = view
        self.form = view.form
        self.picker = view.picker
        self.refusals = Refusals()

    # Wiring -------------------------------------------------------------------------------------------------------

    @property
    def shown(self) -> list[Any]:
        return self.view.outputs

    @property
    def show_link(self) -> dict[str, Any]:
        """The step that writes the view's link into its box and, while the view is open, into the address bar."""
        return write_link(self.view.query, self.view.link, "llmlabStudyLink")

    def wire(self, copy: gr.Button) -> None:
        """Connect every event of the view, and the button that copies its link."""
        view, inputs = self.view, self.form.inputs
        told = [view.query, view.command]
        for radio in self.picker.lists.values():
            chosen = radio.input(self.choose, radio, self.shown, **SMALL)
            chosen.then(self.told, inputs, told, **SMALL).then(**self.show_link)
        # The progress alone: Gradio makes every other output of a stream anew with each message.
        ran = view.run.click(self.start, inputs, view.progress, api_name="study", **STREAM)
        found = ran.then(self.finish, self.form.fields["study"], self.shown, **SMALL)
        found.then(self.told, inputs, told, **SMALL).then(**self.show_link)
        view.stop.click(self.halt, None, None, **SMALL)
        copied = write_link(view.query, view.link, "llmlabCopy")
        copy.click(self.told, inputs, told, **SMALL).then(**copied)

    # Reading and writing the controls -----------------------------------------------------------------------------

    def read(self, sent: Sequence[Any]) -> tuple[Study, Settings]:
        """The study and the settings that the controls show. Raises Refused."""
        values = self.form.values(sent)
        return self.picker.study(values), self.form.settings(values)

    def opened(self, study: Study, settings: Settings | None = None) -> dict[Any, Any]:
        """Updates that bring a study up: its controls, its card, and no findings yet."""
        view, cls = self.view, type(study)
        shown = self.picker.show(study) | no_findings(view.findings)
        shown |= {view.head: cards.study_head(cls), view.card: cards.body(cls), view.progress: ""}
        shown[view.card_fold] = gr.update(open=True)
        if settings is not None:
            shown |= self.form.show_settings(settings) | self._repeat(study, settings)
        return shown

    def _repeat(self, study: Study, settings: Settings) -> dict[Any, Any]:
        """The link and the command line that repeat a study."""
        query, command = links.study_query(study, settings), links.study_command(study, settings)
        return {self.view.query: query, self.view.command: command}

    # Handlers -----------------------------------------------------------------------------------------------------

    def arrive(self, parameters: Mapping[str, str], lang: str) -> dict[Any, Any]:
        """What a link asks for; a link without a study leaves the view as it was drawn."""
        if "study" not in parameters:
            return {self.view.query: links.study_query(make_study(self.picker.first), Settings())}
        faults: Faults = []
        shown: dict[Any, Any] = {}
        with noted(faults, "study"):
            shown = self.opened(*links.study_from_query(parameters, faults))
        said = links.faults_sentence(faults, parameters, lang)
        return shown | ({self.view.progress: refusal_html(said)} if said else {})

    def choose(self, name: str) -> dict[Any, Any]:
        return self.opened(make_study(name))

    def told(self, *sent: Any) -> dict[Any, Any]:
        """The link and the command line of what the controls show; as they were where they show nothing that works."""
        try:
            return self._repeat(*self.read(sent))
        except Refused:
            return {self.view.query: gr.skip()}

    async def start(self, request: gr.Request, *sent: Any) -> AsyncIterator[str]:
        """Carry the study out, and say how far it is a few times a second."""
        owner = owner_of(request)
        try:
            with self.engine.asking(owner) as stop:
                job = await to_thread(lambda: self.engine.study(*self.read(sent), owner, stop))
        except Refused as e:
            self.refusals.put(owner, str(e))
            yield refusal_html(str(e))
            return
        async with aclosing(job.beats(PERIOD)) as beats:  # a visitor who has left needs no findings
            async for _ in beats:
                yield progress_html(job)

    async def halt(self, request: gr.Request) -> None:
        self.engine.stop(owner_of(request))

    def finish(self, open_now: str, request: gr.Request) -> dict[Any, Any]:
        """What the visitor's last study found; nothing changes where it was refused or stopped."""
        owner = owner_of(request)
        job = self.engine.latest(owner, StudyRun)
        if self.refusals.pop(owner) is not None or job is None or job.findings is None:
            return {self.view.findings.claims: gr.skip()}
        # Another one may have been opened while this one ran; its findings belong under its own head.
        shown = {} if open_now == job.study.id else self.opened(job.study, job.settings)
        shown |= findings(self.view.findings, self.exports, job, language_of(request))
        return shown | {self.view.card_fold: gr.update(open=False)}

"""What a click in the playground does."""

from __future__ import annotations

from asyncio import to_thread
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr

from llmlab.errors import Faults, Refused, noted
from llmlab.lab.queue import Engine
from llmlab.lab.settings import Settings
from llmlab.measure import trace
from llmlab.models.loading import catalog
from llmlab.runtime.events import Event, Started
from llmlab.runtime.stack import Stack
from llmlab.ui import links
from llmlab.ui.exports import Exports
from llmlab.ui.form import to_setting
from llmlab.ui.gradio_events import (
    SMALL,
    STREAM,
    Newest,
    Refusals,
    language_of,
    numbered,
    owner_of,
    refusal_html,
    write_link,
)
from llmlab.ui.live.panel import message, recorded
from llmlab.ui.machine import fit_html
from llmlab.ui.playground import samples
from llmlab.ui.playground.account import account, run_name
from llmlab.ui.playground.layout import View
from llmlab.ui.prompt_length import length_html

PERIOD = 0.11
"""Seconds between messages to the live panel."""
PAUSE = 250
"""Milliseconds that let a visitor who types finish the word before its tokens are counted."""
PROMPT_ROWS = 512
"""KV entries that are set aside for the prompt when the page says whether a model fits."""


def snapshot(engine: Engine, run_id: str) -> dict[str, Any] | None:
    """All of a run so far, for a panel that has missed a message; None for a run that is gone."""
    run = engine.find(run_id)
    return message(run.id, 0, list(run.events), run.state, run.note, reset=True, compare=run.compare) if run else None


class Playground:
    """The handlers of the playground's events over an engine."""

    def __init__(self, engine: Engine, exports: Exports, view: View) -> None:
        self.engine = engine
        self.exports = exports
        self.view = view
        self.form = view.controls.form
        self.techniques = view.controls.techniques
        self.refusals = Refusals()
        self.newest = Newest()

    # Wiring -------------------------------------------------------------------------------------------------------

    @property
    def watched(self) -> list[Any]:
        """What follows from the controls."""
        return [*self.techniques.watched, self.view.prompt.badge, self.view.controls.fit, self.view.prompt.count]

    @property
    def shown(self) -> list[Any]:
        """Everything that opening a run changes at once; what follows from the controls is refreshed after it."""
        return [*self.form.inputs, self.view.live, self.view.prompt.refusal, *self.view.account.outputs]

    @property
    def show_link(self) -> dict[str, Any]:
        """The step that writes the run's link into its box and, while the view is open, into the address bar."""
        return write_link(self.view.account.query, self.view.account.link, "llmlabLink")

    def wire(self, copy: gr.Button) -> None:
        """Connect every event of the view, and the button that copies its link."""
        view, prompt, inputs = self.view, self.view.prompt, self.form.inputs
        self._wire_run(prompt.run, "run", compare=False)
        self._wire_run(prompt.compare, "compare", compare=True)
        prompt.stop.click(self.halt, None, None, **SMALL)
        for button, example in prompt.examples:
            button.click(lambda e=example: e["prompt"], None, self.form.fields["prompt"], **SMALL)
        for button, item in view.recordings:
            self.then_refresh(button.click(self.player(item), None, self.shown, **SMALL)).then(**self.show_link)
        opened = view.upload.upload(self.open_trace, view.upload, self.shown, **SMALL)
        self.then_refresh(opened).then(**self.show_link)
        copied = write_link(view.account.query, view.account.link, "llmlabCopy")
        copy.click(self.share, inputs, view.account.query, **SMALL).then(**copied)
        switches = [c.change for n, c in self.form.fields.items() if n not in ("prompt", "own", "quality_text")]
        gr.on(switches, trigger_mode="always_last", **self.refreshing)
        typed = [self.form.fields[n].change for n in ("prompt", "own")]
        counting: dict[str, Any] = {"js": numbered(PAUSE), "trigger_mode": "always_last", **SMALL}
        gr.on(typed, self.count, [*inputs, prompt.asked], prompt.count, **counting)

    @property
    def refreshing(self) -> dict[str, Any]:
        """How an event shows what follows from the controls."""
        asked = [*self.form.inputs, self.view.prompt.asked]
        return {"fn": self.refresh, "inputs": asked, "outputs": self.watched, "js": numbered(), **SMALL}

    def then_refresh(self, opened: Any) -> Any:
        """The step after an event that has set the controls. The events of the controls themselves see some of them as
        they were, so the last word must come from one that begins when all are set."""
        return opened.then(**self.refreshing)

    def _wire_run(self, button: gr.Button, name: str, compare: bool) -> None:
        refusal = self.view.prompt.refusal
        button.click(None, None, refusal, js='() => ""', show_progress="hidden")
        # The panel alone: Gradio makes every other output of a stream anew with each message.
        ran = button.click(self.starter(compare), self.form.inputs, self.view.live, api_name=name, **STREAM)
        said = [self.view.prompt.badge, self.view.controls.fit]
        told = ran.then(self.finish, said, [refusal, *said, *self.here, *self.view.account.outputs], **SMALL)
        told.then(**self.show_link)

    @property
    def here(self) -> list[Any]:
        """The list of models, which marks those on this machine: a run may have brought one."""
        return [self.form.fields["model"]]

    # Reading and writing the controls -----------------------------------------------------------------------------

    def read(self, sent: Sequence[Any]) -> Settings:
        """The Settings that the controls show. Raises Refused."""
        values = self.form.values(sent)
        return self.form.settings(values, stack=self.techniques.stack(values))

    def write(self, settings: Settings) -> dict[Any, Any]:
        """The new value of every control that has to change to show `settings`, by component."""
        return self.form.show_settings(settings) | self.techniques.show(settings.stack)

    def refresh(self, request: gr.Request, *sent: Any) -> list[Any]:
        """What follows from a changed control: greyed switches, the badge, whether the model fits, and the prompt."""
        *controls, number = sent
        owner, values = owner_of(request), self.form.values(controls)
        self.newest.ask(owner, number, "controls", "count")
        entry = None if self.form.own_model(values) else catalog.MODELS.get(values["model"])
        abilities = self.engine.lab.model_cache.capabilities(values["model"]) if entry else None
        stack = self._stack(values)
        rows = stack.most_rows(int(values["max_new_tokens"] or 0) + PROMPT_ROWS)
        updates, badge = self.techniques.refresh(values, abilities)
        copies = values.get("copies", "auto") == "auto"
        fits = fit_html(entry, values["weights"], rows, copies) if entry else ""
        shown, length = [*updates, badge, fits], self._length(values, stack)
        stands = [self.newest.stands(owner, number, what) for what in ("controls", "count")]
        return [*(shown if stands[0] else [gr.skip()] * len(shown)), length if stands[1] else gr.skip()]

    def count(self, request: gr.Request, *sent: Any) -> Any:
        """The prompt's tokens beside the model's context, which some techniques go beyond."""
        *controls, number = sent
        owner, values = owner_of(request), self.form.values(controls)
        self.newest.ask(owner, number, "count")
        length = self._length(values, self._stack(values))
        return length if self.newest.stands(owner, number, "count") else gr.skip()

    def _length(self, values: Mapping[str, Any], stack: Stack) -> str:
        chat, new = to_setting(Settings.knob_named("chat"), values["chat"]), int(values["max_new_tokens"] or 0)
        return length_html(self.form.own_model(values) or values["model"], values["prompt"] or "", chat, new, stack)

    def _stack(self, values: Mapping[str, Any]) -> Stack:
        """The stack that the controls show; none of it where it cannot be, which is told at the badge."""
        try:
            return self.techniques.stack(values)
        except Refused:
            return Stack()

    # Opening a run ------------------------------------------------------------------------------------------------

    def arrive(self, parameters: Mapping[str, str], lang: str) -> dict[Any, Any]:
        """The first view: a recorded run with its settings, or with those that the link asks for."""
        faults: Faults = []
        item = samples.recordings()[0]
        with noted(faults, "run"):
            item = samples.recording(parameters["run"]) if "run" in parameters else item
        events = samples.events_of(item)
        shown = self._replay(events, item["label"][lang], lang)
        if set(parameters) & {*links.SHORT.values(), "t"} and "study" not in parameters:
            settings = links.from_query(parameters, links.settings_of(events[0]), faults)
            shown |= self.write(settings) | {self.view.account.query: links.to_query(settings)}
        said = links.faults_sentence(faults, parameters, lang)
        return shown | {self.view.prompt.refusal: refusal_html(said) if said else ""}

    def player(self, item: dict[str, Any]) -> Callable[[gr.Request], dict[Any, Any]]:
        """The handler of a recorded run's button."""

        def play(request: gr.Request) -> dict[Any, Any]:
            lang = language_of(request)
            return self._replay(samples.events_of(item), item["label"][lang], lang)

        return play

    def open_trace(self, path: str, request: gr.Request) -> dict[Any, Any]:
        """A visitor's own trace; refused in a sentence, with what is on the page left as it was."""
        try:
            return self._replay(trace.load(path), Path(path).name[:60], language_of(request))
        except Refused as e:
            return {self.view.prompt.refusal: refusal_html(str(e))}

    def _replay(self, events: list[Event], name: str, lang: str) -> dict[Any, Any]:
        """Controls, panel and account of a finished trace."""
        settings = links.settings_of([e for e in events if isinstance(e, Started)][-1])
        compare = len(trace.lanes(events)) > 1
        shown = recorded(events, name)
        told = account(self.view.account, self.exports, events, settings, compare, lang, (shown["run"], name))
        return self.write(settings) | {self.view.live: shown, self.view.prompt.refusal: ""} | told

    # Running ------------------------------------------------------------------------------------------------------

    def starter(self, compare: bool) -> Callable[..., AsyncIterator[dict[str, Any]]]:
        """The handler of Run or of Run A/B."""

        async def start(request: gr.Request, *sent: Any) -> AsyncIterator[dict[str, Any]]:
            """Run, and pass the run's events on to the panel about ten times a second."""
            owner = owner_of(request)
            try:
                own = (self.form.values(sent)["quality_text"] or "").strip()
                with self.engine.asking(owner) as stop:
                    run = await to_thread(lambda: self.engine.start(self.read(sent), compare, owner, own or None, stop))
            except Refused as e:
                self.refusals.put(owner, str(e))
                yield gr.skip()
                return
            seq = 0
            async with aclosing(run.tail(PERIOD)) as tail:  # a visitor who has left needs no more tokens
                async for events in tail:
                    yield message(run.id, seq, events, run.state, run.note, seq == 0, compare)
                    seq += 1

        return start

    async def halt(self, request: gr.Request) -> None:
        """Stop what the visitor has running or waiting. Not in a thread: a class may have taken all of them."""
        self.engine.stop(owner_of(request))

    def finish(self, badge: str, fits: str, request: gr.Request) -> dict[Any, Any]:
        """The account of the visitor's last run, whole or stopped; or why there was none.

        `badge` and `fits` are what the page says there: a refusal that is among it is told once.
        """
        owner = owner_of(request)
        refused = self.refusals.pop(owner)
        if refused is not None:
            said = ((self.view.prompt.badge, badge), (self.view.controls.fit, fits))
            refusal = refusal_html(refused)
            once = {c: html.replace(refusal, "") for c, html in said if refusal in (html or "")}
            return {self.view.prompt.refusal: refusal, **once}
        run = self.engine.latest(owner)
        if run is None or not any(isinstance(e, Started) for e in run.events):
            return {self.view.account.summary: gr.skip()}
        lang = language_of(request)
        about = (run.id, run_name(run.settings, run.compare))
        told = account(self.view.account, self.exports, list(run.events), run.settings, run.compare, lang, about)
        return told | self.form.show_here(lang)

    def told(self, *sent: Any) -> Any:
        """The query of the link to what the controls show; as it was where they show nothing that works."""
        try:
            return links.to_query(self.read(sent))
        except Refused:
            return gr.skip()

    def share(self, *sent: Any) -> str:
        """The query of the link to what the controls show. Raises gr.Error with what cannot work about it."""
        try:
            return links.to_query(self.read(sent))
        except Refused as e:
            raise gr.Error(str(e), print_exception=False) from e

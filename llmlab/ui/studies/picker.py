"""The choice of a study: one list per kind of experiment, and the knobs of the one that is open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from llmlab.lab.study import Study, make_study, studies
from llmlab.runtime.configurable import title
from llmlab.ui.controls import Translate
from llmlab.ui.form import Form

BENCHES = ("sweep", "classification", "cascade", "serving")
"""Kinds of study in the page's order."""


class StudyPicker:
    """Draws the lists and knobs into a form, reads the study from it and writes one into it."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.known = studies()
        self.lists: dict[str, gr.Radio] = {}
        benches = sorted({s.bench for s in self.known.values()}, key=lambda b: ([*BENCHES, b].index(b), b))
        self.members = {b: {n: s for n, s in self.known.items() if s.bench == b} for b in benches}
        self.first = next(n for members in self.members.values() for n in members)

    def draw(self, _: Translate) -> None:
        # The one field that names the study: several lists cannot be one value.
        self.form.add("study", gr.Textbox(self.first, visible="hidden", elem_id="study-id"))
        for bench, members in self.members.items():
            choices = [(title(s), n) for n, s in members.items()]
            at = {"label": _(f"bench_{bench}"), "info": _(f"bench_{bench}_info"), "elem_id": f"bench-{bench}"}
            with gr.Group(elem_classes="family"):
                self.lists[bench] = gr.Radio(choices, value=self.first if self.first in members else None, **at)
        for name, study in self.known.items():
            with self.form.box(study, visible=name == self.first):
                self.form.draw_knobs(study, _)

    def study(self, values: Mapping[str, Any]) -> Study:
        """The study that the controls show. Raises Refused."""
        name = str(values["study"])
        study = type(make_study(name))  # refuses a name that is not known
        return make_study(name, **self.form.knobs(values, study))

    @property
    def outputs(self) -> list[Any]:
        """What `show` may change besides the form's own controls."""
        return [*self.lists.values(), *self.form.boxes.values()]

    def show(self, study: Study) -> dict[Any, Any]:
        """Updates that bring a study up: its name, its place in the lists, its knobs."""
        shown: dict[Any, Any] = {self.form.fields["study"]: study.id}
        shown |= {radio: study.id if bench == type(study).bench else None for bench, radio in self.lists.items()}
        shown |= {box: gr.update(visible=name == study.id) for name, box in self.form.boxes.items()}
        return shown | self.form.show_knobs(study)

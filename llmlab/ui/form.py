"""A form: controls by name in a fixed order, read as settings and knobs, and written back. Both views use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr

from llmlab.lab.settings import Settings
from llmlab.models.loading import catalog
from llmlab.runtime.configurable import Configurable, Knob
from llmlab.ui.controls import Translate, draw_knobs, model_choices, model_controls, setting_control

ELSEWHERE = ("model", "weights", "prompt")
"""The settings whose controls have places of their own."""


def to_setting(k: Knob, value: Any) -> Any:
    """A setting from its control's value: where None is the default, a box that is ticked leaves it open."""
    if k.default is None:
        return None if value else False
    return (value or "") if k.kind == "text" else value


def from_setting(k: Knob, value: Any) -> Any:
    return value is not False if k.default is None else value


class Form:
    """The controls of one view. Gradio sends their values in the order in which they were added."""

    def __init__(self, prefix: str = "") -> None:
        """`prefix` begins the elem_ids, which must differ between the views of one page."""
        self.prefix = prefix
        self.fields: dict[str, Any] = {}
        self.boxes: dict[str, gr.Group] = {}

    @property
    def inputs(self) -> list[Any]:
        return list(self.fields.values())

    def add(self, name: str, component: Any) -> Any:
        self.fields[name] = component
        return component

    # Drawing ---------------------------------------------------------------------------------------------------

    def draw_model(self, _: Translate, default: str) -> None:
        for name, control in zip(("model", "weights"), model_controls(_, default, self.prefix), strict=True):
            self.add(name, control)

    def draw_settings(self, _: Translate, names: Sequence[str]) -> None:
        """The controls of these settings that have no place of their own, after the one for another model."""
        for name in ["own", *(n for n in names if n not in ELSEWHERE)]:
            self.add(name, setting_control(name, _, self.prefix))

    @contextmanager
    def box(self, described: type[Configurable], visible: bool = False) -> Iterator[None]:
        """The box of a technique or a study, shown while it is chosen; what is drawn inside comes into it."""
        name = described._id()
        with gr.Group(visible=visible, elem_classes="box", elem_id=f"{self.prefix}box-{name}") as group:
            yield
        self.boxes[name] = group

    def draw_knobs(self, described: type[Configurable], _: Translate) -> None:
        """One control per knob, called `id.knob`."""
        draw_knobs(described, _, self.add, f"{self.prefix}{described._id()}")

    # Reading and writing -----------------------------------------------------------------------------------------

    def values(self, sent: Sequence[Any]) -> dict[str, Any]:
        """What Gradio sent, by control."""
        return dict(zip(self.fields, sent, strict=True))

    def settings(self, values: Mapping[str, Any], **more: Any) -> Settings:
        """The Settings of this form's controls, defaults for those it lacks. Raises Refused."""
        given = {k.name: to_setting(k, values[k.name]) for k in Settings.knobs() if k.name in self.fields}
        given["model"] = self.own_model(values) or values["model"]
        return Settings(**given, **more)

    def own_model(self, values: Mapping[str, Any]) -> str:
        """The model that the visitor has typed in place of one of the list; "" for none."""
        return (values["own"] or "").strip()

    def show_settings(self, settings: Settings) -> dict[Any, Any]:
        """The new value of every control that has to change to show `settings`, by component."""
        drawn = [k for k in Settings.knobs() if k.name in self.fields]
        shown = {k.name: from_setting(k, getattr(settings, k.name)) for k in drawn}
        listed = settings.model in catalog.MODELS
        shown["own"] = "" if listed else settings.model
        if not listed:
            del shown["model"]
        return {self.fields[n]: value for n, value in shown.items()}

    def show_here(self, lang: str) -> dict[Any, Any]:
        """The list of models, with those marked that are on this machine now."""
        return {self.fields["model"]: gr.update(choices=model_choices(lang))}

    def knobs(self, values: Mapping[str, Any], described: type[Configurable]) -> dict[str, Any]:
        return {k.name: values[f"{described._id()}.{k.name}"] for k in described.knobs()}

    def show_knobs(self, configured: Configurable) -> dict[Any, Any]:
        return {self.fields[f"{configured.id}.{name}"]: value for name, value in configured.settings().items()}

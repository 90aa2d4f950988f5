"""A form: controls by name in a fixed order, read as settings and knobs, and written back. Both views use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import gradio as gr

from llmlab.errors import Refused
from llmlab.lab.settings import CHOICES, Settings
from llmlab.measure.hardware import cores
from llmlab.models.loading import catalog
from llmlab.runtime.configurable import Configurable
from llmlab.ui.controls import Translate, draw_knobs, model_controls
from llmlab.ui.i18n import catalogue

SETTINGS = tuple(f.name for f in fields(Settings) if f.name != "stack")

SETTING_CONTROLS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "prompt": lambda at: gr.Textbox("", lines=3, max_lines=8, **at),
    "max_new_tokens": lambda at: gr.Slider(1, 512, 96, step=1, **at),
    "own": lambda at: gr.Textbox("", max_lines=1, **at),
    "chat": lambda at: gr.Checkbox(True, **at),
    "temperature": lambda at: gr.Slider(0, 2, 0, step=0.05, **at),
    "top_k": lambda at: gr.Number(0, precision=0, **at),
    "top_p": lambda at: gr.Slider(0.05, 1, 1, step=0.05, **at),
    "seed": lambda at: gr.Number(0, precision=0, **at),
    "device": lambda at: gr.Dropdown(["auto", "cpu", "cuda"], value="auto", **at),
    "threads": lambda at: gr.Slider(0, cores(), 0, step=1, **at),
}
"""The control of each setting, given its label, info and elem_id. Those of CHOICES are lists, drawn from there."""

TO_SETTING: dict[str, Callable[[Any], Any]] = {
    "prompt": lambda text: text or "",
    "chat": lambda on: None if on else False,  # None: as a chat where the model has a chat template
}
FROM_SETTING: dict[str, Callable[[Any], Any]] = {"chat": lambda chat: chat is not False}
"""How a setting differs from its control's value; the others are as they are."""


def setting_control(name: str, _: Translate, prefix: str = "", **more: Any) -> Any:
    """The control of one setting; its elem_id is `prefix` and the name. Raises Refused for an unknown name."""
    info = _(f"{name}_info") if f"{name}_info" in catalogue()["en"] else None
    at = {"label": _(name), "info": info, "elem_id": f"{prefix}{name}", **more}
    if name in CHOICES:
        choices = [(_(f"{name}_{c}"), c) for c in CHOICES[name]]
        return gr.Dropdown(choices, value=CHOICES[name][0], **at)
    if name not in SETTING_CONTROLS:
        known = ", ".join([*SETTING_CONTROLS, *CHOICES])
        raise Refused(f"The setting {name!r}", "has no control", f"Choose one of {known}")
    return SETTING_CONTROLS[name](at)


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
        for name in names:
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
        given = {n: TO_SETTING.get(n, _same)(values[n]) for n in SETTINGS if n in self.fields}
        given["model"] = self.own_model(values) or values["model"]
        return Settings(**given, **more)

    def own_model(self, values: Mapping[str, Any]) -> str:
        """The model that the visitor has typed in place of one of the list; "" for none."""
        return (values["own"] or "").strip()

    def show_settings(self, settings: Settings) -> dict[Any, Any]:
        """The new value of every control that has to change to show `settings`, by component."""
        shown = {n: FROM_SETTING.get(n, _same)(getattr(settings, n)) for n in SETTINGS if n in self.fields}
        listed = settings.model in catalog.MODELS
        shown["own"] = "" if listed else settings.model
        if not listed:
            del shown["model"]
        return {self.fields[n]: value for n, value in shown.items()}

    def knobs(self, values: Mapping[str, Any], described: type[Configurable]) -> dict[str, Any]:
        return {k.name: values[f"{described._id()}.{k.name}"] for k in described.knobs()}

    def show_knobs(self, configured: Configurable) -> dict[Any, Any]:
        return {self.fields[f"{configured.id}.{name}"]: value for name, value in configured.settings().items()}


def _same(value: Any) -> Any:
    return value

"""The controls of knobs, of a run's settings and of the model: each is drawn from what its knob says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from llmlab.lab.settings import Settings
from llmlab.models.loading import catalog
from llmlab.models.loading.sources import locate
from llmlab.runtime.configurable import Configurable, Knob
from llmlab.ui.i18n import catalogue, word

Translate = Callable[[str], Any]


def knob_control(owner: str, k: Knob) -> Any:
    """The control of one knob, drawn from its metadata; its elem_id is knob-<owner>-<name>."""
    return _control(k, {"label": k.label, "info": k.help or None, "elem_id": f"knob-{owner}-{k.name}"})


def setting_control(name: str, _: Translate, prefix: str = "", **more: Any) -> Any:
    """The control of one of a run's settings; its elem_id is `prefix` and the name. Raises Refused for an unknown name.

    Label, info and the names of choices are the page's words where it has some, and the knob's own otherwise. "own" is
    the model that a visitor types in place of one of the list.
    """
    k = Knob("own", "") if name == "own" else Settings.knob_named(name)
    known, info = catalogue()["en"], f"{name}_info"
    translated = name in known
    at = {
        "label": _(name) if translated else k.label,
        "info": _(info) if info in known else None if translated else k.help,
        "elem_id": f"{prefix}{name}",
    }
    return _control(k, at | more, {c: _(f"{name}_{c}") for c in k.choices if f"{name}_{c}" in known})


def _control(k: Knob, at: dict[str, Any], names: Mapping[str, Any] | None = None) -> Any:
    """A checkbox, list, field or slider, as the knob's kind and range ask for; `names` are what choices are called."""
    if k.kind == "bool":
        return gr.Checkbox(k.default is not False, **at)
    if k.kind == "text":
        return gr.Textbox(k.default, **{"max_lines": 1} | at)
    if k.kind == "choice":
        listed = [c for c in k.choices if c != "*"]
        if "*" in k.choices and {k.default, *listed} & {*catalog.MODELS, *catalog.FORMATS}:  # it names a model
            listed += [m for m in catalog.MODELS if m not in listed]
        named = [((names or {}).get(c, c), c) for c in listed or [k.default]]
        return gr.Dropdown(named, value=k.default, allow_custom_value="*" in k.choices, **at)
    low, high = k.usual or (k.low, k.high)
    # A slider over the whole range of a knob like 4…65536 is useless; its useful part is below a few thousand.
    if high is not None and high > 4096:
        return gr.Number(k.default, precision=0 if k.kind == "int" else None, **at)
    steps = (1,) if k.kind == "int" else (0.05, 0.01) if high <= 2 else (0.1, 0.01)
    step = next((s for s in steps if abs(k.default / s - round(k.default / s)) < 1e-6), 0.001)
    return UsualSlider(low, high, k.default, step=step, **at)


class UsualSlider(gr.Slider):
    """A slider over the usual part of a knob's range, which a link or a recording may go past.

    Gradio's own raises where a value does, in every handler that takes it; a setting's true bounds are checked with it.
    """

    is_template = True

    def preprocess(self, payload: float) -> float:
        return payload


def model_controls(_: Translate, default: str, prefix: str = "") -> tuple[gr.Dropdown, gr.Dropdown]:
    """The choice of a model of the catalogue and of a weight format; their elem_ids start with `prefix`."""
    at = {"label": _("model"), "info": _("model_info"), "elem_id": f"{prefix}model"}
    model = gr.Dropdown(model_choices("en"), value=default, filterable=True, **at)
    weights = Settings.knob_named("weights")
    at = {"label": _("weights"), "info": _("weights_info"), "elem_id": f"{prefix}weights"}
    return model, gr.Dropdown([c for c in weights.choices if c != "*"], value=weights.default, **at)


def model_choices(lang: str) -> list[tuple[str, str]]:
    """The catalogue's models with their names; those that are on this machine say so."""
    here = f" · {word('here', lang)}"
    return [
        (f"{e.title} · {e.parameters / 1e6:.0f} M{here if locate.downloaded(e) else ''}", name)
        for name, e in catalog.MODELS.items()
    ]


def draw_knobs(described: type[Configurable], _: Translate, add: Callable[[str, Any], Any], owner: str) -> None:
    """One control per knob, the rare ones but never the main one folded away; `add` receives each as `name.knob`."""
    main = getattr(described, "main_knob", "")  # a study has none
    plain = [k for k in described.knobs() if not k.advanced or k.name == main]
    rare = [k for k in described.knobs() if k not in plain]
    for k in plain:
        add(f"{described._id()}.{k.name}", knob_control(owner, k))
    if rare:
        with gr.Accordion(_("more_knobs"), open=False):
            for k in rare:
                add(f"{described._id()}.{k.name}", knob_control(owner, k))

"""The controls of knobs and of the model: each is drawn from what its knob or the catalogue says of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from llmlab.models.loading import catalog
from llmlab.runtime.configurable import Configurable, Knob

Translate = Callable[[str], Any]


def knob_control(owner: str, k: Knob) -> Any:
    """The control of one knob, drawn from its metadata; its elem_id is knob-<owner>-<name>."""
    at = {"label": k.name.replace("_", " "), "info": k.help or None, "elem_id": f"knob-{owner}-{k.name}"}
    if k.kind == "bool":
        return gr.Checkbox(k.default, **at)
    if k.kind == "choice":
        listed = [c for c in k.choices if c != "*"]
        if "*" in k.choices and {k.default, *listed} & {*catalog.MODELS, *catalog.FORMATS}:  # it names a model
            listed += [m for m in catalog.MODELS if m not in listed]
        return gr.Dropdown(listed or [k.default], value=k.default, allow_custom_value="*" in k.choices, **at)
    # A slider over the whole range of a knob like 4…65536 is useless; its useful part is below a few thousand.
    if k.high is not None and k.high > 4096:
        return gr.Number(k.default, precision=0 if k.kind == "int" else None, **at)
    steps = (1,) if k.kind == "int" else (0.05, 0.01) if k.high <= 1 else (0.1, 0.01)
    step = next((s for s in steps if abs(k.default / s - round(k.default / s)) < 1e-6), 0.001)
    return gr.Slider(k.low, k.high, k.default, step=step, **at)


def model_controls(_: Translate, default: str, prefix: str = "") -> tuple[gr.Dropdown, gr.Dropdown]:
    """The choice of a model of the catalogue and of a weight format; their elem_ids start with `prefix`."""
    choices = [(f"{e.title} · {e.parameters / 1e6:.0f} M", name) for name, e in catalog.MODELS.items()]
    model = gr.Dropdown(choices, value=default, label=_("model"), elem_id=f"{prefix}model", filterable=True)
    at = {"label": _("weights"), "info": _("weights_info"), "elem_id": f"{prefix}weights"}
    return model, gr.Dropdown(list(catalog.FORMATS), value="dense-fp32", **at)


def draw_knobs(described: type[Configurable], _: Translate, add: Callable[[str, Any], Any], owner: str) -> None:
    """One control per knob, the rare ones folded away; `add` is told each control by `name.knob`."""
    plain = [k for k in described.knobs() if not k.advanced]
    rare = [k for k in described.knobs() if k.advanced]
    for k in plain:
        add(f"{described._id()}.{k.name}", knob_control(owner, k))
    if rare:
        with gr.Accordion(_("more_knobs"), open=False):
            for k in rare:
                add(f"{described._id()}.{k.name}", knob_control(owner, k))

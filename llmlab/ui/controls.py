"""The page's controls, drawn from the registry: one group per family of techniques, one control per knob."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from llmlab.errors import Refusal, Refused
from llmlab.lab.settings import Settings
from llmlab.measure.hardware import cores
from llmlab.models.loading import catalog
from llmlab.runtime.configurable import Configurable, Knob, title
from llmlab.runtime.roles import ROLES
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import Technique, make, registry
from llmlab.ui import cards
from llmlab.ui.i18n import catalogue

OFF = "off"
Translate = Callable[[str], Any]


@dataclass
class Family:
    """The techniques that open one door: a choice among them, and each one's box of knobs."""

    role: str
    many: bool
    choice: gr.Radio | gr.CheckboxGroup
    reason: gr.Markdown
    boxes: dict[str, gr.Group]


def knob_control(owner: str, k: Knob) -> Any:
    """The control of one knob, drawn from its metadata; its elem_id is knob-<owner>-<name>."""
    return _control(k, {"label": k.label, "info": k.help or None, "elem_id": f"knob-{owner}-{k.name}"})


def setting_control(k: Knob, _: Translate, prefix: str = "") -> Any:
    """The control of one of a run's settings; its elem_id is its name after `prefix`.

    Label, info and the names of choices are the page's words where it has some, and the knob's own otherwise.
    """
    known, info = catalogue()["en"], f"{k.name}_info"
    translated = k.name in known
    at = {
        "label": _(k.name) if translated else k.label,
        "info": _(info) if info in known else None if translated else k.help,
        "elem_id": prefix + k.name,
    }
    return _control(k, at, {c: _(f"{k.name}_{c}") for c in k.choices if f"{k.name}_{c}" in known})


def _control(k: Knob, at: dict[str, Any], names: Mapping[str, Any] | None = None) -> Any:
    """A checkbox, list, field or slider, as the knob's kind and range ask for; `names` are what choices are called."""
    if k.kind == "bool":
        return gr.Checkbox(k.default is not False, **at)
    if k.kind == "text":
        return gr.Textbox(k.default, max_lines=1, **at)
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
    return gr.Slider(low, high, k.default, step=step, **at)


def model_controls(_: Translate, default: str, prefix: str = "") -> tuple[gr.Dropdown, gr.Dropdown]:
    """The choice of a model of the catalogue and of a weight format; their elem_ids start with `prefix`."""
    choices = [(f"{e.title} · {e.parameters / 1e6:.0f} M", name) for name, e in catalog.MODELS.items()]
    model = gr.Dropdown(choices, value=default, label=_("model"), elem_id=f"{prefix}model", filterable=True)
    weights = Settings.knob_named("weights")
    at = {"label": _("weights"), "info": _("weights_info"), "elem_id": f"{prefix}weights"}
    return model, gr.Dropdown([c for c in weights.choices if c != "*"], value=weights.default, **at)


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


class Form:
    """Every control of the page, in one order; `read` turns their values into Settings and `write` turns them back."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self.families: list[Family] = []
        self.badge: gr.HTML | None = None
        self.fit: gr.HTML | None = None

    @property
    def inputs(self) -> list[Any]:
        return list(self.fields.values())

    def add(self, name: str, component: Any) -> Any:
        self.fields[name] = component
        return component

    # Drawing ---------------------------------------------------------------------------------------------------

    def draw_model(self, _: Translate, default: str) -> None:
        model, weights = model_controls(_, default)
        self.add("model", model)
        self.add("weights", weights)
        self.fit = gr.HTML("", elem_id="fit")

    def draw_techniques(self, _: Translate) -> None:
        known = registry()
        gr.HTML(cards.search_box(), elem_id="search")
        first = True
        for door in sorted(reversed(ROLES), key="Drafter".__ne__):  # drafts first: they show most at the first glance
            members = {n: t for n, t in known.items() if t.role == door}
            if members:
                self._family(door, members, _, first)
                first = False

    def _family(self, door: str, members: dict[str, type[Technique]], _: Translate, first: bool) -> None:
        many = next(iter(members.values())).slot == "chain"
        choices = [(title(t), n) for n, t in members.items()]
        at = {"label": _(door), "info": _(f"{door}_info"), "elem_id": door, "show_label": False}
        with gr.Group(elem_classes="family", elem_id=f"family-{door}"):
            gr.HTML(cards.fold(door, len(members), first))
            if many:
                control: Any = gr.CheckboxGroup(choices, value=[], **at)
            else:
                control = gr.Radio([(_("off"), OFF), *choices], value=OFF, **at)
            self.add(door, control)
            reason = gr.Markdown("", visible=False, elem_classes="reason", elem_id=f"reason-{door}")
            boxes = {}
            for name, technique in members.items():
                with gr.Group(visible=False, elem_classes="box", elem_id=f"box-{name}") as box:
                    gr.HTML(cards.summary(technique), elem_id=f"claim-{name}")
                    draw_knobs(technique, _, self.add, name)
                    with gr.Accordion(_("card"), open=False):
                        gr.HTML(cards.body(technique))
                boxes[name] = box
        self.families.append(Family(door, many, control, reason, boxes))

    def draw_advanced(self, _: Translate) -> None:
        self.add("max_new_tokens", gr.Slider(1, 512, 96, step=1, label=_("max_new_tokens"), elem_id="max_new_tokens"))
        self.add("own", gr.Textbox("", label=_("own_model"), info=_("own_model_info"), max_lines=1, elem_id="own"))
        self.add("chat", gr.Checkbox(True, label=_("chat"), elem_id="chat"))
        info = _("temperature_info")
        self.add("temperature", gr.Slider(0, 2, 0, step=0.05, label=_("temperature"), info=info, elem_id="temperature"))
        self.add("top_k", gr.Number(0, precision=0, label=_("top_k"), elem_id="top_k"))
        self.add("top_p", gr.Slider(0.05, 1, 1, step=0.05, label=_("top_p"), elem_id="top_p"))
        self.add("seed", gr.Number(0, precision=0, label=_("seed"), elem_id="seed"))
        self.add("device", gr.Dropdown(["auto", "cpu", "cuda"], value="auto", label=_("device"), elem_id="device"))
        for name in ("verify", "copies"):
            self.add(name, setting_control(Settings.knob_named(name), _))
        self.add("threads", gr.Slider(0, cores(), 0, step=1, label=_("threads"), info=_("threads_info")))

    # Reading and writing -----------------------------------------------------------------------------------------

    def stack(self, values: Mapping[str, Any]) -> Stack:
        """The stack that the controls show. Raises Refused."""
        known, chosen = registry(), []
        for family in self.families:
            picked = values[family.role] or []
            names = picked if family.many else [n for n in [picked] if n != OFF]
            for name in names:
                chosen.append(make(name, **{k.name: values[f"{name}.{k.name}"] for k in known[name].knobs()}))
        return Stack(chosen)

    def read(self, values: Sequence[Any]) -> Settings:
        """The Settings that the controls show, in the order of `inputs`. Raises Refused."""
        v = dict(zip(self.fields, values, strict=True))
        own = (v["own"] or "").strip()
        return Settings(
            model=own or v["model"],
            prompt=v["prompt"] or "",
            chat=None if v["chat"] else False,
            max_new_tokens=v["max_new_tokens"],
            weights=v["weights"],
            temperature=v["temperature"],
            top_k=v["top_k"],
            top_p=v["top_p"],
            seed=v["seed"],
            device=v["device"],
            verify=v["verify"],
            copies=v["copies"],
            threads=v["threads"],
            stack=self.stack(v),
        )

    def write(self, settings: Settings) -> dict[Any, Any]:
        """The new value of every control that has to change to show `settings`, by component."""
        listed = settings.model in catalog.MODELS
        shown: dict[str, Any] = {
            "own": "" if listed else settings.model,
            "prompt": settings.prompt,
            "chat": settings.chat is not False,
            "max_new_tokens": settings.max_new_tokens,
            "weights": settings.weights,
            "temperature": settings.temperature,
            "top_k": settings.top_k,
            "top_p": settings.top_p,
            "seed": settings.seed,
            "device": settings.device,
            "verify": settings.verify,
            "copies": settings.copies,
            "threads": settings.threads,
        }
        if listed:
            shown["model"] = settings.model
        members = {t.id: t for t in settings.stack}
        for family in self.families:
            names = [n for n in family.boxes if n in members]
            shown[family.role] = names if family.many else (names[0] if names else OFF)
        for name, technique in members.items():
            for key, value in technique.settings().items():
                shown[f"{name}.{key}"] = value
        return {self.fields[name]: value for name, value in shown.items()}

    @property
    def watched(self) -> list[Any]:
        """The outputs that `refresh` updates: each family's choice, reason and boxes, then the badge."""
        found: list[Any] = []
        for family in self.families:
            found += [family.choice, family.reason, *family.boxes.values()]
        return [*found, self.badge]

    def refresh(self, values: Sequence[Any], abilities: frozenset[Any] | None) -> list[Any]:
        """Updates for `watched`: boxes of what is on, impossible switches greyed with their reason, the badge."""
        v = dict(zip(self.fields, values, strict=True))
        known = registry()
        try:
            stack, trouble = self.stack(v), ""
        except Refused as e:
            stack, trouble = Stack(), str(e)
        updates: list[Any] = []
        for family in self.families:
            picked = v[family.role] or []
            on = set(picked if family.many else [picked])
            reasons = self._reasons(family, stack, abilities, known)
            updates.append(gr.update(elem_classes=[f"no-{name}" for name in reasons if name not in on]))
            told = _together(list(reasons.values()))
            updates.append(gr.update(value=told, visible=bool(told)))
            updates += [gr.update(visible=name in on) for name in family.boxes]
        badge = f'<p class="refusal">{escape(trouble)}</p>' if trouble else cards.stack_badge(stack)
        return [*updates, badge]

    @staticmethod
    def _reasons(
        family: Family, stack: Stack, abilities: frozenset[Any] | None, known: Mapping[str, type[Technique]]
    ) -> dict[str, Refusal]:
        """Per technique of this family that could not be added to the stack now: why, and what to do."""
        reasons: dict[str, Refusal] = {}
        if abilities is None:
            return reasons
        for name in family.boxes:
            others = [t for t in stack if t.id != name and (family.many or t.role != family.role)]
            here = next((t for t in stack if t.id == name), None) or make(name)
            refusals = Stack([*others, here]).refusals(abilities)
            mine = [r for r in refusals if r.who == title(known[name]) or title(known[name]) in r.why]
            if mine:
                reasons[name] = mine[0]
        return reasons


def _together(refusals: Sequence[Refusal]) -> str:
    """Refusals as Markdown, those with one reason in one sentence."""
    who: dict[tuple[str, str], list[str]] = {}
    for r in refusals:
        who.setdefault((r.why, r.now), []).append(r.who)
    told = [
        str(Refusal(", ".join(dict.fromkeys(names)) + (":" if len(names) > 1 else ""), *rest))
        for rest, names in who.items()
    ]
    return "\n\n".join(told)

"""The choice of techniques: one family per role, greyed with its reason where a technique cannot be added."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from llmlab.errors import Refusal, Refused
from llmlab.runtime.configurable import title
from llmlab.runtime.roles import ROLES
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import Technique, make, registry
from llmlab.ui import cards
from llmlab.ui.controls import Translate
from llmlab.ui.form import Form
from llmlab.ui.gradio_events import refusal_html

OFF = "off"
"""The choice of no technique in a family of which only one may be on."""
FIRST = "Drafter"
"""The family at the top of the page: drafts show most at the first glance."""


@dataclass(frozen=True)
class Family:
    """The techniques of one role: `many` may be on together, or one."""

    role: str
    members: dict[str, type[Technique]]
    many: bool
    choice: gr.Radio | gr.CheckboxGroup
    reason: gr.Markdown

    def chosen(self, values: Mapping[str, Any]) -> list[str]:
        """Ids of what is on."""
        picked: Any = values[self.role] or []
        return list(picked) if self.many else [n for n in [picked] if n != OFF]

    def show(self, ids: Sequence[str]) -> Any:
        """The choice's value for these ids."""
        return list(ids) if self.many else (ids[0] if ids else OFF)


class TechniquePicker:
    """Draws every family into a form, reads the stack from it and writes one into it."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.families: list[Family] = []

    # Drawing ---------------------------------------------------------------------------------------------------

    def draw(self, _: Translate) -> None:
        gr.HTML(cards.search_box(), elem_id="search")
        for role in sorted(reversed(ROLES), key=FIRST.__ne__):
            members = {n: t for n, t in registry().items() if t.role == role}
            if members:
                self.families.append(self._draw_family(role, members, _, open_=not self.families))

    def _draw_family(self, role: str, members: dict[str, type[Technique]], _: Translate, open_: bool) -> Family:
        many = next(iter(members.values())).slot == "chain"
        choices = [(title(t), n) for n, t in members.items()]
        at = {"label": _(role), "info": _(f"{role}_info"), "elem_id": role, "show_label": False}
        with gr.Group(elem_classes="family", elem_id=f"family-{role}"):
            gr.HTML(cards.fold(role, len(members), open_))
            if many:
                choice: Any = gr.CheckboxGroup(choices, value=[], **at)
            else:
                choice = gr.Radio([(_("off"), OFF), *choices], value=OFF, **at)
            self.form.add(role, choice)
            reason = gr.Markdown("", visible=False, elem_classes="reason", elem_id=f"reason-{role}")
            for name, technique in members.items():
                with self.form.box(technique):
                    gr.HTML(cards.summary(technique), elem_id=f"claim-{name}")
                    self.form.draw_knobs(technique, _)
                    with gr.Accordion(_("card"), open=False):
                        gr.HTML(cards.body(technique))
        return Family(role, members, many, choice, reason)

    # Reading and writing -----------------------------------------------------------------------------------------

    def stack(self, values: Mapping[str, Any]) -> Stack:
        """The stack that the controls show. Raises Refused."""
        return Stack(
            make(name, **self.form.knobs(values, family.members[name]))
            for family in self.families
            for name in family.chosen(values)
        )

    def show(self, stack: Stack) -> dict[Any, Any]:
        """The new value of every control that has to change to show `stack`, by component."""
        on = {t.id for t in stack}
        shown = {f.choice: f.show([n for n in f.members if n in on]) for f in self.families}
        for technique in stack:
            shown |= self.form.show_knobs(technique)
        return shown

    # What follows from a choice ------------------------------------------------------------------------------------

    @property
    def watched(self) -> list[Any]:
        """The outputs that `refresh` updates: each family's choice, reason and boxes."""
        return [c for f in self.families for c in (f.choice, f.reason, *(self.form.boxes[n] for n in f.members))]

    def refresh(self, values: Mapping[str, Any], abilities: frozenset[Any] | None) -> tuple[list[Any], str]:
        """Updates for `watched`, and the HTML of the stack's badge with every reason why the stack cannot run.

        `abilities` are the model's; None where they are unknown, and then nothing is greyed.
        """
        try:
            stack, trouble = self.stack(values), []
        except Refused as e:
            stack, trouble = Stack(), [e.refusal]
        if abilities is not None:
            trouble += stack.refusals(abilities)
        updates: list[Any] = []
        for family in self.families:
            on = family.chosen(values)
            barred = self._barred(family, on, stack, abilities) if abilities is not None else {}
            text = "\n\n".join(map(str, by_cause(barred.items())))
            updates.append(gr.update(elem_classes=[f"no-{name}" for name in barred]))
            updates.append(gr.update(value=text, visible=bool(text)))
            updates += [gr.update(visible=name in on) for name in family.members]
        refused = "".join(refusal_html(str(r)) for r in by_cause((r.who, r) for r in trouble))
        return updates, refused + cards.stack_badge(stack)

    @staticmethod
    def _barred(family: Family, on: Sequence[str], stack: Stack, abilities: frozenset[Any]) -> dict[str, Refusal]:
        """Per technique of this family that is off and could not be added to the stack now: why, and what to do."""
        barred: dict[str, Refusal] = {}
        others = [t for t in stack if family.many or t.role != family.role]
        for name in [n for n in family.members if n not in on]:
            added = make(name)
            refusals = Stack([*others, added]).refusals(abilities)
            mine = [r for r in refusals if r.who == added.title or added.title in r.why]
            if mine:
                barred[name] = mine[0]
        return barred


def by_cause(refusals: Iterable[tuple[str, Refusal]]) -> list[Refusal]:
    """One refusal per cause, of refusals by whom they concern: a technique's id or its title.

    It concerns the technique that a refusal is about, or one that the refusal names as what stands in the way.
    """
    causes: dict[tuple[str, str, str], list[str]] = {}
    for who, r in refusals:
        name = title(registry()[who]) if who in registry() else who
        cause = ("", r.why, r.now) if r.who == name else (r.who, r.why.replace(name, "\0"), r.now)
        causes.setdefault(cause, []).append(name)
    found = []
    for (who, why, now), names in causes.items():
        listed = list(dict.fromkeys(names))
        either = " or ".join([", ".join(listed[:-1])] * (len(listed) > 1) + listed[-1:])
        about = who or ", ".join(listed) + (":" if len(listed) > 1 else "")
        found.append(Refusal(about, why.replace("\0", either), now))
    return found

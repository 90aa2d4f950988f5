"""An ordered, hashable set of techniques, and its round trips through JSON, the command line and the page's link."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

from llmlab.errors import Faults, Refusal, Refused, noted
from llmlab.models.capabilities import Capability
from llmlab.runtime.prompt import Prompt
from llmlab.runtime.roles import (
    ROLES,
    Acceptor,
    AttentionPattern,
    CachePolicy,
    Drafter,
    LayerPlan,
    PromptCompressor,
)
from llmlab.runtime.session import Session
from llmlab.runtime.step import Lane
from llmlab.runtime.technique import Technique, make, registry
from llmlab.runtime.tools import Tools

LONGEST = 4096
"""Characters of a stack's text or link that are read; longer ones are refused before they are parsed."""


KNOB = re.compile(r'\s*([^=,]*?)\s*=\s*(?:"((?:[^"]|"")*)"\s*(?=,|$)|([^,]*))(?:,|$)', re.DOTALL)
"""`knob=value` and the comma after it; a value in double quotes may hold commas, and a quote written twice."""


def parsed(text: str) -> tuple[str, dict[str, str]]:
    """`name:knob=value,knob="value, with a comma"` as the name and the knobs; the inverse of `written`.

    Raises Refused for a knob without a value, and for a text that is too long.
    """
    if len(text) > LONGEST:
        raise Refused(f"The text {text[:40]!r}…", f"is longer than {LONGEST} characters", "Shorten it")
    name, _, rest = text.strip().partition(":")
    settings: dict[str, str] = {}
    at = 0
    while at < len(rest):
        found = KNOB.match(rest, at)
        if found is None:
            pair, comma, _ = rest[at:].partition(",")
            if pair.strip():
                now = f"Write it as knob=value, and a value with commas in double quotes: {_quoting(name, settings)}"
                raise Refused(f"{name}'s setting {pair[:40]!r}", "has no value", now)
            at += len(pair) + len(comma)
            continue
        key, quoted, plain = found.groups()
        settings[key.replace("-", "_")] = plain.strip() if quoted is None else quoted.replace('""', '"')
        at = found.end()
    return name, settings


def _quoting(name: str, settings: Mapping[str, str]) -> str:
    """How the last value, which a comma has cut short, would be given whole."""
    knob, value = list(settings.items())[-1] if settings else ("knob", "a")
    return f"""'{name}:{knob}="{value[:20]},…"'"""


def written(name: str, settings: Mapping[str, Any]) -> str:
    """A name and knobs as `parsed` reads them."""
    pairs = [f"{knob}={_as_value(str(value))}" for knob, value in settings.items()]
    return name + (":" + ",".join(pairs) if pairs else "")


def _as_value(text: str) -> str:
    doubled = text.replace('"', '""')
    return f'"{doubled}"' if "," in text or text.startswith('"') or text != text.strip() else text


class Stack:
    """Techniques in canonical order, whatever order they were given in: prompt → weights → patches → … → router."""

    def __init__(self, techniques: Iterable[Technique] = ()) -> None:
        members = tuple(techniques)
        self.techniques = tuple(sorted(members, key=lambda t: (ROLES.index(t.role), getattr(t, "stage", 0), t.id)))
        seen: set[str] = set()
        for t in self.techniques:
            if t.id in seen:
                raise Refused(t.title, "is in the stack twice", "Give it once, with the knobs you want")
            seen.add(t.id)

    def __iter__(self) -> Iterator[Technique]:
        return iter(self.techniques)

    def __len__(self) -> int:
        return len(self.techniques)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stack) and self.techniques == other.techniques

    def __hash__(self) -> int:
        return hash(self.techniques)

    def __repr__(self) -> str:
        return f"Stack({' '.join(self.arguments()) or 'plain'})"

    def with_role(self, role: str) -> tuple[Technique, ...]:
        """The members that play `role`, in order."""
        return tuple(t for t in self.techniques if t.role == role)

    def one(self, role: str) -> Technique | None:
        """The member that plays a role with room for one, or None."""
        found = self.with_role(role)
        return found[0] if found else None

    def without(self, *roles: str) -> Stack:
        return Stack(t for t in self.techniques if t.role not in roles)

    def session(self, model: Any, tools: Tools | None = None, **settings: Any) -> Session:
        """A new sequence on `model` under this stack: its policy, patterns, plan of layers, and what its drafter taps.

        `settings` go to `Session`.
        """
        tools = tools or Tools()
        plan, drafter, policy = self.one("LayerPlan"), self.one("Drafter"), self.one("CachePolicy")
        if isinstance(plan, LayerPlan):
            settings["plan" if plan.phase == "decode" else "prefill_plan"] = plan.plan(model, tools)
        if isinstance(drafter, Drafter):
            settings["taps"] = drafter.taps(model, tools)
        patterns = [t for t in self.techniques if isinstance(t, AttentionPattern)]
        return Session(model, policy if isinstance(policy, CachePolicy) else None, patterns, **settings)

    def lane(self, session: Session, tools: Tools, limit: int, stop_tokens: Collection[int] = ()) -> Lane:
        """A sequence that decodes with this stack's drafter and acceptor."""
        drafter, acceptor = self.one("Drafter"), self.one("Acceptor")
        drafts = drafter.drafts(session, tools) if isinstance(drafter, Drafter) else None
        return Lane(session, tools, limit, stop_tokens, drafts, acceptor if isinstance(acceptor, Acceptor) else None)

    def compressed(self, prompt: Prompt, tools: Tools) -> Prompt:
        """The prompt after all compressors, in order."""
        for technique in self.techniques:
            if isinstance(technique, PromptCompressor):
                prompt = technique.compress(prompt, tools)
        return prompt

    def lossless(self) -> bool:
        """Whether the whole stack promises the same tokens as no stack at all (greedy, float32)."""
        return all(t.lossless() for t in self.techniques)

    def text_limit(self, context: int) -> int | None:
        """Tokens that prompt and text may have together on a model that reads `context` of them; None: any number."""
        policy = self.one(CachePolicy.role)
        return policy.text_limit(context) if isinstance(policy, CachePolicy) else context

    def most_rows(self, tokens: int) -> int:
        """Rows that a layer holds at most for a text of so many tokens."""
        policy = self.one(CachePolicy.role)
        if not isinstance(policy, CachePolicy) or not policy.during_prompt:
            return tokens
        return min(tokens, sum(policy.budget_and_slack()))

    def simulated(self) -> tuple[Technique, ...]:
        """The members whose saving this engine does not realise."""
        return tuple(t for t in self.techniques if t.speed == "simulated")

    def refusals(self, abilities: frozenset[Capability], model: str = "this model") -> list[Refusal]:
        """Every reason why this stack cannot run on a model with `abilities`; an empty list means that it can."""
        found: list[Refusal] = []
        holder: dict[str, str] = {}
        for technique in self:
            if technique.slot == "one":
                if technique.role in holder:
                    why = f"does the same job as {holder[technique.role]}: {technique.job}"
                    found.append(Refusal(technique.title, why, "Switch one of them off"))
                holder.setdefault(technique.role, technique.title)
            if technique.requires and not self.with_role(technique.requires.role):
                why = f"works beside a technique for {technique.requires.job}, and the stack has none"
                found.append(Refusal(technique.title, why, "Switch one on"))
            for need in sorted(technique.required(), key=lambda a: a.name):
                if need not in abilities:
                    why = f"needs {need.value}, which {model} does not offer"
                    found.append(Refusal(technique.title, why, "Choose another model"))
                    continue
                for other in self:
                    if other is not technique and need in other.disabled():
                        why = f"needs {need.value}, which {other.title} does not allow"
                        found.append(Refusal(technique.title, why, "Switch one of them off"))
        return found

    def require(self, abilities: frozenset[Capability], model: str = "this model") -> None:
        """Raises Refused with the first of `refusals`, if there is one."""
        for refusal in self.refusals(abilities, model):
            raise Refused(refusal.who, refusal.why, refusal.now)

    # Round trips ------------------------------------------------------------------------------------------------

    def to_json(self) -> list[dict[str, Any]]:
        return [{"id": t.id, "knobs": t.settings()} for t in self.techniques]

    @classmethod
    def from_json(cls, value: Any) -> Stack:
        if isinstance(value, str):
            try:
                value = json.loads(value[:LONGEST])
            except (ValueError, RecursionError) as e:
                reason = getattr(e, "msg", "too deep")
                raise Refused("The stack", f"is not valid JSON ({reason})", "Export it again") from e
        if not isinstance(value, list) or not all(
            isinstance(v, Mapping) and isinstance(v.get("id"), str) for v in value
        ):
            raise Refused("The stack", "is not a list of techniques with ids", 'Give [{"id": …, "knobs": {…}}]')
        for v in value:
            if not isinstance(v.get("knobs", {}), Mapping):
                raise Refused(
                    "The stack", f"gives {v['id'][:40]!r} knobs that are not names with values", "Export it again"
                )
        return cls(make(v["id"], **v.get("knobs", {})) for v in value)

    def arguments(self) -> list[str]:
        """One `name:knob=value,…` per technique, only the knobs that differ from their defaults."""
        texts = []
        for t in self.techniques:
            texts.append(written(t.id, {k.name: v for k in t.knobs() if (v := getattr(t, k.name)) != k.default}))
        return texts

    @classmethod
    def from_arguments(cls, texts: Iterable[str]) -> Stack:
        """The inverse of `arguments`: `["prompt-lookup:length=4", "wanda"]`. Raises Refused."""
        members = []
        for text in texts:
            name, settings = parsed(text)
            members.append(make(name, **settings))
        return cls(members)

    def to_query(self) -> str:
        """`t=prompt-lookup,wanda&prompt-lookup.length=4`: the part of a link that restores this stack."""
        pairs = [("t", ",".join(t.id for t in self.techniques))] if self.techniques else []
        for t in self.techniques:
            pairs += [(f"{t.id}.{k.name}", getattr(t, k.name)) for k in t.knobs() if getattr(t, k.name) != k.default]
        return urlencode(pairs)

    @classmethod
    def from_query(cls, parameters: Mapping[str, str], faults: Faults | None = None) -> Stack:
        """The inverse of `to_query`, from a link's decoded parameters; other keys are ignored.

        Raises Refused for what cannot work; with `faults` it is told there by its parameter and left out instead.
        """
        members: dict[str, Technique] = {}
        for name in filter(None, str(parameters.get("t", ""))[:LONGEST].split(",")):
            with noted(faults, "t"):
                made = members.get(name) or cls._from_link(name, parameters, faults)
                same = cls([*members.values(), made]).with_role(made.role)  # refuses what is there already
                if faults is not None and made.slot == "one" and len(same) > 1:  # the page has one switch for them
                    raise Refused(made.title, f"does the same job as another: {made.job}", "Switch one of them off")
                members[name] = made
        return cls(members.values())

    @staticmethod
    def _from_link(name: str, parameters: Mapping[str, str], faults: Faults | None) -> Technique:
        """One technique of a link with its knobs, which are its parameters called `name.knob`."""
        prefix, settings = name + ".", dict[str, Any]()
        known = registry().get(name)
        for key in [k for k in parameters if known and k.startswith(prefix)]:
            with noted(faults, key):
                make(name, **{key.removeprefix(prefix): parameters[key]})
                settings[key.removeprefix(prefix)] = parameters[key]
        return make(name, **settings)

"""A run's settings as a link's query, a command line and a Python script: three ways to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlencode

from llmlab.errors import Faults, noted, unknown_name
from llmlab.lab.model_cache import pick_device
from llmlab.lab.settings import STUDIED, Settings
from llmlab.lab.study import Study, make_study
from llmlab.models.loading.catalog import FORMATS, MODELS
from llmlab.models.loading.environment import restricted
from llmlab.models.loading.sources import locate
from llmlab.models.loading.sources.reference import is_path, repository, tidy
from llmlab.runtime.configurable import Knob
from llmlab.runtime.stack import Stack, written
from llmlab.ui.i18n import word

SHORT = {k.name: k.short or k.name for k in Settings.knobs()}
"""Each setting's name in a link."""
DEFAULTS = {k.name: k.default for k in Settings.knobs()}
LONGEST = 6000
"""Characters of a prompt that a link carries; browsers and servers cut longer ones."""


def to_query(settings: Settings) -> str:
    """`?m=…&p=…&t=…`: only what differs from the defaults. A prompt too long for a link is left out."""
    pairs = []
    for name, short in SHORT.items():
        value = getattr(settings, name)
        if value != DEFAULTS[name] and not (name == "prompt" and len(value) > LONGEST):
            pairs.append((short, str(value).lower() if isinstance(value, bool) else value))
    parts = [urlencode(pairs), settings.stack.to_query()]
    return "?" + "&".join(p for p in parts if p)


def from_query(parameters: Mapping[str, str], base: Settings, faults: Faults | None = None) -> Settings:
    """The inverse of `to_query`; what a link leaves out is as in `base`.

    Raises Refused for what cannot work; with `faults` it is told there by its parameter and left as it would be.
    """
    given = _given(parameters, list(SHORT), faults)
    start = {n: getattr(base, n) for n in SHORT} if not given.get("prompt") else DEFAULTS
    return Settings(**{**start, **given}, stack=Stack.from_query(parameters, faults))


def _given(parameters: Mapping[str, str], names: Collection[str], faults: Faults | None) -> dict[str, Any]:
    """The settings of these names that a link gives."""
    given: dict[str, Any] = {}
    for name in [n for n in names if SHORT[n] in parameters]:
        with noted(faults, SHORT[name]):
            value = Settings.validated(Settings.knob_named(name), str(parameters[SHORT[name]])[: 10 * LONGEST])
            if faults is not None:
                _require_known(name, value)
            given[name] = value
    return given


def _require_known(name: str, value: Any) -> None:
    """Raises Refused for a model, a weight format or a device that nobody knows. Asks no Hub for `owner/name`: a page
    must not wait for the network to open, and a run asks anyway."""
    if name == "weights" and value not in FORMATS:
        raise unknown_name("weight format", value, FORMATS)
    if name == "device":
        pick_device(value)
    if name == "model" and value not in MODELS:
        ref = tidy(value)
        at = None if restricted() or is_path(ref) else repository(ref)
        if at is None or "/" not in at.repo:
            locate.find(ref)


def faults_sentence(faults: Faults, parameters: Mapping[str, str], lang: str) -> str:
    """One sentence on everything that a link gave wrongly; "" where nothing was."""
    parts = []
    for name, e in faults:
        r = e.refusal
        now = f"{r.now[:1].lower()}{r.now[1:]}".rstrip(".")
        parts.append(f"{name}={str(parameters.get(name, ''))[:40]} ({r.who} {r.why.rstrip('.')}: {now})")
    return word("link_faults", lang, parts="; ".join(parts)) if parts else ""


def command_line(settings: Settings, compare: bool = False) -> str:
    """The command that repeats the run."""
    parts = ["python", "-m", "llmlab", "compare" if compare else "run"]
    # Each one word, or a prompt that begins with a dash would read as an option.
    parts += [f"--model={settings.model}", f"--prompt={settings.prompt}"]
    parts += _options(settings, [n for n in SHORT if n not in ("model", "prompt")])
    for text in settings.stack.arguments():
        parts += ["--technique", text]
    return shlex.join(parts)


def python(settings: Settings) -> str:
    """A script that repeats the run and prints its text and its figures."""
    changed = [f"    {n}={getattr(settings, n)!r}," for n in SHORT if getattr(settings, n) != DEFAULTS[n]]
    if settings.stack:
        changed.append(f"    stack=Stack.from_arguments({settings.stack.arguments()!r}),")
    lines = [
        "from llmlab.lab.experiment import Lab",
        "from llmlab.lab.settings import Settings",
        "from llmlab.runtime.stack import Stack, written",
        "",
        "lab = Lab()",
        "settings = Settings(",
        *changed,
        ")",
        "prepared = lab.prepare(settings)",
        "events = list(lab.run(prepared))",
        "record = lab.record(prepared, events)",
        'print(record["text"])',
        'print(record["metrics"])',
    ]
    return "\n".join(lines) + "\n"


def study_query(study: Study, settings: Settings) -> str:
    """`?study=…&<study>.<knob>=…&m=…`: the link that opens a study with its knobs; only what is not as by default."""
    pairs = [("study", study.id)]
    pairs += [(f"{study.id}.{k.name}", getattr(study, k.name)) for k in study.knobs() if _changed(study, k)]
    pairs += [(SHORT[n], getattr(settings, n)) for n in STUDIED if getattr(settings, n) != DEFAULTS[n]]
    return "?" + urlencode(pairs)


def study_from_query(parameters: Mapping[str, str], faults: Faults | None = None) -> tuple[Study, Settings]:
    """The inverse of `study_query`. Raises Refused for what cannot work; with `faults` only for an unknown study."""
    name, knobs = str(parameters["study"])[:LONGEST], dict[str, Any]()
    make_study(name)
    for key in [k for k in parameters if k.startswith(f"{name}.")]:
        knob = key.removeprefix(f"{name}.")
        with noted(faults, key):
            make_study(name, **{knob: parameters[key]})
            knobs[knob] = parameters[key]
    return make_study(name, **knobs), Settings(**_given(parameters, STUDIED, faults))


def study_command(study: Study, settings: Settings) -> str:
    """The command that carries the study out."""
    knobs = {k.name: getattr(study, k.name) for k in study.knobs() if _changed(study, k)}
    parts = ["python", "-m", "llmlab", "study", written(study.id, knobs)]
    parts += [f"--model={settings.model}", *_options(settings, [n for n in STUDIED if n != "model"])]
    return shlex.join(parts)


def _options(settings: Settings, names: Collection[str]) -> list[str]:
    """The options of the settings of these names that are not as by default."""
    parts = []
    for k in Settings.knobs():
        value = getattr(settings, k.name)
        if k.name not in names or value == k.default:
            continue
        if k.kind == "bool":
            parts.append(k.option if value else k.option.replace("--", "--no-", 1))
        else:
            parts.append(f"{k.option}={value}")
    return parts


def _changed(study: Study, k: Knob) -> bool:
    return bool(getattr(study, k.name) != k.default)


def settings_of(started: Any) -> Settings:
    """The Settings that a Started event tells of. Raises Refused for a trace whose settings are not ours."""
    known = {n: started.settings[n] for n in SHORT if n in started.settings}
    return Settings(**{**known, "model": started.model}, stack=Stack.from_json(started.stack))

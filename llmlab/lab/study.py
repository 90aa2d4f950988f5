"""A study: an experiment that takes more than one run and ends in a table, figures and a word on the papers' claims.

A technique changes how one text is generated; a study asks a question of many texts, models or settings. It has knobs
and a card as a technique has, lives in one file under `llmlab/studies`, and runs from the page and the command line.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from time import perf_counter
from typing import Any, ClassVar, Literal

from llmlab.errors import Refused
from llmlab.lab.experiment import Lab, Prepared
from llmlab.lab.settings import Settings
from llmlab.measure.hardware import use_threads
from llmlab.models.loading.loaded import Loaded
from llmlab.models.loading.progress import Report, Stopped, quiet
from llmlab.runtime.configurable import Configurable, discover, instantiate
from llmlab.runtime.tools import Tools

Cell = str | int | float | bool | None


def number(row: Mapping[str, Cell], name: str) -> float:
    """A cell that holds a number."""
    value = row[name]
    assert isinstance(value, int | float), f"{name} is {value!r}"
    return value


@dataclass(frozen=True)
class Chart:
    """A figure over a study's rows: column `y` against column `x`, one line, bar or cloud per value of `group`.

    `ideal` names a column drawn as a curve beside the points: what a formula says they should be.
    """

    title: str
    x: str
    y: str
    group: str = ""
    kind: Literal["line", "bar", "points", "front"] = "line"
    """"front": points, and the line of those that no other beats in both (x low is good, y high is good)."""
    ideal: str = ""


@dataclass(frozen=True)
class Claim:
    """What a paper says and what this run says to it: `holds` by two standard errors, on data that chose nothing.

    None: undecided, or not `testable` with what there is here, and `evidence` says why.
    """

    source: str
    claim: str
    holds: bool | None
    evidence: str
    testable: bool = True

    @property
    def verdict(self) -> str:
        """One of the four in which every claim ends."""
        if not self.testable:
            return "untestable"
        return "undecided" if self.holds is None else "confirmed" if self.holds else "refuted"

    def to_json(self) -> dict[str, Any]:
        told = {"source": self.source, "claim": self.claim, "holds": self.holds, "evidence": self.evidence}
        return {**told, "verdict": self.verdict}


@dataclass(frozen=True)
class Findings:
    """What a study found: rows with the same columns (`columns` gives each its heading), figures over them, claims."""

    columns: Mapping[str, str]
    rows: Sequence[Mapping[str, Cell]]
    charts: Sequence[Chart] = ()
    claims: Sequence[Claim] = ()
    notes: Sequence[str] = ()


@dataclass
class Subject:
    """What a study works on: a model with its tokenizer, loaded when first asked for, and a way to report progress.

    `settings` give model, weights, device, seed and threads; their prompt and stack are not used.
    """

    lab: Lab
    settings: Settings
    report: Report = quiet
    stop: threading.Event = field(default_factory=threading.Event)
    so_far: Findings | None = field(default=None, init=False)
    """The rows that a study has so far, for when it is stopped; no claim is judged by them."""

    @cached_property
    def loaded(self) -> Loaded:
        use_threads(self.settings.threads)
        s = self.settings
        return self.lab.model_cache.load(s.model, s.weights, s.device, 2048, self.report, s.copies == "auto")

    @property
    def model(self) -> Any:
        return self.loaded.model

    @property
    def tokenizer(self) -> Any:
        return self.loaded.tokenizer

    @cached_property
    def tools(self) -> Tools:
        return self.lab.tools(Prepared(self.settings, self.loaded, [], str(self.model.device)))

    def progress(self, what: str, done: int, total: int) -> None:
        """Say how far the study is. Raises Stopped once it was asked to stop."""
        if self.stop.is_set():
            raise Stopped
        self.report(what, done, total)


@dataclass(frozen=True)
class Study(Configurable):
    """The base of every study. Keeps no state."""

    bench: ClassVar[str] = ""
    """What kind of experiment it is: "classification", "cascade", "serving" or "sweep"; the page groups by it."""
    speed: ClassVar[Literal["real", "simulated"]] = "real"

    def run(self, subject: Subject) -> Findings:
        """Carry it out, calling `subject.progress` at least every few seconds. Raises Refused before computing."""
        raise NotImplementedError


@cache  # one registry
def studies() -> dict[str, type[Study]]:
    """Every study under `llmlab/studies`, by id."""
    return discover("llmlab.studies", Study)


def make_study(name: str, /, **settings: Any) -> Study:
    """The study called `name` with these knobs; Refused for an unknown name or knob, or a value out of range."""
    return instantiate("study", studies(), name, settings)


def carry_out(study: Study, subject: Subject) -> dict[str, Any]:
    """Run a study; its findings as JSON of schema llmlab.study/1."""
    start = perf_counter()
    return as_json(study, subject, study.run(subject), perf_counter() - start)


def stopped_early(study: Study, subject: Subject) -> dict[str, Any] | None:
    """What a study that was stopped has found, as JSON with `stopped`; None where that is nothing."""
    found = subject.so_far
    return as_json(study, subject, found, 0.0) | {"stopped": True} if found and found.rows else None


def as_json(study: Study, subject: Subject, found: Findings, seconds: float) -> dict[str, Any]:
    for row in found.rows:
        if set(row) - set(found.columns):
            raise Refused(study.title, f"has columns without a heading: {set(row) - set(found.columns)}", "Report it")
    s = subject.settings
    return {
        "schema": "llmlab.study/1",
        "study": study.id,
        "settings": study.settings(),
        "model": s.model,
        "weights": s.weights,
        "seed": s.seed,
        "columns": dict(found.columns),
        "rows": [dict(row) for row in found.rows],
        "charts": [vars(c) for c in found.charts],
        "claims": [c.to_json() for c in found.claims],
        "notes": list(found.notes),
        "seconds": seconds,
    }

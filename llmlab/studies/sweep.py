from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llmlab.errors import Refused
from llmlab.lab.experiment import Prepared
from llmlab.lab.study import Cell, Chart, Findings, Study, Subject
from llmlab.measure import quality
from llmlab.runtime.configurable import knob, title
from llmlab.runtime.events import Committed
from llmlab.runtime.generate import committed_tokens
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import Technique, make, registry
from llmlab.studies.support.sweep.claims import claims
from llmlab.studies.support.sweep.drafts import HALVES, Chains, Drafts
from llmlab.studies.support.sweep.knobs import LENGTHS, swept, values_of
from llmlab.studies.support.sweep.prompts import KINDS, held_out


@dataclass
class Base:
    """The unmodified model on one prompt: its tokens, and their log-probabilities (n, V)."""

    prepared: Prepared
    text: list[int]
    logp: Tensor


@dataclass(frozen=True)
class Measured:
    """One setting on every prompt: its row, its drafts, and the seconds of a pass without drafting, by prompt."""

    row: dict[str, Any]
    drafts: Drafts
    pass_seconds: list[float]


COLUMNS = {
    "technique": "Technique",
    "knob": "Knob",
    "value": "Value",
    "top1": "Top-1 agreement",
    "kl": "KL (nats)",
    "same_text": "Share of equal texts",
    "lossless": "Lossless",
    "layers": "Layers per token",
    "ms": "ms per token",
    "passes": "Passes per token",
    "speedup": "Speed-up",
    "ms_pass": "ms per pass, without drafting",
    "pass_cost": "Pass against a plain one",
    "acceptance": "Acceptance a",
    "g": "Draft length g",
    "c": "Draft step against a plain pass, c",
    "tokens_pass": "Tokens per pass with a whole draft",
    "expected_tokens": "Equation 1",
    "expected_speedup": "Theorem 3.8",
}


@dataclass(frozen=True)
class Sweep(Study):
    """Quality against cost.

    Idea: A technique's threshold, budget or length says how much quality it may spend, or how much work it does ahead.
    Turn it, on prompts that nothing was tuned on, and see which settings of which techniques no other beats.
    Method: Per setting: how often it chooses as the unmodified model would on that model's own text (top-1 agreement),
    KL(p‖q), share of equal texts; against layers, seconds and passes per token. A point is on the front when no other
    costs less and is better. For drafts of g tokens with acceptance a and a draft step that costs c passes, tokens per
    pass should be (1 − a^(g+1)) / (1 − a) (arXiv 2211.17192, equation 1) and the speed-up that over g·c + 1 (theorem
    3.8).
    What to look for: Where a curve bends. Lossless techniques stay at agreement 1 and move only sideways. Theorem 3.8
    takes a pass over g + 1 tokens to cost as much as one over a single token: see by how much it does not here.
    Differences from the paper: The baseline is measured anew before each technique, so that a machine that warms up
    favours none. The acceptance a is estimated as accepted over tested tokens, on every second pass; the formulas are
    held against the other passes. Drafts that stop early where they are unsure are told not to, because the formulas
    speak of fixed lengths.
    """

    covers = ("speculative-decoding",)
    bench = "sweep"
    claim = "Turns a technique's main knob and draws quality against cost on held-out prompts."
    claim_zh = "调节一种技术的主要参数，在未曾用过的提示词上画出质量与代价。"

    technique: str = knob("draft-model", choices=lambda: ("all", *swept()), help="whose knob; all takes minutes")
    turn: str = knob("auto", choices=("auto", "*"), help="the knob to turn; auto: the technique's main one")
    values: str = knob("auto", choices=("auto", "*"), help="what to try, as 0.1/0.2/0.5; auto: three or four values")
    kind: str = knob("all", choices=("all", *KINDS), help="kinds of held-out prompts")
    each: int = knob(1, 1, 5, "prompts of each kind")
    tokens: int = knob(32, 8, 64, "new tokens per prompt")

    def settings_of(self, name: str) -> Iterator[tuple[str, Any, Technique]]:
        """Each setting of a technique that is tried: the knob's name, its value, the technique with it."""
        cls = registry()[name]
        knobs = {k.name: k for k in cls.knobs()}
        turned = cls.knob_named(cls.main_knob if self.turn == "auto" else self.turn)
        together: dict[str, Any] = {}
        if self.turn == "auto" and turned.name in LENGTHS:
            together = {k: 0.0 for k in ("confidence",) if k in knobs}
        if self.values == "auto":
            values = values_of(cls, turned)
        else:
            values = [turned.validated(title(cls), v) for v in re.split(r"[/,;\s]+", self.values.strip())]
        for value in values:
            lengths = {k: value for k in LENGTHS if together and k in knobs and value <= knobs[k].high}
            yield turned.name, value, make(name, **{**together, **lengths, turned.name: value})

    def stacks(self, subject: Subject) -> tuple[list[tuple[str, str, Any, Stack]], list[str]]:
        """Everything that is tried, as (title, knob, value, stack), and what cannot be, in sentences."""
        chosen = swept() if self.technique == "all" else (self.technique,)
        if self.technique == "all" and (self.turn, self.values) != ("auto", "auto"):
            raise Refused(self.title, "turns one knob of one technique or every main knob", "Choose a technique")
        tried, notes = [], []
        abilities = subject.lab.model_cache.capabilities(subject.settings.model)
        for name in chosen:
            for turned, value, technique in self.settings_of(name):
                helpers = [make("draft-model")] if technique.requires else []  # a rule of acceptance needs drafts
                stack = Stack([technique, *helpers])
                refusals = stack.refusals(abilities, subject.settings.model)
                if refusals and self.technique != "all":
                    raise Refused(refusals[0].who, refusals[0].why, refusals[0].now)
                if refusals:
                    notes.append(f"Left out: {refusals[0]}")
                    break
                tried.append((technique.title, turned, value, stack))
        return tried, notes

    def run(self, subject: Subject) -> Findings:
        tried, notes = self.stacks(subject)
        prompts = held_out(self.kind, self.each)
        total = len(tried) * len(prompts)
        subject.progress("Loading the model", 0, 0)
        bases = list(self._bases(subject, prompts))
        plain = self._measured(subject, bases, "Plain decoding", "", None, Stack(), 0, total)
        rows: list[dict[str, Cell]] = [plain.row]
        before, chains = "", list[Chains]()
        refused: set[str] = set()
        for i, (name, turned, value, stack) in enumerate(tried):
            at = i * len(prompts)
            if name in refused:
                continue
            try:
                if name != before:
                    plain = self._measured(subject, bases, "Plain decoding", "", None, Stack(), at, total)
                before = name
                tried_here = self._measured(subject, bases, name, turned, value, stack, at, total)
            except Refused as e:
                if self.technique != "all":
                    raise
                refused.add(name)
                notes.append(f"Left out: {e}")
                continue
            row = tried_here.row | self._against(tried_here, plain)
            rows.append(row)
            if "expected_tokens" in row:
                chains.append(self._chains(tried_here, plain))
            subject.so_far = Findings(COLUMNS, [{k: v for k, v in r.items() if k in COLUMNS} for r in rows])
        notes.append(f"Held-out prompts: {len(prompts)}; new tokens for each: at most {self.tokens}, greedy.")
        columns = {k: v for k, v in COLUMNS.items() if any(row.get(k) is not None for row in rows)}
        rows = [{k: row[k] for k in columns if k in row} for row in rows]
        return Findings(columns, rows, charts(rows), claims(rows, chains, subject.settings.weights), notes)

    def _bases(self, subject: Subject, prompts: Sequence[dict[str, str]]) -> Iterator[Base]:
        """The unmodified model's answer to each prompt. The models and tools are those of the subject."""
        lab, loaded = subject.lab, subject.loaded
        for i, p in enumerate(prompts):
            settings = replace(
                subject.settings, prompt=p["prompt"], max_new_tokens=self.tokens, stack=Stack(), temperature=0.0
            )
            prepared = Prepared(settings, loaded, lab.tokens(loaded, settings), str(loaded.model.device))
            if len(prepared.prompt) + self.tokens > loaded.model.context:
                raise Refused(loaded.name, f"reads too few tokens for the prompt {p['id']}", "Choose another model")
            subject.progress("Reading the baseline", i, len(prompts))
            text = committed_tokens(list(lab.run(prepared, subject.stop)))
            whole = [*prepared.prompt, *text]
            yield Base(prepared, text, quality.score(loaded.model, Stack(), whole, len(prepared.prompt)))

    def _measured(
        self, subject: Subject, bases: list[Base], name: str, turned: str, value: Any, stack: Stack, at: int, total: int
    ) -> Measured:
        """One setting on every prompt: what it cost and how often it chose as the unmodified model would."""
        same, top1, kl, seconds, layers, passes, tokens, drafts = 0, [], [], 0.0, 0.0, 0, 0, Drafts()
        pass_seconds = []
        for i, base in enumerate(bases):
            subject.progress(f"{name} {turned} {value if value is not None else ''}".rstrip(), at + i, total)
            prepared = replace(base.prepared, settings=replace(base.prepared.settings, stack=stack))
            events = list(subject.lab.run(prepared, subject.stop))
            commits = [e for e in events if isinstance(e, Committed)]
            text = committed_tokens(events)
            seconds += sum(e.seconds for e in commits)
            layers += sum(e.layers_run for e in commits)
            passes += len(commits)
            tokens += len(text)
            same += text == base.text
            drafting = drafts.seconds
            drafts.count(events, self.tokens)
            pass_seconds.append((sum(e.seconds for e in commits) - drafts.seconds + drafting) / len(commits))
            agreement, distance = self._quality(subject, base, stack, text)
            top1.append(agreement)
            kl += [] if distance is None else [distance]
        counts = drafts.all
        row = {
            "technique": name,
            "knob": turned,
            "value": value,
            "top1": statistics.fmean(top1),
            "kl": statistics.fmean(kl) if kl else None,
            "same_text": same / len(bases),
            "lossless": stack.lossless(),
            "layers": layers / tokens,
            "ms": 1000 * seconds / tokens,
            "passes": passes / tokens,
            "ms_pass": 1000 * (seconds - drafts.seconds) / passes,
            "acceptance": counts.acceptance if counts.accepted + counts.rejected else None,
            "g": drafts.length,
            "tokens_pass": counts.tokens / counts.passes if counts.passes and drafts.length else None,
            "draft_seconds": drafts.seconds / drafts.drafted if drafts.drafted else None,
        }
        return Measured(row, drafts, pass_seconds)

    def _quality(self, subject: Subject, base: Base, stack: Stack, text: list[int]) -> tuple[float, float | None]:
        """(top-1 agreement, KL): as `quality.compare` measures them."""
        prompt, loaded = base.prepared.prompt, subject.loaded
        if quality.decides_itself(stack):
            own = base.logp
            if text != base.text:
                own = quality.score(loaded.model, Stack(), [*prompt, *text], len(prompt))
            return quality.choices(own, None, text)
        q = base.logp
        if len(stack.without(*quality.DECIDING)):
            tools = subject.lab.tools(base.prepared)
            changed = subject.lab.model_cache.transformed(loaded, stack, tools).model
            q = quality.score(changed, stack, [*prompt, *base.text], len(prompt))
        return quality.choices(base.logp, q, base.text)

    @classmethod
    def _against(cls, tried: Measured, plain: Measured) -> dict[str, Cell]:
        """What needs the baseline that was measured just before: the speed-up, and what the formulas make of it."""
        row, base = tried.row, plain.row
        found: dict[str, Cell] = {"speedup": base["ms"] / row["ms"], "pass_cost": row["ms_pass"] / base["ms_pass"]}
        if row["g"] and row["draft_seconds"] is not None and row["acceptance"] is not None:
            chains, every = cls._chains(tried, plain), torch.arange(len(plain.pass_seconds))
            tokens, speed = (
                statistics.fmean(formula(half, every) for half in HALVES)
                for formula in (chains.equation, chains.theorem)
            )
            c = 1000 * row["draft_seconds"] / base["ms_pass"]
            if math.isfinite(tokens + speed):  # each half of the passes has to have tested a draft
                found |= {"c": c, "expected_tokens": tokens, "expected_speedup": speed}
        return found

    @staticmethod
    def _chains(tried: Measured, plain: Measured) -> Chains:
        return Chains(tried.row["technique"], tried.row["g"], tried.drafts.runs, plain.pass_seconds)


def charts(rows: Sequence[dict[str, Any]]) -> list[Chart]:
    """The figures that the rows can fill."""
    drawn = [
        Chart("Agreement against time", "ms", "top1", "technique", "front"),
        Chart("Agreement against layers", "layers", "top1", "technique", "front"),
        Chart("Equal texts against passes", "passes", "same_text", "technique", "front"),
    ]
    if any("kl" in r for r in rows):
        drawn.append(Chart("Divergence against time", "ms", "kl", "technique", "points"))
    if any("expected_tokens" in r for r in rows):
        drawn += [
            Chart("Tokens per pass and equation 1", "g", "tokens_pass", "technique", "line", "expected_tokens"),
            Chart("Speed-up and theorem 3.8", "g", "speedup", "technique", "line", "expected_speedup"),
        ]
    return drawn

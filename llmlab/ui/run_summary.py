"""What happened in a run, in words: a fold over its events that also says when a technique did not pay, and why.

The account is a list of rules, each a condition on the run's facts and the phrase of `i18n.json` that is told where it
holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from llmlab.lab.records import record
from llmlab.measure.pairs import LANES, LEAST, Pairs
from llmlab.measure.quality import first_difference
from llmlab.measure.roofline import Roofline
from llmlab.measure.trace import lanes, memory_parts, run_roofline
from llmlab.measure.verdict import Verdict, pairs_of, verdict_of
from llmlab.models.loading.fit import change_text, size_text
from llmlab.runtime.events import Event, Failed, Finished, Prefilled, Started, WeightsChanged
from llmlab.runtime.stack import Stack
from llmlab.ui.i18n import catalogue, word
from llmlab.ui.machine import parts_text

POSITIONS = 6
"""Draft positions whose acceptance is given one by one."""
MADE_UP = 0.98
"""Of the model's layers from which on layers not waited for count as made up for later."""


def plain_text(text: str) -> str:
    """Text of a stranger's making as Markdown shows it literally."""
    return "".join("\\" + c if c in r"\`*_{}[]()<>#+-.!|~$&" else c for c in text.replace("\n", " "))


def lane_name(lane: str, lang: str) -> str:
    """What a lane is called; a stranger's trace may call its lanes anything."""
    return word(lane, lang) if lane in LANES else lane[:40]


class Facts:
    """What the rules look at: one lane of a trace and, for the techniques' lane, its baseline."""

    def __init__(self, events: Sequence[Event], baseline: Sequence[Event] | None, lang: str) -> None:
        self.events, self.baseline, self.lang = events, baseline, lang
        self.record = record(events)
        self.m: dict[str, Any] = self.record["metrics"]
        self.started = next(e for e in events if isinstance(e, Started))
        self.stack = Stack.from_json(self.started.stack)
        self.base = record(baseline) if baseline is not None and len(self.stack) else None
        self.b: dict[str, Any] = self.base["metrics"] if self.base else {}
        both = [*(baseline or ()), *events] if self.base else []
        self.pairs: Pairs | None = pairs_of(both) if both else None
        self.verdict: Verdict | None = verdict_of(both) if both else None

    @cached_property
    def acceptor(self) -> Any:
        return self.stack.one("Acceptor")

    @cached_property
    def has_drafter(self) -> bool:
        return self.stack.one("Drafter") is not None

    @cached_property
    def has_policy(self) -> bool:
        return self.stack.one("CachePolicy") is not None

    @cached_property
    def whole(self) -> int:
        """Tokens of prompt and text."""
        return int(self.m["prompt_tokens"] + self.m["new_tokens"])

    @cached_property
    def speed_ratio(self) -> float | None:
        """Decoding speed over the baseline's; None where one of them decoded nothing, or without a baseline."""
        mine, theirs = self.m["decode_tokens_per_second"], self.b.get("decode_tokens_per_second")
        return mine / theirs if mine and theirs else None

    @cached_property
    def pass_ratio(self) -> float | None:
        """Time of a median pass over the baseline's."""
        mine, theirs = self.m["seconds_per_pass_median"], self.b.get("seconds_per_pass_median")
        return mine / theirs if mine and theirs else None

    @cached_property
    def difference(self) -> int | None:
        """The first token that differs from the baseline's, counted from 0."""
        if not self.base:
            return None
        theirs, mine = self.base["token_ids"], self.record["token_ids"]
        at = first_difference(theirs, mine)
        return None if self.cut_short and at == min(len(theirs), len(mine)) else at

    @cached_property
    def cut_short(self) -> bool:
        """Whether it or its baseline broke off: then a text is a beginning, and shorter is no difference."""
        both = (*self.events, *(self.baseline or ()))
        return any(isinstance(e, Failed) or (isinstance(e, Finished) and e.reason == "stopped") for e in both)

    @cached_property
    def temperature(self) -> float:
        return self.started.settings.get("temperature") or 0.0

    @cached_property
    def margin(self) -> float | None:
        """Nats between the baseline's two best tokens where a greedy run first differs."""
        margin = (self.record["quality"] or {}).get("margin")
        told = self.difference is not None and not self.temperature and isinstance(margin, int | float)
        return margin if told else None

    @property
    def turns(self) -> int:
        """Pairs that can tell a difference from the spread; 0 where there are too few."""
        return len(self.pairs) if self.pairs and len(self.pairs) >= LEAST else 0

    @cached_property
    def computed(self) -> float | None:
        """Layer-rows computed per new token; None where they were not counted."""
        found: float | None = self.m["layer_rows_per_token"]
        return found

    @cached_property
    def waited_less(self) -> bool:
        mean = self.m["layers_run_mean"]
        return mean is not None and mean < self.started.layers - 0.005

    @cached_property
    def prompt_rows(self) -> float | None:
        """Layer-rows per token of the prompt that was read, where fewer than all layers' were computed."""
        read = [e for e in self.events if isinstance(e, Prefilled)]
        if not read or not read[-1].layer_rows or not read[-1].done:
            return None
        rows = (read[-1].layer_rows + read[-1].kv_only_rows) / read[-1].done
        return rows if rows < self.started.layers - 0.005 else None

    @cached_property
    def roofline(self) -> Roofline | None:
        return run_roofline(self.events)

    @property
    def did_not_pay(self) -> bool:
        """Whether the stack is slower, or no faster than the spread of equal runs."""
        return self.verdict is not None and self.verdict.speed in ("slower", "none") and self.pass_ratio is not None

    @property
    def withheld(self) -> str:
        """Why quality was not measured; "" where it was, or by an earlier version."""
        return str((self.record["quality"] or {}).get("withheld") or "")


def _nothing(f: Facts) -> dict[str, Any]:
    return {}


class Rule(NamedTuple):
    """A phrase, when it applies, and what its placeholders hold."""

    phrase: str
    holds: Callable[[Facts], Any]
    values: Callable[[Facts], dict[str, Any]] = _nothing


def _names(techniques: Sequence[Any]) -> str:
    return " + ".join(t.title for t in techniques)


def _speeds(f: Facts) -> dict[str, Any]:
    return {
        "names": _names(f.stack.techniques),
        "tokens": f.m["new_tokens"],
        "passes": f.m["passes"],
        "per": f"{f.m['tokens_per_pass']:.2f}",
        "speed": f"{f.m['decode_tokens_per_second']:.1f}",
        "ttft": f"{f.m['ttft_seconds'] or 0:.2f}",
    }


def _silent(f: Facts) -> dict[str, Any]:
    return {"names": _names(f.stack.techniques) or word("plain", f.lang).capitalize()}


def _verdict(v: Verdict | None, lang: str) -> dict[str, Any]:
    """The verdict and what was weighed, in words."""
    assert v is not None
    parts = (f"v_speed_{v.speed}", f"v_memory_{v.memory}", f"v_quality_{v.quality}")
    return {"verdict": word(f"v_{v.verdict}", lang), "parts": word("v_and", lang).join(word(p, lang) for p in parts)}


def _paired(pairs: Pairs | None) -> dict[str, Any]:
    assert pairs is not None
    low, high = pairs.spread
    speeds = {
        f"{lane}_{end}": f"{of(side):.1f}"
        for lane, side in (("baseline", pairs.baseline), ("stack", pairs.stack))
        for end, of in (("low", min), ("high", max))
    }
    shown = {"n": len(pairs), "ratio": f"{pairs.ratio:.2f}", "low": f"{low:.2f}", "high": f"{high:.2f}"}
    return {**shown, "tokens": pairs.tokens, **speeds}


def _rows(f: Facts) -> dict[str, Any]:
    flops = f.m["flops_per_token"]
    return {
        "rows": f"{f.computed:.1f}",
        "layers": f.started.layers,
        "flops": f"{flops / 1e9:.2f} GFLOP" if flops >= 1e8 else f"{flops / 1e6:.2f} MFLOP",
    }


def _parts_at_their_largest(f: Facts) -> str:
    """Memory by part. Keys and values are most at a run's end and activations mostly in its prefill: then the parts add
    up to more than was ever held at once, and the sentence says so."""
    parts = memory_parts(f.m)
    text = parts_text(parts, f.lang)
    at_once = sum(parts.values()) <= f.m["memory_bytes_peak"]
    return text if at_once else word("s_memory_apart", f.lang, parts=text.replace(" + ", ", "))


def _against_the_roofline(f: Facts) -> dict[str, Any]:
    assert f.roofline is not None
    rates = f.roofline.rates
    why = f"s_why_{f.roofline.why}" if f.roofline.why else ""
    return {
        "bound": f"{1000 * f.roofline.seconds:.1f}",
        "median": f"{1000 * (f.m['seconds_per_pass_median'] or 0):.1f}",
        "rate": f"{rates.bytes_per_second / 1e9:.1f}",
        "threads": int(rates.threads),
        "why": word(why, f.lang, others=f"{rates.others:.0f}") if why else "",
    }


def _by_position(f: Facts) -> list[str]:
    """In which share of the drafts the token at each position was accepted."""
    return [f"{d}: {share:.0%}" for d, share in enumerate(f.m["acceptance_by_position"][:POSITIONS], 1)]


HEAD = (
    Rule("s_nothing", lambda f: not f.m["new_tokens"], _silent),
    Rule("s_stack", lambda f: f.m["new_tokens"] and len(f.stack), _speeds),
    Rule("s_plain", lambda f: f.m["new_tokens"] and not len(f.stack), _speeds),
    Rule(
        "s_from",
        lambda f: True,
        lambda f: {"weights": plain_text(f.started.weights), "device": plain_text(f.started.device)},
    ),
)
BODY = (
    Rule(
        "s_drafts",
        lambda f: f.has_drafter and f.m["drafted"],
        lambda f: {
            "accepted": f.m["accepted"],
            "drafted": f.m["drafted"],
            "rate": f"{f.m['acceptance_rate']:.0%}",
            "length": f"{f.m['mean_acceptance_length']:.2f}",
            "drafts": f.m["drafts"],
        },
    ),
    Rule(
        "s_by_depth",
        lambda f: f.has_drafter and f.m["drafted"] and len(_by_position(f)) > 1,
        lambda f: {"rates": ", ".join(_by_position(f))},
    ),
    Rule("s_no_drafts", lambda f: f.has_drafter and not f.m["drafted"]),
    Rule(
        "s_acceptor",
        lambda f: f.acceptor and f.m["drafted"] and not f.acceptor.lossless(),
        lambda f: {"name": f.acceptor.title},
    ),
    Rule(
        "s_evicted",
        lambda f: f.has_policy and f.m["evicted_rows"],
        lambda f: {"rows": f.m["evicted_rows"], "held": f.m["kv_rows_peak"], "whole": f.whole},
    ),
    Rule("s_not_evicted", lambda f: f.has_policy and not f.m["evicted_rows"], lambda f: {"whole": f.whole}),
    Rule(
        "s_layers",
        lambda f: f.waited_less,
        lambda f: {"mean": f"{f.m['layers_run_mean']:.1f}", "layers": f.started.layers},
    ),
    Rule("s_rows_unknown", lambda f: f.waited_less and f.computed is None),
    Rule(
        "s_rows_made_up",
        lambda f: f.waited_less and f.computed is not None and f.computed >= MADE_UP * f.started.layers,
        _rows,
    ),
    Rule("s_rows_fewer", lambda f: f.computed is not None and f.computed < MADE_UP * f.started.layers, _rows),
    Rule(
        "s_rows_kv",
        lambda f: f.m["kv_only_rows"],
        lambda f: {"kv": f"{f.m['kv_only_rows'] / max(f.m['new_tokens'], 1):.1f}"},
    ),
    Rule(
        "s_rows_more",
        lambda f: not f.waited_less and f.computed is not None and f.computed > 1.005 * f.started.layers,
        _rows,
    ),
    Rule(
        "s_rows_drafter",
        lambda f: f.m["drafter_layer_rows"],
        lambda f: {**_rows(f), "more": f"{f.m['drafter_layer_rows'] / max(f.m['new_tokens'], 1):.1f}"},
    ),
    Rule(
        "s_rows_prompt",
        lambda f: f.prompt_rows is not None,
        lambda f: {"rows": f"{f.prompt_rows:.1f}", "layers": f.started.layers},
    ),
    Rule("s_bound", lambda f: f.roofline and f.roofline.bound, _against_the_roofline),
    Rule("s_estimate", lambda f: f.roofline and not f.roofline.bound, _against_the_roofline),
    Rule(
        "s_memory",
        lambda f: f.m["activation_bytes_peak"],
        lambda f: {"total": size_text(f.m["memory_bytes_peak"]), "parts": _parts_at_their_largest(f)},
    ),
    Rule("s_simulated", lambda f: f.stack.simulated(), lambda f: {"names": _names(f.stack.simulated())}),
)
COMPARISON = (
    Rule("s_verdict", lambda f: f.verdict, lambda f: _verdict(f.verdict, f.lang)),
    Rule("s_faster", lambda f: not f.turns, lambda f: {"ratio": f"{f.speed_ratio:.2f}"}),
    Rule("s_pairs", lambda f: f.turns, lambda f: _paired(f.pairs)),
    Rule("s_no_difference", lambda f: f.turns and f.verdict and f.verdict.speed == "none", lambda f: {"n": f.turns}),
    Rule("s_same", lambda f: f.difference is None and not f.cut_short),
    Rule("s_same_so_far", lambda f: f.difference is None and f.cut_short),
    Rule("s_differs", lambda f: f.difference is not None, lambda f: {"at": f.difference}),
    Rule("s_margin", lambda f: f.margin is not None, lambda f: {"margin": f"{f.margin:.3f}"}),
    Rule("s_sampled", lambda f: f.difference is not None and f.temperature, lambda f: {"t": f.temperature}),
    Rule(
        "s_lossless_differs",
        lambda f: (
            f.difference is not None and not f.temperature and f.stack.lossless() and f.started.weights != "dense-fp32"
        ),
        lambda f: {"weights": plain_text(f.started.weights)},
    ),
    Rule("s_unfinished", lambda f: f.withheld == "unfinished"),
    Rule("s_not_paid", lambda f: f.did_not_pay, lambda f: {"why": next(_told(WHY_NOT, f))}),
)
"""Shown for a run that has a baseline to be compared with."""
WHY_NOT: tuple[Rule, ...] = (
    Rule("w_no_draft", lambda f: f.has_drafter and not f.m["drafted"]),
    Rule(
        "w_wide",
        lambda f: f.m["tokens_per_pass"] > 1.005,
        lambda f: {"time": f"{f.pass_ratio:.2f}", "per": f"{f.m['tokens_per_pass']:.2f}"},
    ),
    Rule("w_same", lambda f: True, lambda f: {"time": f"{f.pass_ratio:.2f}"}),
)
"""Why a technique did not pay: the first that holds."""


def _told(rules: Sequence[Rule], f: Facts) -> Iterator[str]:
    """The phrases of the rules that hold."""
    return (word(r.phrase, f.lang, **r.values(f)) for r in rules if r.holds(f))


def _paths(f: Facts) -> Iterator[str]:
    """How the engine ran it; a path of a later version, which has no phrase here, by its own name."""
    for path in f.started.engine_paths:
        known = f"s_path_{path}" in catalogue()["en"]
        yield word(f"s_path_{path}", f.lang) if known else word("s_path", f.lang, name=plain_text(str(path)[:40]))


def _changes(f: Facts) -> Iterator[str]:
    """What each transform made of the weights."""
    for e in f.events:
        if isinstance(e, WeightsChanged):
            before, after = change_text(e.before_bytes, e.after_bytes)
            names = {"name": plain_text(e.technique), "note": plain_text(e.note)}
            yield word("s_weights", f.lang, before=before, after=after, **names)


def _ends(f: Facts) -> Iterator[str]:
    """What ended the run before its time."""
    for e in f.events:
        if isinstance(e, Finished) and e.reason == "stopped":
            yield word("s_stopped", f.lang)
        if isinstance(e, Failed):
            yield word("s_failed", f.lang, message=plain_text(e.message))


def run_summary(events: Sequence[Event], lang: str) -> str:
    """The account of a trace, as Markdown: one heading per lane and one line per rule that holds."""
    runs = lanes(events)
    if not runs:
        return word("no_run", lang)
    parts = []
    for lane, run in runs.items():
        f = Facts(run, runs.get("baseline") if lane != "baseline" else None, lang)
        compared = _told(COMPARISON, f) if f.speed_ratio is not None else ()
        lines = [*_told(HEAD, f), *_paths(f), *_changes(f), *_told(BODY, f), *compared, *_ends(f)]
        title = lane_name(lane, lang) if lane in LANES else plain_text(lane_name(lane, lang))
        parts.append(f"### {title[:1].upper()}{title[1:]}\n\n" + "\n".join(f"- {line}" for line in lines))
    return "\n\n".join(parts)

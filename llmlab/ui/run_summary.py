"""What happened in a run, in words: a fold over its events that also says when a technique did not pay, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmlab.lab.records import record
from llmlab.measure.quality import first_difference
from llmlab.measure.trace import lanes
from llmlab.models.loading.fit import gigabytes
from llmlab.runtime.events import Event, Failed, Finished, Started, WeightsChanged
from llmlab.runtime.stack import Stack
from llmlab.ui.i18n import word

WAYS = ("bitwise", "fast", "copies", "no-bf16", "wrapped")
"""Ways of the engine that the account can name."""
PLACES = 6
"""Places of a draft whose acceptance is told one by one."""
PAYS = 1.02
"""Times the baseline's speed below which a technique is said not to pay; two equal runs differ by about this much."""


def plain_text(text: str) -> str:
    """Text of a stranger's making as Markdown shows it literally."""
    return "".join("\\" + c if c in r"\`*_{}[]()<>#+-.!|~$&" else c for c in text.replace("\n", " "))


def run_summary(events: Sequence[Event], lang: str) -> str:
    """The account of a trace, as Markdown."""
    runs = lanes(events)
    if not runs:
        return word("no_run", lang)
    base = runs.get("baseline")
    told = [_run(name, run, base if name != "baseline" else None, lang) for name, run in runs.items()]
    return "\n\n".join(told)


def _run(name: str, events: Sequence[Event], base: Sequence[Event] | None, lang: str) -> str:
    value = record(events)
    m, started = value["metrics"], next(e for e in events if isinstance(e, Started))
    stack = Stack.from_json(started.stack)
    facts = {
        "tokens": m["new_tokens"],
        "passes": m["passes"],
        "per": f"{m['tokens_per_pass']:.2f}",
        "speed": f"{m['decode_tokens_per_second']:.1f}",
        "ttft": f"{m['ttft_seconds'] or 0:.2f}",
    }
    lines = []
    if len(stack):
        lines.append(word("s_stack", lang, names=" + ".join(t.title for t in stack), **facts))
    else:
        lines.append(word("s_plain", lang, **facts))
    lines.append(word("s_from", lang, weights=started.weights, device=plain_text(started.device)))
    lines += [word(f"s_path_{way}", lang) for way in started.engine_paths if way in WAYS]
    for e in events:
        if isinstance(e, WeightsChanged):
            sizes = {"before": gigabytes(e.before_bytes), "after": gigabytes(e.after_bytes)}
            lines.append(word("s_weights", lang, name=plain_text(e.technique), note=plain_text(e.note), **sizes))
    if stack.one("Drafter"):
        if m["drafted"]:
            rate = f"{m['acceptance_rate']:.0%}"
            lines.append(word("s_drafts", lang, accepted=m["accepted"], drafted=m["drafted"], rate=rate))
            places = [f"{d}: {kept / drafts:.0%}" for d, drafts, kept in m["accepted_by_depth"][:PLACES]]
            if len(places) > 1:
                lines.append(word("s_by_depth", lang, rates=", ".join(places)))
        else:
            lines.append(word("s_no_drafts", lang))
    acceptor = stack.one("Acceptor")
    if acceptor and m["drafted"] and not acceptor.lossless():
        lines.append(word("s_acceptor", lang, name=acceptor.title))
    if stack.one("CachePolicy"):
        whole = m["prompt_tokens"] + m["new_tokens"]
        if m["evicted_rows"]:
            held = m["kv_rows_peak"]
            lines.append(word("s_evicted", lang, rows=m["evicted_rows"], held=held, whole=whole))
        else:
            lines.append(word("s_not_evicted", lang, whole=whole))
    if m["layers_run_mean"] is not None and m["layers_run_mean"] < started.layers - 0.005:
        lines.append(word("s_layers", lang, mean=f"{m['layers_run_mean']:.1f}", layers=started.layers))
    if started.least_seconds and m["seconds_per_pass_median"] and not stack.one("Drafter"):
        bound = {"bound": f"{1000 * started.least_seconds:.1f}", "median": f"{1000 * m['seconds_per_pass_median']:.1f}"}
        lines.append(word("s_roofline", lang, **bound))
    if stack.simulated():
        lines.append(word("s_simulated", lang, names=", ".join(t.title for t in stack.simulated())))
    if base and len(stack):
        lines += _against(value, started, stack, base, lang)
    for e in events:
        if isinstance(e, Finished) and e.reason == "stopped":
            lines.append(word("s_stopped", lang))
        if isinstance(e, Failed):
            lines.append(word("s_failed", lang, message=plain_text(e.message)))
    title = word(name if name in ("baseline", "stack") else "stack", lang)
    return f"### {title[:1].upper()}{title[1:]}\n\n" + "\n".join(f"- {line}" for line in lines)


def _against(
    value: dict[str, Any],
    started: Started,
    stack: Stack,
    base: Sequence[Event],
    lang: str,
) -> list[str]:
    """How the run compares with its baseline: speed, text, and why it was no faster where it was not."""
    other = record(base)
    m, b = value["metrics"], other["metrics"]
    if not b["decode_tokens_per_second"] or not m["decode_tokens_per_second"]:
        return []
    ratio = m["decode_tokens_per_second"] / b["decode_tokens_per_second"]
    lines = [word("s_faster", lang, ratio=f"{ratio:.2f}")]
    ids, theirs = value["token_ids"], other["token_ids"]
    at = first_difference(theirs, ids)
    sampled = bool(started.settings.get("temperature"))
    lines.append(word("s_same", lang) if at is None else word("s_differs", lang, at=at))
    margin = (value["quality"] or {}).get("margin")
    if at is not None and not sampled and isinstance(margin, int | float):
        lines[-1] += " " + word("s_margin", lang, margin=f"{margin:.3f}")
    if at is not None:
        if sampled:
            lines.append(word("s_sampled", lang, t=started.settings["temperature"]))
        elif stack.lossless() and started.weights != "dense-fp32":
            lines.append(word("s_lossless_differs", lang, weights=started.weights))
    if ratio < PAYS and m["seconds_per_pass_median"] and b["seconds_per_pass_median"]:
        time, per = m["seconds_per_pass_median"] / b["seconds_per_pass_median"], m["tokens_per_pass"]
        if stack.one("Drafter") and not m["drafted"]:
            why = word("w_no_draft", lang)
        elif per > 1.005:
            why = word("w_wide", lang, time=f"{time:.2f}", per=f"{per:.2f}")
        else:
            why = word("w_same", lang, time=f"{time:.2f}")
        lines.append(word("s_not_paid", lang, why=why))
    return lines


def quality_table(quality: dict[str, Any] | None, lang: str) -> str:
    """The cost in quality as a Markdown table with the meaning of each figure."""
    if not quality:
        return word("q_none", lang)
    show = {
        "identical": lambda v: word("yes" if v else "no", lang),
        "first_difference": lambda v: "—" if v is None else str(int(v)),
        "margin": lambda v: "—" if v is None else f"{v:.3f}",
        "kl_mean": lambda v: f"{v:.2g}",
        "top1_agreement": lambda v: f"{v:.1%}",
        "perplexity_ratio": lambda v: "—" if v is None else f"{v:.3f}",
    }
    short = {"first_difference": "q_first", "kl_mean": "q_kl", "top1_agreement": "q_top1", "perplexity_ratio": "q_ppl"}
    rows = [f"| {word('q_question', lang)} | {word('q_answer', lang)} | {word('q_meaning', lang)} |", "|---|---|---|"]
    for name, say in show.items():
        key = short.get(name, f"q_{name}")
        try:
            answer = say(quality.get(name))
        except (TypeError, ValueError):  # a stranger's trace may hold anything
            answer = "—"
        rows.append(f"| {word(key, lang)} | {answer} | {word(key + '_m', lang)} |")
    return "\n".join(rows)

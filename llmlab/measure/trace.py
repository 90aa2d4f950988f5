"""A run on paper: events to JSON lines and back, and the ledger that folds them into figures."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmlab.errors import Refused
from llmlab.measure.roofline import Rates, Roofline, roofline
from llmlab.runtime.events import (
    Committed,
    Compared,
    Drafted,
    Event,
    Evicted,
    Failed,
    Finished,
    Prefilled,
    Started,
    from_json,
    to_json,
)

HEADER = {"schema": "llmlab.trace/1"}
LARGEST = 16 << 20
"""Bytes of a trace that are read, and with `MOST` the limit on what a stranger's file may cost."""
MOST = 50_000


def dumps(events: Iterable[Event]) -> str:
    """One JSON object per line: a header, then the events."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [HEADER, *map(to_json, events)])


def loads(text: str) -> list[Event]:
    """The inverse of `dumps`. Raises Refused for anything that is not a complete trace of this lab."""
    lines = text.strip().split("\n")  # not splitlines: a token's text may hold U+2028, which JSON leaves as it is
    if len(text) > LARGEST or len(lines) > MOST:
        raise Refused("The trace", f"is larger than {LARGEST >> 20} MB or {MOST} events", "Record a shorter run")
    events: list[Event] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise Refused("The trace", f"breaks off or is damaged at line {number}", "Export it again") from e
        if number == 1:
            if not isinstance(value, dict) or value.get("schema") != HEADER["schema"]:
                raise Refused("The file", f"is not a trace: its first line is not {HEADER}", "Give one exported here")
            continue
        events.append(from_json(value))
    if not events or not isinstance(events[0], Started):
        raise Refused("The trace", "holds no run: its first event is not Started", "Export it again")
    if not isinstance(events[-1], Finished | Compared | Failed):
        raise Refused("The trace", "breaks off before its run is finished", "Export it again")
    return events


def load(path: Path | str) -> list[Event]:
    """A trace from a file. Raises Refused when it cannot be read."""
    try:
        with open(path, "rb") as f:
            return loads(f.read(LARGEST + 1).decode("utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise Refused(f"The trace {Path(path).name!r}", f"cannot be read ({type(e).__name__})", "Check the file") from e


def lanes(events: Iterable[Event]) -> dict[str, list[Event]]:
    """The events of each run in a trace, by lane: "baseline", "stack" or both."""
    found: dict[str, list[Event]] = {}
    current: list[Event] = []
    for e in events:
        if isinstance(e, Started):
            current = found.setdefault(e.lane, [])
            current.clear()
        current.append(e)
    return found


def ledger(events: Sequence[Event]) -> dict[str, Any]:
    """The figures of one run: counts, seconds and bytes, all folded from its events."""
    started = next(e for e in events if isinstance(e, Started))
    commits = [e for e in events if isinstance(e, Committed)]
    prefills = [e for e in events if isinstance(e, Prefilled)]
    tokens = sum(len(e.tokens) for e in commits)
    read = prefills[-1].t if prefills else started.t
    decode = commits[-1].t - read if commits else 0.0
    seconds = [e.seconds for e in commits]
    return {
        "prompt_tokens": started.prompt_tokens,
        "new_tokens": tokens,
        "passes": len(commits),
        "tokens_per_pass": tokens / len(commits) if commits else 0.0,
        **_drafting(events),
        "prefill_seconds": read - started.t,
        "ttft_seconds": commits[0].t - started.t if commits else None,
        "decode_seconds": decode,
        "decode_tokens_per_second": tokens / decode if decode > 0 else 0.0,
        "seconds_per_pass_median": statistics.median(seconds) if seconds else None,
        "seconds_per_pass_p95": sorted(seconds)[int(0.95 * (len(seconds) - 1))] if seconds else None,
        **_peaks(started, [*prefills, *commits]),
        "layers_run_mean": statistics.fmean([e.layers_run for e in commits]) if commits else None,
        **_computed(prefills, commits, tokens),
        **_against_the_machine(events),
        "evicted_rows": sum(sum(e.before) - sum(e.after) for e in events if isinstance(e, Evicted)),
    }


def _drafting(events: Sequence[Event]) -> dict[str, Any]:
    """What became of drafts, by the definitions of vLLM's and llama.cpp's counters.

    `drafts` are the passes that checked one, `acceptance_rate` is accepted over drafted tokens,
    `mean_acceptance_length` is 1 + accepted / drafts. `tokens_per_pass` counts passes without a draft too.
    """
    drafted = sum(len(e.tokens) for e in events if isinstance(e, Drafted))
    accepted = sum(len(e.path) for e in events if isinstance(e, Committed))
    by_depth = accepted_by_depth(events)
    drafts = by_depth[0][1] if by_depth else 0
    return {
        "drafted": drafted,
        "accepted": accepted,
        "acceptance_rate": accepted / drafted if drafted else None,
        "drafts": drafts,
        "mean_acceptance_length": 1 + accepted / drafts if drafts else None,
        "acceptance_by_position": acceptance_by_position(events),
        "accepted_by_depth": by_depth,
    }


def _peaks(started: Started, events: Sequence[Prefilled | Committed]) -> dict[str, int]:
    """What the weights take, copies, drafters and parts among them; the most that keys and values, activations and all
    together took."""
    return {
        "weight_bytes": started.weight_bytes,
        "copies_bytes": started.copies_bytes,
        "auxiliary_bytes": started.auxiliary_bytes,
        "kv_bytes_peak": max([e.kv_bytes for e in events], default=0),
        "kv_rows_peak": max([max(e.kv_rows, default=0) for e in events], default=0),
        "activation_bytes_peak": max([e.activation_bytes for e in events], default=0),
        "memory_bytes_peak": started.weight_bytes + max([e.kv_bytes + e.activation_bytes for e in events], default=0),
    }


def memory_parts(m: Mapping[str, Any]) -> dict[str, int]:
    """A ledger's memory by part, where each was largest: weights, copies, drafters and parts, KV cache, activations."""
    return {
        "weights": m["weight_bytes"] - m["copies_bytes"] - m["auxiliary_bytes"],
        "copies": m["copies_bytes"],
        "parts": m["auxiliary_bytes"],
        "kv": m["kv_bytes_peak"],
        "activations": m["activation_bytes_peak"],
    }


def _computed(prefills: Sequence[Prefilled], commits: Sequence[Committed], tokens: int) -> dict[str, Any]:
    """What was computed for the prompt and per new token; None in traces that did not count it.

    `layers_run_mean` says how deep a token went before it was there; this says what was computed for it in the end.
    """
    read = prefills[-1] if prefills else None
    rows, flops = sum(e.layer_rows for e in commits), sum(e.flops for e in commits)
    counted = tokens if rows else 0
    return {
        "prefill_layer_rows": read.layer_rows if read and read.layer_rows else None,
        "prefill_flops": read.flops if read and read.layer_rows else None,
        "layer_rows": rows if rows else None,
        "kv_only_rows": sum(e.kv_only_rows for e in commits) if rows else None,
        "drafter_layer_rows": sum(e.drafter_rows for e in commits) if rows else None,
        "layer_rows_per_token": rows / counted if counted else None,
        "flops": flops if rows else None,
        "flops_per_token": flops / counted if counted else None,
    }


def _against_the_machine(events: Sequence[Event]) -> dict[str, Any]:
    found = run_roofline(events)
    return {
        "roofline_seconds": found.seconds if found else None,
        "roofline_is_bound": found.bound if found else None,
    }


def run_roofline(events: Sequence[Event]) -> Roofline | None:
    """One run against what its machine was measured to do; None where that was not recorded."""
    started = next(e for e in events if isinstance(e, Started))
    passes = [(e.seconds, e.read_bytes, e.flops) for e in events if isinstance(e, Committed)]
    return roofline(Rates.from_json(started.rates), passes)


def accepted_by_depth(events: Sequence[Event]) -> list[list[int]]:
    """Per depth d = 1, 2, … of the drafts: [d, how many had a node there, of how many one was accepted there]."""
    reached: Counter[int] = Counter()
    accepted: Counter[int] = Counter()
    deepest = 0
    for e in events:
        if isinstance(e, Drafted):
            depths: list[int] = []
            for p in e.parents:  # in a stranger's trace they may be any numbers
                depths.append(depths[p] + 1 if 0 <= p < len(depths) else 1)
            deepest = max(depths, default=0)
        elif isinstance(e, Committed):
            reached[deepest] += 1
            accepted[min(len(e.path), deepest)] += 1
            deepest = 0
    table, drafts, kept = [], 0, 0
    for d in range(max(reached, default=0), 0, -1):
        drafts, kept = drafts + reached[d], kept + accepted[d]
        table.append([d, drafts, kept])
    return table[::-1]


def acceptance_by_position(events: Sequence[Event]) -> list[float]:
    """Of all passes that checked a draft, in which share the d-th token in a row was accepted, for d = 1, 2, …

    vLLM's accepted tokens per position over drafts: a shorter draft counts as not accepted there, so 1 and the shares
    add up to the mean acceptance length. The last is that of the deepest draft.
    """
    table = accepted_by_depth(events)
    return [kept / table[0][1] for _, _, kept in table]


def comparison(events: Sequence[Event]) -> Compared | None:
    """The trace's comparison, the last where it holds several; None where it holds none."""
    return next((e for e in reversed(events) if isinstance(e, Compared)), None)


def quality(events: Sequence[Event]) -> dict[str, Any] | None:
    """What the trace's comparison measured; None where it holds none."""
    found = comparison(events)
    return found.quality if found else None


ROUND = (
    *("round", "t", "seconds", "drafted", "accepted", "tokens", "text", "kv_rows", "kv_bytes", "layers_run"),
    *("layer_rows", "kv_only_rows", "flops", "read_bytes", "activation_bytes"),
)
"""The columns of the table of rounds. Those of the second line are 0 in traces that did not count them."""


def rounds(events: Sequence[Event]) -> list[tuple[Any, ...]]:
    """One row per pass, in the order of `ROUND`."""
    table: list[tuple[Any, ...]] = []
    drafted = 0
    for e in events:
        if isinstance(e, Drafted):
            drafted = len(e.tokens)
        elif isinstance(e, Committed):
            text = "".join(e.text) or " ".join(map(str, e.tokens))
            held = max(e.kv_rows, default=0)
            row = (len(table) + 1, e.t, e.seconds, drafted, len(e.path), len(e.tokens), text, held, e.kv_bytes)
            counted = (e.layer_rows, e.kv_only_rows, e.flops, e.read_bytes, e.activation_bytes)
            table.append((*row, e.layers_run, *counted))
            drafted = 0
    return table


def rounds_csv(events: Sequence[Event]) -> str:
    """The table of rounds as CSV; cells that a spreadsheet would run as a formula are quoted with an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(ROUND)
    for row in rounds(events):
        writer.writerow(["'" + c if isinstance(c, str) and c[:1] in "=+-@\t\r" else c for c in row])
    return out.getvalue()

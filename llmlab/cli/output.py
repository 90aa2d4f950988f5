"""What the commands say and write: progress and figures on standard error, results on standard output or in files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmlab.errors import Refused


def say(text: str = "") -> None:
    print(text, file=sys.stderr, flush=True)


def report(what: str, done: int, total: int) -> None:
    """Progress on one line of standard error, only on a terminal."""
    if sys.stderr.isatty():
        share = f" {done}/{total}" if total else ""
        if total > 1 << 20:
            share = f" {done / total:4.0%} of {total / 1e6:.0f} MB"
        print(f"\r\033[K{what}{share}", end="", file=sys.stderr, flush=True)
        if total and done >= total:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def write(value: Any, where: str | None) -> None:
    """A value as JSON in a file, on standard output for "-", or nowhere for None."""
    if where is None:
        return
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    if where == "-":
        sys.stdout.write(text)
        return
    save(where, text)


def save(where: str, text: str) -> None:
    """Raises Refused for a place that cannot be written."""
    try:
        Path(where).write_text(text, encoding="utf-8")
    except OSError as e:
        raise Refused(f"The file {where}", f"cannot be written ({e.strerror})", "Give another path") from e


def metrics_line(m: dict[str, Any]) -> str:
    """A record's metrics in one line."""
    parts = [
        f"{m['new_tokens']} tokens in {m['passes']} passes ({m['tokens_per_pass']:.2f} a pass)",
        f"{m['decode_tokens_per_second']:.1f} tokens/s",
        f"first token after {m['ttft_seconds'] or 0:.2f} s",
        f"weights {m['weight_bytes'] / 1e6:.0f} MB",
        f"KV at most {m['kv_bytes_peak'] / 1e6:.1f} MB in {m['kv_rows_peak']} rows",
    ]
    if m["drafted"]:
        parts.insert(1, f"{m['accepted']} of {m['drafted']} drafted tokens accepted")
    return " · ".join(parts)


def show_events(events: Iterable[Any], prepared: Any, quiet: bool, headings: bool = False) -> list[Any]:
    """The events as a list, shown while they come: what became of the weights, a heading per lane, the text."""
    from llmlab.runtime.events import Committed, Finished, Started, WeightsChanged

    seen, ends, stack = [], prepared.loaded.stop_tokens, prepared.settings.stack
    for e in events:
        seen.append(e)
        if isinstance(e, WeightsChanged):
            say(f"{e.technique}: {e.note}")
        if quiet:
            continue
        if isinstance(e, Started) and headings:
            print("--- baseline" if e.lane == "baseline" else "--- with " + (" ".join(stack.arguments()) or "nothing"))
        if isinstance(e, Committed):
            print("".join(t for i, t in zip(e.tokens, e.text, strict=True) if i not in ends), end="", flush=True)
        if isinstance(e, Finished):
            print(flush=True)
    return seen

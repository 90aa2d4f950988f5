"""What the commands say and write: progress and figures on standard error, results on standard output or in files."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from llmlab.cli import interruption
from llmlab.cli.places import save
from llmlab.errors import Refused


class OutputLost(Exception):
    """Standard output takes nothing any more; `why` says so, None where its reader has simply gone."""

    def __init__(self, e: OSError) -> None:
        self.why = None if isinstance(e, BrokenPipeError) else e.strerror or type(e).__name__
        super().__init__(self.why)


def carried_out(act: Callable[[], None]) -> int:
    """The exit status of a command: 0, or 2 with one sentence on standard error, or 130 after Ctrl-C and 143 after
    SIGTERM, with one too."""
    try:
        try:
            act()
        finally:
            flush()
    except KeyboardInterrupt:
        return _ended_early()
    except OutputLost as e:
        if e.why is None:
            return 0
        say(f"Standard output cannot be written ({e.why}). Send it elsewhere, or write a file with --json.")
        return 2
    except BrokenPipeError:
        return 0
    except Exception as e:
        if interruption.interrupted():
            return _ended_early(f" {e}" if isinstance(e, Refused) else "")
        sentence = _sentence(e)
        if sentence is None:
            raise
        say(sentence)
        return 2
    return 0


def _ended_early(more: str = "") -> int:
    interruption.interrupted()  # it has arrived
    clear_line()
    say(interruption.sentence() + more)
    return interruption.status()


def _sentence(e: Exception) -> str | None:
    """What to say of an error that comes of what was given or of the machine; None for one that is our own."""
    if isinstance(e, Refused):
        return str(e)
    if isinstance(e, OSError) and e.errno is not None:
        return f"{f'The file {e.filename}' if e.filename else 'Something'} cannot be used ({e.strerror})."
    if isinstance(e, MemoryError | RuntimeError):  # PyTorch's own out-of-memory errors are RuntimeErrors
        from llmlab.lab.experiment import out_of_memory

        return out_of_memory(e)
    return None


def show(text: str = "", end: str = "\n") -> None:
    """Print to standard output at once. Raises OutputLost."""
    try:
        print(text, end=end)
    except OSError as e:
        _let_go()
        raise OutputLost(e) from e
    flush()


def flush() -> None:
    """Raises OutputLost where what was printed before does not arrive."""
    try:
        sys.stdout.flush()
    except OSError as e:
        _let_go()
        raise OutputLost(e) from e


def _let_go() -> None:
    """Send what is still held back nowhere: Python would try it once more at its end, and complain."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def say(text: str = "") -> None:
    """Tell it on standard error, if that is there."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def report(what: str, done: int, total: int) -> None:
    """Progress on one line of standard error, only on a terminal."""
    if sys.stderr.isatty():
        share = f" {done}/{total}" if total else ""
        if total > 1 << 20:
            share = f" {done / total:4.0%} of {total / 1e6:.0f} MB"
        ended = "\r\033[K" if total and done >= total else ""
        with contextlib.suppress(OSError):
            print(f"\r\033[K{what}{share}{ended}", end="", file=sys.stderr, flush=True)


def clear_line() -> None:
    """Take back what `report` has left on a terminal."""
    if sys.stderr.isatty():
        with contextlib.suppress(OSError):
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def write(value: Any, where: str | None) -> None:
    """A value as JSON in a file, on standard output for "-", or nowhere for None. Raises Refused or OutputLost."""
    if where is None:
        return
    letters = where != "-" or "utf" in str(getattr(sys.stdout, "encoding", "utf")).lower()
    text = json.dumps(value, ensure_ascii=not letters, indent=2)
    if where == "-":
        show(text)
        return
    save(where, text + "\n")


def write_run(value: Any, events: list[Any], a: argparse.Namespace) -> None:
    """A record and its trace where they were asked for; one that cannot be written keeps the other from nothing.

    Raises Refused or OutputLost for the first that cannot; the second is told of.
    """
    from llmlab.measure import trace

    failed: list[Refused | OutputLost] = []
    with interruption.held():
        try:
            write(value, a.json)
        except (Refused, OutputLost) as e:
            failed.append(e)
        try:
            if a.trace:
                save(a.trace, trace.dumps(events))
        except Refused as e:
            failed.append(e)
        for other in failed[1:]:
            say(str(other))
        if failed:
            raise failed[0]


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


def show_events(events: Iterable[Any], prepared: Any, a: argparse.Namespace, headings: bool = False) -> list[Any]:
    """The events as a list, shown while they come: what became of the weights, a heading per lane, the text.

    Nothing is shown where the record itself goes to standard output. Where standard output is lost on the way, the run
    goes on for the sake of a file that was asked for; what an interruption leaves is finished as a stopped run. Raises
    OutputLost where there is no file.
    """
    seen: list[Any] = []
    try:
        _follow(events, seen, prepared, a, headings)
    except KeyboardInterrupt:
        if not interruption.interrupted():
            raise
    return stopped(seen) if interruption.interrupted() else seen


def stopped(events: list[Any]) -> list[Any]:
    """What an interrupted run has brought until then, with the end that it did not come to."""
    from llmlab.measure import trace
    from llmlab.runtime.events import Compared, Finished, Started

    starts = [i for i, e in enumerate(events) if isinstance(e, Started)]
    if not starts or isinstance(events[-1], Finished | Compared):
        return events
    return [*events, Finished(events[-1].t, "stopped", trace.ledger(events[starts[-1] :]))]


def _follow(events: Iterable[Any], seen: list[Any], prepared: Any, a: argparse.Namespace, headings: bool) -> None:
    from llmlab.runtime.events import Started, WeightsChanged

    quiet = a.json == "-"
    for e in events:
        seen.append(e)
        if isinstance(e, Started):
            clear_line()
        if isinstance(e, WeightsChanged):
            say(f"{e.technique}: {e.note}")
        if quiet:
            continue
        try:
            _show_event(e, prepared, headings)
        except OutputLost as lost:
            if not (a.json or a.trace):
                raise
            quiet = True
            if lost.why is not None:
                say(f"Standard output cannot be written ({lost.why}); the run goes on for its file.")
        if interruption.interrupted():  # and what was raised then was lost in a library
            return


def keep_stopped(a: argparse.Namespace, lab: Any, prepared: Any, events: list[Any]) -> None:
    """Write what an interrupted run has brought where its result was to go. Raises KeyboardInterrupt after that, and
    returns where nothing was interrupted."""
    from llmlab.measure import trace
    from llmlab.runtime.events import Started

    if not interruption.interrupted():
        return
    if not any(isinstance(e, Started) for e in events):
        raise KeyboardInterrupt
    with interruption.held():
        lanes = trace.lanes(events)
        *_, last = lanes
        value = lab.record(prepared, lanes[last]) | {"stopped": True}
        if last != "baseline" and "baseline" in lanes:
            value["baseline"] = lab.record(prepared, lanes["baseline"])
        write_run(value, events, a)


def _show_event(e: Any, prepared: Any, headings: bool) -> None:
    from llmlab.runtime.events import Committed, Finished, Started

    ends, stack = prepared.loaded.stop_tokens, prepared.settings.stack
    if isinstance(e, Started) and headings:
        show("--- baseline" if e.lane == "baseline" else "--- with " + (" ".join(stack.arguments()) or "nothing"))
    if isinstance(e, Committed):
        show("".join(t for i, t in zip(e.tokens, e.text, strict=True) if i not in ends), end="")
    if isinstance(e, Finished):
        show()

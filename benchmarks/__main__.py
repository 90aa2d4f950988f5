"""The engine side by side with what people would use instead, on one GGUF file, on this machine.

    python -m benchmarks [--cases decode,prefill-500,…] [--peers llama.cpp,…] [--rounds 7] [--json OUT|-] [--html OUT]

Every engine runs in a process of its own; all are loaded, and they take turns. Peers that are no part of the lab's own
requirements live in an environment that this command makes. Not part of CI: timings of a shared machine prove nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import write_page
from benchmarks.workers import HERE, Worker, peers_environment, python_of
from llmlab.cli.output import say, write
from llmlab.errors import Refused, unknown_name
from llmlab.measure import benchmark
from llmlab.measure.hardware import cores
from llmlab.models.loading.sources import locate
from llmlab.models.loading.tokens.tokenizers import read_tokenizer

OURS, OWN = "llmlab", "llmlab.lab.contestants.own_engine:Ours"
LEAN, OWN_LEAN = "llmlab, no copies", "llmlab.lab.contestants.own_engine:OursLean"
PEERS = {
    "llama.cpp": "llama_cpp_peer",
    "OpenVINO GenAI": "openvino_peer",
    "transformers float32": "llmlab.lab.contestants.transformers_engine:Transformers",
    "transformers bfloat16": "llmlab.lab.contestants.transformers_engine:TransformersBfloat16",
    "transformers NF4": "llmlab.lab.contestants.transformers_engine:TransformersNf4",
}
SLOW = {"decode-4000", "prefill-2000", "batch-8", "batch-16", "batch-32"}
"""Cases that transformers sits out unless it is asked for by name: a round of them takes minutes."""
EXTRA = ("cold-start", "memory", "events", "growth")
"""Cases that are not a verb of one engine: process start to first token, peak memory, ours with and without its
events, and how much a token's time grows from depth 64 to 4 000."""
COLD = ["run", "--prompt", "Why is the sky blue?", "--max-new-tokens", "1", "--weights", "int4"]


def cold_start(start: Start, modules: Mapping[str, str], rounds: int) -> dict[str, list[float]]:
    """Seconds from a process's start to its first new token, engines in turn; files are in the disk's cache."""
    seconds: dict[str, list[float]] = {n: [] for n in modules}
    for turn in range(rounds + 1):
        for name, module in modules.items():
            took = _own_first_token(start.file) if name == OURS else _first_token(start, module)
            if turn:
                seconds[name].append(took)
    return seconds


def _own_first_token(file: str) -> float:
    begin = time.perf_counter()
    command = [sys.executable, "-m", "llmlab", *COLD, "--model", file]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=HERE.parent) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        return time.perf_counter() - begin


def _first_token(start: Start, module: str) -> float:
    begin = time.perf_counter()
    worker = start.one(module)
    worker("prefill", [list(range(100, 140))])
    took = time.perf_counter() - begin
    worker.close()
    return took


def growth(near: benchmark.Row, far: benchmark.Row) -> benchmark.Row:
    """How much more a token costs at depth 4 000 than at 64, round by round."""
    engines = [n for n in far.seconds if n in near.seconds]
    pairs = {n: zip(near.seconds[n], far.seconds[n], strict=True) for n in engines}
    return benchmark.Row("growth", {n: [f - s for s, f in rounds] for n, rounds in pairs.items()})


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    p.add_argument("--cases", default="", help="of: " + ", ".join([*benchmark.CASES, *EXTRA]))
    p.add_argument("--peers", default="", help="of: " + ", ".join(PEERS))
    p.add_argument("--model", default="smollm2-135m", help="a catalogue model that is a GGUF file here, or a GGUF file")
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--threads", type=int, default=0, help="0: one per core")
    p.add_argument("--json", default=None, metavar="OUT|-")
    p.add_argument(
        "--html", default="benchmark.html", metavar="OUT", help="the page of bars; an empty name writes none"
    )
    try:
        return _run(p.parse_args(arguments))
    except Refused as e:
        say(str(e))
        return 2


def _chosen(given: str, known: Sequence[str], what: str) -> list[str]:
    names = [n.strip() for n in given.split(",") if n.strip()] or list(known)
    for n in names:
        if n not in known:
            raise unknown_name(what, n, known)
    return names


def _run(a: argparse.Namespace) -> int:
    cases = _chosen(a.cases, [*benchmark.CASES, *EXTRA], "case")
    wanted = _chosen(a.peers, list(PEERS), "peer")
    if a.rounds < 1:
        raise Refused("The number of rounds", f"cannot be {a.rounds}", "Give 1 or more")
    if "growth" in cases:
        cases += [c for c in ("decode", "decode-4000") if c not in cases]
    threads = a.threads or cores()
    found = locate.fetch(locate.find(a.model))
    if found.kind != "gguf" or found.path is None:
        raise Refused(
            found.name, "is no GGUF file here, and the peers read the same file", "Give a GGUF file as --model"
        )
    warning = benchmark.busy_warning()
    if warning:
        say(warning)
    python = peers_environment(say) if any(":" not in PEERS[n] for n in wanted) else sys.executable
    start = Start(str(found.path), python, threads)
    modules = {OURS: OWN, **{n: PEERS[n] for n in wanted}}
    rows: dict[str, Any] = {}
    if "cold-start" in cases:
        able = {n: m for n, m in modules.items() if start.works(n, m)}
        rows["cold-start"] = benchmark.Row("cold-start", cold_start(start, able, min(a.rounds, 5))).to_json(OURS)
        say("cold-start: " + json.dumps(rows["cold-start"]["ratios"]))
    workers = start.all(modules)
    try:
        tokens = benchmark.tokens_of(read_tokenizer(found), 4700)
        raw = _measure(cases, workers, tokens, a.rounds, bool(a.peers), rows)
        if "memory" in cases:
            workers[LEAN] = start.one(OWN_LEAN)
            rows["memory"] = memory(workers, tokens)
        versions = {n: w.about["version"] for n, w in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    if "growth" in cases:
        rows["growth"] = growth(raw["decode"], raw["decode-4000"]).to_json(OURS)
    rows = {c: rows[c] for c in cases if c in rows}
    machine = {**benchmark.describe_machine(), "threads": threads, "busy": warning}
    about = {"model": found.name, "weights": "int4", "versions": versions}
    _tell({"schema": "llmlab.bench/1", **about, "machine": machine, "cases": rows}, a.json, a.html)
    return 0


def _tell(value: dict[str, Any], json_to: str | None, page_to: str) -> None:
    rows = value["cases"]
    if json_to != "-":
        print(benchmark.text_table({c: r for c, r in rows.items() if "median_ms" in r}, OURS))
        if "memory" in rows:
            print("peak memory, MB: " + ", ".join(f"{n} {v}" for n, v in rows["memory"]["peak_mb"].items()))
    write(value, json_to)
    if page_to:
        write_page(value, Path(page_to))


@dataclass(frozen=True)
class Start:
    """How a contestant's process is started: the GGUF file, the peers' Python, the threads of each."""

    file: str
    python: str
    threads: int

    def one(self, module: str) -> Worker:
        """Raises RuntimeError with what the contestant said."""
        return Worker(python_of(module, self.python), module, self.file, self.threads)

    def works(self, name: str, module: str) -> bool:
        """Whether it starts; one that does not is named."""
        try:
            self.one(module).close()
            return True
        except RuntimeError as e:
            say(f"{name} is left out: {e}")
            return False

    def all(self, modules: Mapping[str, str]) -> dict[str, Worker]:
        """Everyone who starts, by name. Raises Refused where the lab's own engine does not."""
        workers: dict[str, Worker] = {}
        for name, module in modules.items():
            try:
                workers[name] = self.one(module)
                say(f"{name} {workers[name].about['version']} is ready")
            except RuntimeError as e:
                if name == OURS:
                    raise Refused("The lab's own engine", f"does not start ({e})", "Run the tests") from e
                say(f"{name} is left out: {e}")
        return workers


def memory(workers: Mapping[str, Worker], tokens: Sequence[int]) -> dict[str, Any]:
    """Peak memory of each process after a prompt of 500 tokens.

    Figures of a case are milliseconds everywhere else; here they are megabytes, and the key says so.
    """
    for worker in workers.values():
        worker("prefill", [tokens[:500]])
    peaks = {n: w("peak") / 1e6 for n, w in workers.items()}
    against = {n: round(v / peaks[OURS], 3) for n, v in peaks.items() if n != OURS}
    return {"ratios": against, "peak_mb": {n: round(v) for n, v in peaks.items()}}


def _measure(
    cases: Sequence[str],
    workers: dict[str, Worker],
    tokens: Sequence[int],
    rounds: int,
    by_name: bool,
    rows: dict[str, Any],
) -> dict[str, benchmark.Row]:
    """The cases that are verbs, and ours against itself, into `rows`; returns the verbs' rounds."""
    raw: dict[str, benchmark.Row] = {}
    for name in cases:
        calls = {
            n: _verb(w) for n, w in workers.items() if by_name or name not in SLOW or not n.startswith("transformers")
        }
        if name in benchmark.CASES:
            for row in benchmark.in_turn(calls, [name], tokens, rounds, say):
                raw[name], rows[name] = row, row.to_json(OURS)
        elif name == "events":
            rows[name] = events(workers[OURS], tokens, 2 * rounds)
        if name in rows and name != "cold-start":
            say(f"{name}: {json.dumps(rows[name]['ratios'])} {json.dumps(rows[name]['median_ms'])}")
    return raw


def events(ours: Worker, tokens: Sequence[int], rounds: int) -> dict[str, Any]:
    """Ours with its events and meters against the same forward passes in a bare loop."""
    ours("ready", [tokens[: benchmark.SHALLOW]])
    laps = [(ours("bare", [64]), ours("events", [64])) for _ in range(rounds + 1)][1:]
    bare, full = ([lap[i] for lap in laps] for i in (0, 1))
    return benchmark.Row("events", {OURS: full, "a bare loop": bare}).to_json(OURS)


def _verb(worker: Worker) -> benchmark.Call:
    """A worker as `benchmark.in_turn` calls it: only ours tells the two ways of verifying apart."""

    def call(verb: str, arguments: list[Any]) -> Any:
        ours = worker.about["name"].startswith(OURS)
        return worker(verb if ours or verb != "verify_fast" else "verify", arguments)

    return call


if __name__ == "__main__":
    sys.exit(main())

"""The engine side by side with what people would use instead, on one GGUF file, on this machine.

    python -m benchmarks [--cases decode,prefill-500,…] [--peers llama.cpp,…] [--rounds 7] [--json OUT|-] [--html OUT]

Every engine runs in a process of its own; all are loaded, and they take turns. Peers that are no part of the lab's own
requirements live in an environment that this command makes. Not part of CI: timings of a shared machine prove nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmlab.__main__ import say, write
from llmlab.errors import Refused
from llmlab.lab import benchmark
from llmlab.models.loading import locate
from llmlab.models.loading.environment import cache_folder
from llmlab.models.loading.tokenizers import read_tokenizer

HERE = Path(__file__).parent
WORKER = HERE / "peers" / "worker.py"
OURS = "llmlab"
LEAN = "llmlab, no copies"
PEERS = {
    "llama.cpp": "llama_cpp_peer",
    "OpenVINO GenAI": "openvino_peer",
    "transformers float32": "llmlab.lab.benchmark:Transformers",
    "transformers bfloat16": "llmlab.lab.benchmark:TransformersBfloat16",
    "transformers NF4": "llmlab.lab.benchmark:TransformersNf4",
}
SLOW = {"decode-4000", "prefill-2000", "batch-8", "batch-16", "batch-32"}
"""Cases that transformers sits out unless it is asked for by name: a round of them takes minutes."""
EXTRA = ("cold-start", "memory", "events", "growth")
"""Cases that are not a verb of one engine: process start to first token, peak memory, ours with and without its
events, and how much a token's time grows from depth 64 to 4 000."""
COLD = ["run", "--prompt", "Why is the sky blue?", "--max-new-tokens", "1", "--weights", "int4"]


class Worker:
    """An engine in another process. Raises RuntimeError with what the engine said."""

    def __init__(self, python: str, module: str, file: str, threads: int) -> None:
        command = [python, str(WORKER), module, file, str(threads)]
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if ":" in module:
            env["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), env.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
        )
        self.about = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        value = json.loads(line) if line else {"error": "it ended without an answer"}
        if "error" in value:
            raise RuntimeError(value["error"])
        return value

    def __call__(self, verb: str, arguments: Sequence[Any] = ()) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([verb, *arguments]) + "\n")
        self.process.stdin.flush()
        return self._answer()["value"]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def environment(tell: Any) -> str:
    """The Python of the peers' environment, made once; a peer that cannot be installed is named and left out."""
    folder = cache_folder() / "peers"
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        tell(f"Making an environment for the peers in {folder}")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    lines = (HERE / "requirements-peers.txt").read_text(encoding="utf-8").splitlines()
    for wanted in [line.split("#")[0].strip() for line in lines]:
        if not wanted:
            continue
        name, version = wanted.split("==")
        ask = f"import importlib.metadata as m; raise SystemExit(m.version({name!r}) != {version!r})"
        if subprocess.run([str(python), "-c", ask], capture_output=True, check=False).returncode == 0:
            continue
        tell(f"Installing {wanted} (llama.cpp is built from source: minutes)")
        env = {**os.environ, "CMAKE_ARGS": "-DGGML_NATIVE=ON"}
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "-q", wanted], capture_output=True, text=True, env=env, check=False
        )
        if done.returncode:
            tell(f"{wanted} cannot be installed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return str(python)


def cold_start(file: str, python: str, modules: dict[str, str], threads: int, rounds: int) -> dict[str, list[float]]:
    """Seconds from a process's start to its first new token, engines in turn; files are in the disk's cache."""
    seconds: dict[str, list[float]] = {n: [] for n in modules}
    for turn in range(rounds + 1):
        for name, module in modules.items():
            start = time.perf_counter()
            if name == OURS:
                command = [sys.executable, "-m", "llmlab", *COLD, "--model", file]
                with subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=HERE.parent
                ) as process:
                    assert process.stdout is not None
                    process.stdout.read(1)
                    took = time.perf_counter() - start
            else:
                worker = Worker(sys.executable if ":" in module else python, module, file, threads)
                worker("prefill", [list(range(100, 140))])
                took = time.perf_counter() - start
                worker.close()
            if turn:
                seconds[name].append(took)
    return seconds


def growth(near: benchmark.Row, far: benchmark.Row) -> benchmark.Row:
    """How much more a token costs at depth 4 000 than at 64, round by round."""
    engines = [n for n in far.seconds if n in near.seconds]
    pairs = {n: zip(near.seconds[n], far.seconds[n], strict=True) for n in engines}
    return benchmark.Row("growth", {n: [f - s for s, f in rounds] for n, rounds in pairs.items()})


def page(value: dict[str, Any], where: Path) -> None:
    """The ratios as bars, one group per case, in a page that needs no network."""
    import plotly.graph_objects as go

    rows = value["cases"]
    names = list(dict.fromkeys(n for r in rows.values() for n in r["ratios"]))
    figure = go.Figure()
    for name in names:
        at = [c for c, r in rows.items() if name in r["ratios"]]
        ratios = [rows[c]["ratios"][name] for c in at]
        spread = [rows[c].get("spread", {}).get(name, [x, x]) for c, x in zip(at, ratios, strict=True)]
        low = [max(0.0, x - s[0]) for x, s in zip(ratios, spread, strict=True)]
        high = [max(0.0, s[1] - x) for x, s in zip(ratios, spread, strict=True)]
        error = {"type": "data", "symmetric": False, "array": high, "arrayminus": low}
        figure.add_bar(name=name, x=at, y=ratios, error_y=error)
    figure.add_hline(y=1)
    about = value["machine"]
    title = f"Times as fast as each peer: {value['model']}, {about['processor']}, {about['threads']} threads"
    figure.update_layout(barmode="group", title=title, yaxis={"type": "log", "title": "above 1: llmlab is faster"})
    figure.write_html(where, include_plotlyjs=True)


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
            raise Refused(f"No {what} is called {n[:30]!r};", "it is unknown", f"Choose from {', '.join(known)}")
    return names


def _run(a: argparse.Namespace) -> int:
    cases = _chosen(a.cases, [*benchmark.CASES, *EXTRA], "case")
    wanted = _chosen(a.peers, list(PEERS), "peer")
    if a.rounds < 1:
        raise Refused("The number of rounds", f"cannot be {a.rounds}", "Give 1 or more")
    if "growth" in cases:
        cases += [c for c in ("decode", "decode-4000") if c not in cases]
    threads = a.threads or benchmark.cores()
    found = locate.fetch(locate.find(a.model))
    if found.kind != "gguf" or found.path is None:
        raise Refused(
            found.name, "is no GGUF file here, and the peers read the same file", "Give a GGUF file as --model"
        )
    file = str(found.path)
    warning = benchmark.busy()
    if warning:
        say(warning)
    python = environment(say) if any(":" not in PEERS[n] for n in wanted) else sys.executable
    modules = {OURS: "llmlab.lab.benchmark:Ours", **{n: PEERS[n] for n in wanted}}
    rows: dict[str, Any] = {}
    if "cold-start" in cases:
        able = {n: m for n, m in modules.items() if _loads(python, m, file, threads, n)}
        seconds = cold_start(file, python, able, threads, min(a.rounds, 5))
        rows["cold-start"] = benchmark.Row("cold-start", seconds).to_json(OURS)
        say("cold-start: " + json.dumps(rows["cold-start"]["ratios"]))
    workers: dict[str, Worker] = {}
    try:
        for name, module in modules.items():
            try:
                workers[name] = Worker(sys.executable if ":" in module else python, module, file, threads)
                say(f"{name} {workers[name].about['version']} is ready")
            except RuntimeError as e:
                if name == OURS:
                    raise Refused("The lab's own engine", f"does not start ({e})", "Run the tests") from e
                say(f"{name} is left out: {e}")
        tokens = benchmark.tokens_of(read_tokenizer(found), 4700)
        raw = _measure(cases, workers, tokens, a.rounds, bool(a.peers), rows)
        if "memory" in cases:
            workers[LEAN] = Worker(sys.executable, "llmlab.lab.benchmark:OursLean", file, threads)
            for worker in workers.values():
                worker("prefill", [tokens[:500]])
            peaks = {n: w("peak") / 1e6 for n, w in workers.items()}
            ratios = {n: round(v / peaks[OURS], 3) for n, v in peaks.items() if n != OURS}
            # Figures of a case are milliseconds everywhere else; here they are megabytes, and the key says so.
            rows["memory"] = {"ratios": ratios, "peak_mb": {n: round(v) for n, v in peaks.items()}}
        versions = {n: w.about["version"] for n, w in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    if "growth" in cases:
        rows["growth"] = growth(raw["decode"], raw["decode-4000"]).to_json(OURS)
    rows = {c: rows[c] for c in cases if c in rows}
    about = {"model": found.name, "weights": "int4", "versions": versions}
    value = {
        "schema": "llmlab.bench/1",
        **about,
        "machine": {**benchmark.machine(), "threads": threads, "busy": warning},
    }
    value["cases"] = rows
    if a.json != "-":
        print(benchmark.table({c: r for c, r in rows.items() if "median_ms" in r}, OURS))
        if "memory" in rows:
            print("peak memory, MB: " + ", ".join(f"{n} {v}" for n, v in rows["memory"]["peak_mb"].items()))
    write(value, a.json)
    if a.html:
        page(value, Path(a.html))
    return 0


def _loads(python: str, module: str, file: str, threads: int, name: str) -> bool:
    try:
        Worker(sys.executable if ":" in module else python, module, file, threads).close()
        return True
    except RuntimeError as e:
        say(f"{name} is left out: {e}")
        return False


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
            for row in benchmark.paired(calls, [name], tokens, rounds, say):
                raw[name], rows[name] = row, row.to_json(OURS)
        elif name == "events":
            ours = workers[OURS]
            ours("ready", [tokens[: benchmark.SHALLOW]])
            laps = [(ours("bare", [64]), ours("events", [64])) for _ in range(2 * rounds + 1)][1:]
            ratios = [bare / full for bare, full in laps]
            medians = [statistics.median(x) * 1e3 for x in zip(*laps, strict=True)]
            rows[name] = {
                "ratios": {"a bare loop": round(statistics.median(ratios), 3)},
                "median_ms": {OURS: round(medians[1], 3), "a bare loop": round(medians[0], 3)},
                "spread": {"a bare loop": [round(q, 3) for q in benchmark.quartiles(ratios)]},
                "rounds": len(ratios),
            }
        if name in rows and name != "cold-start":
            say(f"{name}: {json.dumps(rows[name]['ratios'])} {json.dumps(rows[name]['median_ms'])}")
    return raw


def _verb(worker: Worker) -> benchmark.Call:
    """A worker as `bench.paired` calls it: only ours tells the two ways of verifying apart."""

    def call(verb: str, arguments: list[Any]) -> Any:
        ours = worker.about["name"].startswith(OURS)
        return worker(verb if ours or verb != "verify_fast" else "verify", arguments)

    return call


if __name__ == "__main__":
    sys.exit(main())

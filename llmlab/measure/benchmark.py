"""Contestants side by side: what is measured, runs in turn, the median of per-round ratios, the report.

Tokens are forced where they matter and greedy where they do not, stop tokens are ignored, and only whole passes count.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import psutil
import torch

from llmlab.assets import ASSETS
from llmlab.measure.hardware import cores
from llmlab.measure.roofline import BUSY
from llmlab.measure.statistics import quartiles, ratios

SHALLOW = 64
"""Tokens in memory where a case does not say how many."""


class Contestant(Protocol):
    """What is compared: verbs that return seconds, None where the engine has no such thing. Tokens are ids.

    `ready` puts tokens in memory; `decode(count)` is the time per token from there, `verify(tokens, count)` that of one
    pass over given tokens; `prefill` that of a prompt up to its first new token; `batch` that of one step of them all.
    """

    name: str
    version: str

    def ready(self, tokens: Sequence[int]) -> None: ...
    def decode(self, count: int) -> float | None: ...
    def verify(self, tokens: Sequence[int], count: int) -> float | None: ...
    def prefill(self, tokens: Sequence[int]) -> float | None: ...
    def batch(self, prompts: Sequence[Sequence[int]], count: int) -> float | None: ...


@dataclass(frozen=True)
class Case:
    """One thing to measure: a verb at a size. `what` says it in words; `count` passes are averaged in a round."""

    verb: str
    size: int
    count: int
    what: str

    @property
    def depth(self) -> int:
        return self.size if self.verb == "decode" else SHALLOW


CASES: dict[str, Case] = {
    "decode": Case("decode", SHALLOW, 64, "decode, one token at a time"),
    **{f"decode-{n}": Case("decode", n, 32, f"decode at depth {n}") for n in (500, 1500, 4000)},
    **{f"verify-{n}": Case("verify", n, 16, f"verify {n} tokens in one pass, bitwise") for n in (2, 4, 8)},
    **{f"verify-{n}-fast": Case("verify_fast", n, 16, f"verify {n} tokens, not bitwise") for n in (4, 8)},
    **{f"prefill-{n}": Case("prefill", n, 1, f"read a prompt of {n} tokens, to the first new one") for n in (40, 500)},
    "prefill-2000": Case("prefill", 2000, 1, "read a prompt of 2000 tokens, to the first new one"),
    **{f"batch-{n}": Case("batch", n, 16, f"decode {n} sequences at once, a step") for n in (1, 4, 8, 16, 32)},
}
SMALL = ("decode", "decode-500", "verify-4", "prefill-40", "prefill-500", "batch-4")
"""The cases of `python -m llmlab bench`."""


def tokens_of(tokenizer: Any, count: int) -> list[int]:
    """`count` tokens of the project's own texts, repeated as often as it takes."""
    files = ("calibration.txt", "evaluation.txt")
    text = "\n".join((ASSETS / "texts" / f).read_text(encoding="utf-8") for f in files)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return list((ids * (count // len(ids) + 1))[:count])


Call = Callable[[str, list[Any]], float | None]
"""call(verb, arguments): one engine, in this process or in another."""


def measure(case: Case, call: Call, tokens: Sequence[int], turn: int) -> float | None:
    """Seconds of one round of a case on one engine. `turn` shifts the tokens, so that no prompt repeats."""
    shift = 1 + (turn * 37) % 512
    if case.verb == "decode":
        return call("decode", [case.count])
    if case.verb.startswith("verify"):
        return call(case.verb, [list(tokens[SHALLOW : SHALLOW + case.size]), case.count])
    if case.verb == "prefill":
        return call("prefill", [list(tokens[shift : shift + case.size])])
    prompts = [list(tokens[shift + 3 * i : shift + 3 * i + 40]) for i in range(case.size)]
    return call("batch", [prompts, case.count])


@dataclass
class Row:
    """What a case came to: seconds per engine and round, None where an engine has no such case."""

    case: str
    seconds: dict[str, list[float]]

    def to_json(self, ours: str) -> dict[str, Any]:
        """`ratios` above 1 where ours is faster: medians of per-round ratios; `spread`: their quartiles."""
        mine = self.seconds[ours]
        against = {n: ratios(s, mine) for n, s in self.seconds.items() if n != ours}
        return {
            "ratios": {n: round(statistics.median(r), 3) for n, r in against.items()},
            "median_ms": {n: round(1e3 * statistics.median(s), 3) for n, s in self.seconds.items()},
            "spread": {n: [round(q, 3) for q in quartiles(r)] for n, r in against.items()},
            "rounds": len(mine),
        }


def in_turn(
    engines: Mapping[str, Call], cases: Sequence[str], tokens: Sequence[int], rounds: int, tell: Callable[[str], None]
) -> Iterator[Row]:
    """Every case on every engine, in turn: one warm-up, then `rounds` rounds. An engine that fails is told of."""
    for name in cases:
        case = CASES[name]
        seconds: dict[str, list[float]] = {}
        able = dict(engines)
        for turn in range(rounds + 1):
            for engine, call in list(able.items()):
                try:
                    if turn == 0 and case.verb in ("decode", "verify", "verify_fast"):
                        call("ready", [list(tokens[: case.depth])])
                    value = measure(case, call, tokens, turn)
                except Exception as e:
                    tell(f"{engine} fails at {name}: {e}")
                    value = None
                if value is None:
                    able.pop(engine)
                    seconds.pop(engine, None)
                elif turn:
                    seconds.setdefault(engine, []).append(value)
        yield Row(name, seconds)


def describe_machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            lines = [line.split(":", 1)[1].strip() for line in f if line.startswith(("model name", "flags"))]
        model = lines[0]
        flags = [x for x in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile") if x in lines[1].split()]
    except (OSError, IndexError):
        flags = []
    value = {"processor": model, "cores": cores(), "flags": flags, "memory": psutil.virtual_memory().total}
    value |= {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        value["gpu"] = torch.cuda.get_device_name()
    return value


def busy_warning() -> str:
    """A warning where others use the processor; "" on a quiet machine."""
    used = psutil.cpu_percent(interval=1.0) * cores()
    return f"Others use {used:.0f} % of a core: expect ratios off by a tenth or more." if used > BUSY else ""


def text_table(rows: Mapping[str, dict[str, Any]], ours: str) -> str:
    """The report as lines of text."""
    peers = list(dict.fromkeys(p for r in rows.values() for p in r["median_ms"] if p != ours))
    lines = [f"{'case':22}{ours:>14}" + "".join(f"{p[:28]:>30}" for p in peers)]
    for name, r in rows.items():
        cells = []
        for p in peers:
            if p in r["median_ms"]:
                low, high = r["spread"].get(p, (0, 0))
                cells.append(f"{r['median_ms'][p]:.4g} ms  {r['ratios'].get(p, 0):.2f}× ({low:.2f}–{high:.2f})")
            else:
                cells.append("—")
        lines.append(f"{name:22}{r['median_ms'][ours]:>11.4g} ms" + "".join(f"{c:>30}" for c in cells))
    return "\n".join(lines)

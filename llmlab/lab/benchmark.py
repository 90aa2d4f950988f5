"""The engine against transformers, side by side: both loaded, runs in turn, the median of per-round ratios.

The `benchmarks` folder runs the same cases against engines outside of Python's own world too; this part needs none.
Tokens are forced where they matter and greedy where they do not, stop tokens are ignored, and only whole passes count.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import psutil
import torch

from llmlab.assets import ASSETS
from llmlab.errors import Refused
from llmlab.kv.memory import Memory
from llmlab.lab.experiment import Lab
from llmlab.lab.settings import Settings
from llmlab.measure.hardware import cores, use_threads
from llmlab.models.batch import Batch, Span
from llmlab.models.kernels.topk import argmax
from llmlab.runtime.draft import Draft
from llmlab.runtime.events import Committed
from llmlab.runtime.generate import generate
from llmlab.runtime.session import Session

SHALLOW = 64
"""Tokens in memory where a case does not say how many."""
BUSY = 15.0
"""Percent of one core that others may use before the report warns."""


class Engine(Protocol):
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


# The two engines ----------------------------------------------------------------------------------------------------


class Ours:
    """The lab's engine as a run uses it: the one loop, with its events and meters."""

    name = "llmlab"
    version = torch.__version__

    def __init__(
        self, ref: str, threads: int = 0, weights: str = "int4", device: str = "auto", copies: str = "auto"
    ) -> None:
        use_threads(threads)
        self.lab = Lab()
        self.loaded = self.lab.model_cache.load(ref, weights, device, SHALLOW, copies=copies == "auto")
        self.model = self.loaded.model
        self.weights = weights

    def ready(self, tokens: Sequence[int]) -> None:
        self.prompt = list(tokens)
        self.session = Session(self.model)
        for _ in self.session.prefill(self.prompt):
            pass
        self.session.forward()

    def decode(self, count: int) -> float:
        commits = [e for e in generate(self.model, self.prompt, count + 1) if isinstance(e, Committed)]
        return (commits[-1].t - commits[0].t) / count

    def _verify(self, tokens: Sequence[int], count: int, exact: bool) -> float:
        self.session.exact = exact
        draft, total = Draft.chain(tokens[1:]), 0.0
        for _ in range(count):
            start = time.perf_counter()
            argmax(self.session.forward(draft))
            self.session.memory.restore(self.session._held)
            total += time.perf_counter() - start
        return total / count

    def verify(self, tokens: Sequence[int], count: int) -> float:
        return self._verify(tokens, count, True)

    def verify_fast(self, tokens: Sequence[int], count: int) -> float:
        return self._verify(tokens, count, False)

    def prefill(self, tokens: Sequence[int]) -> float:
        start = time.perf_counter()
        next(e for e in generate(self.model, tokens, 1) if isinstance(e, Committed))
        return time.perf_counter() - start

    @torch.inference_mode()
    def batch(self, prompts: Sequence[Sequence[int]], count: int) -> float | None:
        if not hasattr(self.model, "shape"):
            return None  # a wrapped model takes one sequence at a time
        memories = [self.model.memory() for _ in prompts]
        Memory.pooled(memories)
        best = []
        for prompt, memory in zip(prompts, memories, strict=True):
            best += argmax(self._step([list(prompt)], [memory], 0)[-1:])
        start = time.perf_counter()
        for i in range(count):
            best = argmax(self._step([[t] for t in best], memories, len(prompts[0]) + i))
        return (time.perf_counter() - start) / count

    def _step(self, parts: Sequence[list[int]], memories: Sequence[Any], at: int) -> torch.Tensor:
        n = len(parts[0])
        device = self.model.device
        spans = [Span(i * n, (i + 1) * n, memory, first=at) for i, memory in enumerate(memories)]
        positions = torch.arange(at, at + n).repeat(len(parts)).to(device)
        batch = Batch(torch.tensor(parts).flatten().to(device), positions, spans)
        return self.model.forward(batch, last=len(parts) if n == 1 else 1, best=32)

    def events(self, count: int) -> float:
        """Time per token of a whole run: text, events and meters on."""
        settings = Settings(self.loaded.name, "Count from 1 to 500.", max_new_tokens=count + 1, weights=self.weights)
        from llmlab.lab.experiment import Prepared

        prepared = Prepared(settings, self.loaded, self.prompt, str(self.model.device))
        commits = [e for e in self.lab.run(prepared) if isinstance(e, Committed)]
        return (commits[-1].t - commits[0].t) / max(1, len(commits) - 1)

    @torch.inference_mode()
    def bare(self, count: int) -> float:
        """Time per token of the same forward in a loop that does nothing else."""
        session = Session(self.model)
        for _ in session.prefill(self.prompt):
            pass
        memory, token, at = session.memory, self.prompt[-1], len(self.prompt) - 1
        for i in range(count + 1):
            if i == 1:
                start = time.perf_counter()
            span = Span(0, 1, memory, first=at + i)
            batch = Batch(torch.tensor([token]), torch.tensor([at + i]), [span], True)
            (token,) = argmax(self.model.forward(batch, None, 1, 32))
        return (time.perf_counter() - start) / count


class OursLean(Ours):
    """The same without any copy of the weights."""

    name = "llmlab, no copies"

    def __init__(self, ref: str, threads: int = 0) -> None:
        super().__init__(ref, threads, copies="none")


class Transformers:
    """transformers' own `generate` on the same files, a GGUF's tensors unpacked as they stand in it."""

    def __init__(self, ref: str, threads: int = 0, weights: str = "dense-fp32", device: str = "auto") -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        from llmlab.lab.model_cache import pick_device
        from llmlab.models.loading import locate

        use_threads(threads)
        self.name = f"transformers {LABELS[weights]}"
        self.version = transformers.__version__
        found = locate.fetch(locate.find(ref))
        self.device = pick_device(device)
        dtype = torch.float32 if weights == "dense-fp32" else torch.bfloat16
        at: dict[str, Any] = {"gguf_file": found.path.name} if found.kind == "gguf" else {}
        folder = found.path.parent if found.kind == "gguf" else found.path
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, local_files_only=True, trust_remote_code=False, **at
        )
        if weights == "nf4":
            _quantize(model)
        self.model = model.to(self.device).eval()
        self.model.generation_config.eos_token_id = None

    def _ids(self, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
        ids = torch.tensor([list(p) for p in prompts], device=self.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _generate(self, prompts: Sequence[Sequence[int]], count: int) -> tuple[float, float]:
        """Seconds up to the first new token, and per token after it."""
        clock = _Ticks()
        with torch.inference_mode():
            self.model.generate(
                **self._ids(prompts),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                logits_processor=[clock],
                pad_token_id=0,
            )
        end = time.perf_counter()
        return clock.at[0] - clock.start, (end - clock.at[0]) / max(1, count - 1)

    def ready(self, tokens: Sequence[int]) -> None:
        self.prompt = tokens

    def decode(self, count: int) -> float:
        return self._generate([self.prompt], count + 1)[1]

    @torch.inference_mode()
    def verify(self, tokens: Sequence[int], count: int) -> float:
        cache = self.model(**self._ids([self.prompt]), use_cache=True, logits_to_keep=1).cache
        total, ids = 0.0, torch.tensor([list(tokens)], device=self.device)
        for _ in range(count):
            start = time.perf_counter()
            self.model(input_ids=ids, cache=cache, use_cache=True).logits.argmax(-1).tolist()
            cache.crop(-len(tokens))
            total += time.perf_counter() - start
        return total / count

    verify_fast = verify

    def prefill(self, tokens: Sequence[int]) -> float:
        return self._generate([tokens], 1)[0]

    def batch(self, prompts: Sequence[Sequence[int]], count: int) -> float:
        return self._generate(prompts, count + 1)[1]


LABELS = {"dense-fp32": "float32", "dense-bf16": "bfloat16", "nf4": "NF4"}


class TransformersBfloat16(Transformers):
    def __init__(self, ref: str, threads: int = 0) -> None:
        super().__init__(ref, threads, "dense-bf16")


class TransformersNf4(Transformers):
    def __init__(self, ref: str, threads: int = 0) -> None:
        super().__init__(ref, threads, "nf4")


class _Ticks:
    """Notes when `generate` has logits: transformers calls it once for each new token."""

    def __init__(self) -> None:
        self.start, self.at = time.perf_counter(), []

    def __call__(self, ids: Any, scores: Any) -> Any:
        self.at.append(time.perf_counter())
        return scores


def _quantize(model: Any) -> None:
    """Replace the layers' matrices by bitsandbytes' own NF4 modules: transformers cannot do it to a GGUF file."""
    import bitsandbytes as bnb

    for block in model.model.layers:
        for part in (block.self_attn, block.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    new = bnb.nn.Linear4bit(
                        linear.in_features,
                        linear.out_features,
                        bias=linear.bias is not None,
                        compute_dtype=torch.bfloat16,
                        quant_type="nf4",
                    )
                    new.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
                    new.bias = linear.bias
                    setattr(part, name, new)
    model.to("cpu")  # quantizes


# Measuring ----------------------------------------------------------------------------------------------------------

Call = Callable[[str, list[Any]], Any]
"""call(verb, arguments): one engine, in this process or in another."""


def measure(case: Case, call: Call, tokens: Sequence[int], turn: int) -> float | None:
    """Seconds of one round of a case on one engine. `turn` shifts the tokens, so that nothing is read twice."""
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
        ratios = {n: [t / m for t, m in zip(s, mine, strict=True)] for n, s in self.seconds.items() if n != ours}
        return {
            "ratios": {n: round(statistics.median(r), 3) for n, r in ratios.items()},
            "median_ms": {n: round(1e3 * statistics.median(s), 3) for n, s in self.seconds.items()},
            "spread": {n: [round(q, 3) for q in quartiles(r)] for n, r in ratios.items()},
            "rounds": len(mine),
        }


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def paired(
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


def machine() -> dict[str, Any]:
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


def busy() -> str:
    """A warning where others use the processor; "" on a quiet machine."""
    used = psutil.cpu_percent(interval=1.0) * cores()
    return f"Others use {used:.0f} % of a core: expect ratios off by a tenth or more." if used > BUSY else ""


def table(rows: Mapping[str, dict[str, Any]], ours: str) -> str:
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


def against_transformers(
    ref: str, weights: str, device: str, threads: int, cases: Sequence[str], rounds: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Ours in a weight format against transformers in float32 and bfloat16 (NF4 where ours is 4 bits), in this process.

    Raises Refused for a case that does not exist and for a model that cannot be loaded.
    """
    for name in cases:
        if name not in CASES:
            raise Refused(f"No case is called {name[:30]!r};", "it is unknown", f"Choose from {', '.join(CASES)}")
    ours = Ours(ref, threads, weights, device)
    if warning := busy():
        tell(warning)
    peers: list[Any] = [ours]
    for other in ("dense-fp32", "dense-bf16", "nf4") if weights in ("int4", "nf4") else ("dense-fp32", "dense-bf16"):
        try:
            peers.append(Transformers(ref, threads, other, device))
        except Exception as e:  # a peer that cannot be had is left out and named
            tell(f"transformers {LABELS[other]} is left out: {type(e).__name__}: {e}")
    calls = {p.name: (lambda verb, rest, p=p: getattr(p, verb)(*rest)) for p in peers}
    tokens = tokens_of(ours.loaded.tokenizer, 4700)
    room = getattr(ours.model, "context", 4700)
    rows = {}
    for row in paired(calls, [c for c in cases if CASES[c].size + 80 < room], tokens, rounds, tell):
        if ours.name in row.seconds:
            rows[row.case] = row.to_json(ours.name)
            tell(f"{row.case}: " + json.dumps(rows[row.case]["ratios"]))
    versions = {p.name: p.version for p in peers}
    about = {"model": ours.loaded.name, "weights": weights, "device": str(ours.model.device)}
    return {"schema": "llmlab.bench/1", **about, "versions": versions, "machine": machine(), "cases": rows}

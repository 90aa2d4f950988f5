"""What a run costs: the clock, bytes and floating-point operations, and the roofline that relates them."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

from llmlab.models.linears import nbytes


class Clock:
    """Seconds since the run began, read after the device has finished what it was given. Only the engine reads it."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._cuda = torch.device(device).type == "cuda"
        self._start = 0.0
        self._start = self()

    def __call__(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - self._start


@dataclass(frozen=True)
class Machine:
    """Peak rates of this machine as measured: bytes read from memory per second, float32 operations per second."""

    bytes_per_second: float
    flops_per_second: float

    def seconds(self, nbytes: float, flops: float) -> float:
        """The roofline: a pass takes at least as long as its bytes and at least as long as its arithmetic.

        Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009.
        """
        return max(nbytes / self.bytes_per_second, flops / self.flops_per_second)


@cache
def machine(device: str = "cpu") -> Machine:
    """Measure this machine once per process (about a tenth of a second)."""
    big = torch.ones(12 << 20, dtype=torch.int64, device=device)
    square = torch.randn(1024, 1024, device=device)
    clock = Clock(device)

    def best(work: Any, times: int) -> float:
        fastest = 1e9
        for _ in range(times):
            start = clock()
            work()
            fastest = min(fastest, clock() - start)
        return fastest

    read = best(big.sum, 4)
    product = best(lambda: square @ square, 3)
    return Machine(big.nbytes / read, 2 * 1024**3 / product)


def flops_per_token(shape: Any, layers: int, rows: int) -> float:
    """Multiplications and additions of one token's pass with `rows` rows in memory."""
    attention = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_size * shape.width
    feed = 3 * shape.width * shape.feed_forward
    per_layer = 2 * (attention + feed) + 4 * rows * shape.heads * shape.head_size
    return layers * per_layer + 2 * shape.vocab * shape.width


def least_seconds(model: Any, rows: int) -> float:
    """What this machine's roofline allows a pass of one token with `rows` rows in memory, whatever the engine does."""
    rates, shape = machine(str(model.device)), getattr(model, "shape", None)
    if shape is None:  # a wrapped model does not tell its shape; its weights are most of what is read
        return rates.seconds(model.nbytes, 0)
    layers = len(model.layers)
    looked_up = 0 if model.tables.head is model.tables.embed else nbytes(model.tables.embed)
    kv = layers * rows * 2 * shape.kv_heads * shape.head_size * 4
    return rates.seconds(model.nbytes - looked_up + kv, flops_per_token(shape, layers, rows))


@dataclass(frozen=True)
class Hardware:
    """What a run uses where nothing else is asked for. `total` bytes of memory, `cores` threads of the processor."""

    device: str
    name: str
    cores: int
    total: int


def hardware() -> Hardware:
    """CUDA where there is one, and the processor otherwise."""
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        return Hardware("cuda", about.name, torch.get_num_threads(), about.total_memory)
    return Hardware("cpu", "CPU", torch.get_num_threads(), total_memory())


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def best_threads() -> int:
    """How many threads multiply fastest here, found by trying, once per process.

    PyTorch starts one per core. With a busy neighbour on one of them every product waits for the slowest thread, and
    processors with small cores beside large ones have the same trouble; then fewer are faster, and by much.
    """
    most = min(torch.get_num_threads(), cores())
    weights = [torch.randn(768, 768) for _ in range(16)]
    x = torch.randn(4, 768)
    times: dict[int, float] = {}
    for n in sorted({most, max(1, most // 2), 1}, reverse=True):
        torch.set_num_threads(n)
        laps = []
        for _ in range(7):
            start = time.perf_counter()
            for W in weights:
                torch.mm(W, x.t())
            laps.append(time.perf_counter() - start)
        times[n] = statistics.median(laps)
    torch.set_num_threads(most)
    # Fewer threads must be clearly better: the trial is short, and a run is long.
    return most if times[most] <= 1.25 * min(times.values()) else min(times, key=times.__getitem__)


def use_threads(wanted: int) -> None:
    """Compute on `wanted` threads, or on the best number for 0; only ever called by the thread that computes."""
    n = wanted or best_threads()
    if torch.get_num_threads() != n:
        torch.set_num_threads(n)


def total_memory() -> int:
    """Bytes that this process may use: the machine's, or its container's limit."""
    return min(psutil.virtual_memory().total, _container("memory.max") or 1 << 62)


def free_memory(device: str = "cpu") -> int:
    """Bytes free on a device now."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info()[0]
    limit, used = _container("memory.max"), _container("memory.current")
    free = psutil.virtual_memory().available
    # A container's count of used bytes includes files that the kernel would give back, so this errs on the safe side.
    return free if limit is None or used is None else min(free, max(limit - used, 0))


def _container(name: str) -> int | None:
    try:
        return int(Path("/sys/fs/cgroup", name).read_text())
    except (OSError, ValueError):
        return None

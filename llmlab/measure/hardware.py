"""What this machine has: processors, threads, memory."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import torch


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


@cache  # one number
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


class OthersMeter:
    """How much of the processor everybody else uses, from when it is made."""

    def __init__(self) -> None:
        self._own = psutil.Process()
        self._start = self._others()

    def _others(self) -> float:
        """Seconds of processor time that were not this process's, a hypervisor's theft included."""
        times = psutil.cpu_times()
        used = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
        used -= getattr(times, "guest_nice", 0.0)  # a guest's time is counted in user and nice as well
        mine = self._own.cpu_times()
        return float(used - mine.user - mine.system)

    def percent(self, seconds: float) -> float:
        """Percent of one core that others have used, `seconds` after it was made."""
        return max(0.0, 100 * (self._others() - self._start) / seconds) if seconds > 0 else 0.0


def total_memory() -> int:
    """Bytes that this process may use: the machine's, or its container's limit."""
    return min(int(psutil.virtual_memory().total), _container("memory.max") or 1 << 62)


def free_memory(device: str = "cpu") -> int:
    """Bytes free on a device now."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info()[0]
    limit, used = _container("memory.max"), _container("memory.current")
    free: int = psutil.virtual_memory().available
    # A container's count of used bytes includes files that the kernel would give back, so this errs on the safe side.
    return free if limit is None or used is None else min(free, max(limit - used, 0))


def _container(name: str) -> int | None:
    try:
        return int(Path("/sys/fs/cgroup", name).read_text())
    except (OSError, ValueError):
        return None

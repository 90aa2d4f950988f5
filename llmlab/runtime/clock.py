"""The clock of a run, which only the engine reads."""

from __future__ import annotations

import time

import torch


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

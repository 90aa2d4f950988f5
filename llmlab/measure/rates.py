"""What this machine can do at best, measured for the passes of one model.

With the run's own threads, and over a buffer no larger than what a pass reads, so that a last-level cache helps the
measurement as much as it may help the pass. Nothing is trusted that was measured while others used the processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from llmlab.measure.hardware import OthersMeter
from llmlab.measure.roofline import Rates
from llmlab.models.loading.progress import check
from llmlab.runtime.clock import Clock

SMALLEST, LARGEST = 1 << 20, 1 << 28
"""Bytes of the buffer that is read."""
LEAST = 0.25
"""Seconds that a measurement takes at least: the system counts the others' time in steps of 0.01 s."""
AGAIN = 60.0
"""Seconds after which rates that were not measured at a quiet moment are measured again."""
TRIES = 2

_clock = Clock()
_seen: dict[tuple[str, int, int, torch.dtype], tuple[Rates, float]] = {}
"""The best rates by device, threads, buffer and type, and when they were last measured."""


def rates(model: Any) -> Rates:
    """The rates for a model's passes with the threads of now: measured once, and again while others are busy."""
    device, threads = str(model.device), torch.get_num_threads()
    buffer = 1 << int(math.log2(min(max(model.pass_bytes, SMALLEST), LARGEST)))
    key = device, threads, buffer, getattr(model, "takes", torch.float32)
    known, at = _seen.get(key, (None, -math.inf))
    if known is not None and (known.quiet or _clock() - at < AGAIN):
        return known
    for _ in range(TRIES if known is None else 1):
        known = better(known, measured(device, buffer, key[3]))
        if known.quiet:
            break
    assert known is not None
    _seen[key] = known, _clock()
    return known


def better(known: Rates | None, new: Rates) -> Rates:
    """Of two measurements the higher rates; a quiet one makes both trustworthy."""
    if known is None:
        return new
    return replace(
        new,
        bytes_per_second=max(known.bytes_per_second, new.bytes_per_second),
        flops_per_second=max(known.flops_per_second, new.flops_per_second),
        others=min(known.others, new.others),
    )


def measured(device: str, buffer: int, takes: torch.dtype) -> Rates:
    """Measure now: the fastest of many readings, for at least `LEAST` seconds, and of a few products. Raises Stopped
    where whoever waits for the run has stopped it."""
    whole = torch.ones(buffer // 8, dtype=torch.int64, device=device)
    single = whole.view(torch.float32)
    squares = [torch.ones(1024, 1024, device=device, dtype=t) for t in {torch.float32, takes}]
    clock, others = Clock(device), OthersMeter()
    product = min(_seconds(partial(torch.mm, s, s), clock) for s in squares for _ in range(3))
    read = math.inf
    while clock() < LEAST or read == math.inf:
        check()
        read = min(read, _seconds(whole.sum, clock), _seconds(single.sum, clock))
    return Rates(buffer / read, 2 * 1024**3 / product, torch.get_num_threads(), others.percent(clock()), buffer)


def _seconds(work: Callable[[], Any], clock: Clock) -> float:
    start = clock()
    work()
    return clock() - start

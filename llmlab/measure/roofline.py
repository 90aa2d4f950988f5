"""What this machine was measured to do, and the least time that a pass can take by it.

The roofline: a pass takes at least as long as reading its bytes, and at least as long as its arithmetic (Williams,
Waterman, Patterson: Roofline, CACM 52(4), 2009). The bytes and operations of a pass are counted where it is computed
(`models/work.py`), the rates are measured by `rates.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

BUSY = 15.0
"""Percent of one core that others may use before a measurement is not trusted."""


@dataclass(frozen=True)
class Rates:
    """The best that was seen: bytes read per second, operations per second in the type that the weights take.

    `others`: percent of one core that other processes used meanwhile. `buffer`: bytes that were read over and over.
    """

    bytes_per_second: float
    flops_per_second: float
    threads: int = 1
    others: float = 0.0
    buffer: int = 0

    @property
    def quiet(self) -> bool:
        return self.others <= BUSY

    def seconds(self, nbytes: float, flops: float) -> float:
        """What so many bytes and operations take at these rates: the higher of the two roofs."""
        return max(nbytes / self.bytes_per_second, flops / self.flops_per_second)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Rates | None:
        """The inverse of `to_json`; None for what is no rates, as in a trace that holds none."""
        if not isinstance(value, dict):
            return None
        numbers = [value.get(name) for name in cls.__dataclass_fields__]
        if any(not isinstance(x, int | float) or isinstance(x, bool) or not 0 <= x < 1e18 for x in numbers):
            return None
        found = cls(**{name: value[name] for name in cls.__dataclass_fields__})
        return found if found.bytes_per_second > 0 and found.flops_per_second > 0 else None


@dataclass(frozen=True)
class Roofline:
    """A run against its machine: the median pass's roofline in seconds.

    It is a bound where nothing can have been faster than measured; else an estimate, and `why` says for which reason:
    "busy" (others used the processor while it was measured), "cache" (a pass read less than the buffer, of which a
    cache may hold more) or "beaten" (a pass of this very run was faster).
    """

    seconds: float
    rates: Rates
    why: str = ""

    @property
    def bound(self) -> bool:
        return not self.why


def roofline(rates: Rates | None, passes: Sequence[tuple[float, int, float]]) -> Roofline | None:
    """Of passes (seconds, bytes read, operations); None where they or the rates were not recorded."""
    if rates is None or not passes or not all(read for _, read, _ in passes):
        return None
    least = [rates.seconds(read, flops) for _, read, flops in passes]
    reads = sorted(read for _, read, _ in passes)
    why = ""
    if not rates.quiet:
        why = "busy"
    elif reads[len(reads) // 2] < rates.buffer:
        why = "cache"
    elif any(seconds < floor for (seconds, _, _), floor in zip(passes, least, strict=True)):
        why = "beaten"
    return Roofline(sorted(least)[len(least) // 2], rates, why)


def flops_per_token(shape: Any, layers: int, rows: int) -> float:
    """Multiplications and additions of one token's pass with `rows` rows in memory."""
    attention = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_size * shape.width
    feed = 3 * shape.width * shape.feed_forward
    per_layer = 2 * (attention + feed) + 4 * rows * shape.heads * shape.head_size
    return float(layers * per_layer + 2 * shape.vocab * shape.width)

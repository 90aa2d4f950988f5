"""What happens in a run, as frozen facts. Charts, tests, benchmarks, exports and replays are folds over these.

Every event carries `t`: seconds since the run started, read by the engine after the device has finished its work.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from llmlab.errors import Refused


@dataclass(frozen=True)
class Event:
    t: float


@dataclass(frozen=True)
class Started(Event):
    """A run begins. `lane` is "baseline" or "stack"; `settings` reproduce the run."""

    model: str
    lane: str
    device: str
    weights: str
    stack: list[dict[str, Any]]
    settings: dict[str, Any]
    prompt_tokens: int
    layers: int
    weight_bytes: int
    lossless: bool
    prompt: list[str] = field(default_factory=list)
    """The prompt's tokens as text."""
    engine_paths: list[str] = field(default_factory=list)
    """Which paths through the engine the run takes (`experiment.engine_paths`)."""
    auxiliary_bytes: int = 0
    """Of `weight_bytes`, those of drafters and trained parts beside the model."""
    copies_bytes: int = 0
    """Of `weight_bytes`, the model's weights in their second forms."""
    rates: dict[str, Any] = field(default_factory=dict)
    """What the machine was measured to do, as `roofline.Rates.to_json`; empty where it was not measured."""


@dataclass(frozen=True)
class WeightsChanged(Event):
    """A weight transform has been applied to the run's private copy."""

    technique: str
    before_bytes: int
    after_bytes: int
    note: str = ""


@dataclass(frozen=True)
class Prefilled(Event):
    """`tokens` of the prompt are in memory; `done` of `total` so far."""

    done: int
    total: int
    kv_bytes: int
    kv_rows: list[int]
    layer_rows: int = 0
    """Rows of the prompt put through whole layers so far, this and the next four as `models.work.Work`."""
    kv_only_rows: int = 0
    drafter_rows: int = 0
    flops: float = 0.0
    read_bytes: int = 0
    activation_bytes: int = 0
    """The most that this piece held at once beside weights and memory, buffers of passes included."""


@dataclass(frozen=True)
class Drafted(Event):
    """A drafter proposed a tree: node i continues `parents[i]` (-1: the last committed token)."""

    tokens: list[int]
    parents: list[int]
    seconds: float
    text: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Committed(Event):
    """One pass of the model is over: `path` of the draft's nodes was accepted, then the model added `tokens[-1]`.

    `tokens` are the accepted tokens followed by the model's own one (fewer where a stop token or the limit cut them).
    `seconds` is the whole round: draft, forward, acceptance and eviction. `layers_run` is how many layers the newest
    token waited for. What was computed is told apart, over the whole round: `layer_rows` of this model's layers, those
    of drafting passes and those made up for included (0 in traces that did not count them).
    """

    tokens: list[int]
    path: list[int]
    seconds: float
    kv_rows: list[int]
    kv_bytes: int
    layers_run: float
    text: list[str] = field(default_factory=list)
    layer_rows: int = 0
    kv_only_rows: int = 0
    """Rows for which a layer made no more than keys and values."""
    drafter_rows: int = 0
    """Layer-rows of a draft model or network, whose layers are of another size."""
    flops: float = 0.0
    """Multiplications and additions, those of every drafter included."""
    read_bytes: int = 0
    """Bytes of weights, keys and values that the round read at least."""
    activation_bytes: int = 0


@dataclass(frozen=True)
class Evicted(Event):
    """A cache policy dropped rows: per layer, how many there were and how many stayed."""

    before: list[int]
    after: list[int]


@dataclass(frozen=True)
class Exited(Event):
    """A token left the model after `layer` of `layers` layers with this confidence."""

    layer: int
    layers: int
    confidence: float


@dataclass(frozen=True)
class Finished(Event):
    """The run is over: `reason` is "limit", "stop token" or "stopped"."""

    reason: str
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Compared(Event):
    """After a baseline and a stack have run: what the stack cost in quality, with the keys of `quality.measured`.

    The last one of a trace counts: one comes before quality is measured, for a comparison that is stopped there.
    """

    quality: dict[str, Any]
    pairs: dict[str, Any] = field(default_factory=dict)
    """Decoding speeds of baseline and stack in turn (`pairs.Pairs`)."""
    verdict: dict[str, Any] = field(default_factory=dict)
    """Speed, memory and quality weighed together (`verdict.Verdict`)."""


@dataclass(frozen=True)
class Failed(Event):
    """The run ended with an error, in one sentence."""

    message: str


KINDS: dict[str, type[Event]] = {
    c.__name__: c
    for c in (
        Started,
        WeightsChanged,
        Prefilled,
        Drafted,
        Committed,
        Evicted,
        Exited,
        Finished,
        Compared,
        Failed,
    )
}


PUBLISHED = {"engine_paths": "ways"}
"""Fields that traces call by an earlier name, which they keep."""


def to_json(event: Event) -> dict[str, Any]:
    """An event as a line of a trace."""
    return {"event": type(event).__name__, **{PUBLISHED.get(k, k): v for k, v in asdict(event).items()}}


def from_json(value: Any) -> Event:
    """The inverse of `to_json`. Raises Refused for anything that is not an event."""
    if not isinstance(value, dict) or str(value.get("event")) not in KINDS:
        raise Refused("The trace", "holds a line that is not an event", "Give a file that this lab exported")
    kind = KINDS[value["event"]]
    known = {f.name: f for f in fields(kind)}
    given = {name: value[key] for name in known if (key := PUBLISHED.get(name, name)) in value}
    for name, f in known.items():
        kinds = _types(str(f.type))
        if name in given:
            v = given[name]
            if not isinstance(v, kinds) or (isinstance(v, bool) and bool not in kinds) or not _sane(v):
                raise Refused("The trace", f"holds a {value['event']} whose {name} is not {f.type}", "Export it again")
            inner = {"list[int]": (int,), "list[str]": (str,), "list[dict[str, Any]]": (dict,)}.get(str(f.type))
            if inner and not all(isinstance(x, inner) and _sane(x) for x in given[name]):
                raise Refused("The trace", f"holds a {value['event']} whose {name} is not {f.type}", "Export it again")
    try:
        return kind(**given)
    except TypeError as e:
        raise Refused("The trace", f"holds an incomplete {value['event']}", "Export it again") from e


def _sane(value: Any) -> bool:
    """Whether a number is one that a figure can be computed with; JSON admits NaN and integers of any length."""
    return not isinstance(value, int | float) or abs(value) < 1e18


def _types(annotation: str) -> tuple[type, ...]:
    simple: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
    return simple.get(annotation, (list,) if annotation.startswith("list") else (dict,))

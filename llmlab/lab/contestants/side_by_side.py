"""The lab's engine against transformers in one process: `python -m llmlab bench`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from llmlab.errors import unknown_name
from llmlab.lab.contestants.own_engine import Ours
from llmlab.lab.contestants.transformers_engine import LABELS, Transformers
from llmlab.measure.benchmark import CASES, busy_warning, describe_machine, in_turn, tokens_of


def against_transformers(
    ref: str, weights: str, device: str, threads: int, cases: Sequence[str], rounds: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Ours in a weight format against transformers in float32 and bfloat16 (NF4 where ours is 4 bits), in this process.

    Where Ctrl-C comes in the middle, the cases that are through, with `stopped`; KeyboardInterrupt where none is.
    Raises Refused for a case that does not exist and for a model that cannot be loaded.
    """
    for name in cases:
        if name not in CASES:
            raise unknown_name("case", name, CASES)
    ours = Ours(ref, threads, weights, device)
    if warning := busy_warning():
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
    rows, stopped = {}, False
    try:
        for row in in_turn(calls, [c for c in cases if CASES[c].size + 80 < room], tokens, rounds, tell):
            if ours.name in row.seconds:
                rows[row.case] = row.to_json(ours.name)
                tell(f"{row.case}: " + json.dumps(rows[row.case]["ratios"]))
    except KeyboardInterrupt:
        if not rows:
            raise
        stopped = True
    versions = {p.name: p.version for p in peers}
    about = {"model": ours.loaded.name, "weights": weights, "device": str(ours.model.device)}
    value = {"schema": "llmlab.bench/1", **about, "versions": versions, "machine": describe_machine(), "cases": rows}
    return value | ({"stopped": True} if stopped else {})

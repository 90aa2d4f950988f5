"""A run as JSON of schema llmlab.run/1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmlab.measure import trace
from llmlab.runtime.events import Committed, Event, Failed, Started
from llmlab.runtime.generate import committed_tokens


def record(events: Sequence[Event], tokenizer: Any = None) -> dict[str, Any]:
    """A run's events as JSON of schema llmlab.run/1; without a tokenizer the text is put together from the events."""
    started = next(e for e in events if isinstance(e, Started))
    ids = committed_tokens(events)
    text = "".join(t for e in events if isinstance(e, Committed) for t in e.text)
    if tokenizer is not None:
        text = tokenizer.decode(ids, skip_special_tokens=True)
    value: dict[str, Any] = {
        "schema": "llmlab.run/1",
        "model": started.model,
        "stack": started.stack,
        "settings": started.settings,
        "device": started.device,
        "text": text,
        "token_ids": ids,
        "metrics": trace.ledger(events),
        "quality": trace.quality(events),
    }
    compared = trace.comparison(events)
    if compared is not None:
        value |= {"pairs": compared.pairs, "verdict": compared.verdict}
    failed = [e.message for e in events if isinstance(e, Failed)]
    if failed:
        value["failed"] = failed[0]
    return value

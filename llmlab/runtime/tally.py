"""What a round of decoding computed, by the model and by whoever drafts for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from llmlab.models.work import Work
from llmlab.runtime.tools import Tools


@dataclass
class Tally:
    """Adds up, while it is entered, what a run's model and its drafters compute; others may compute in between.

    Layer-rows are the model's own, drafting passes over its layers included; another model's are of another size and
    count in operations and bytes only.
    """

    model: Any
    tools: Tools
    total: Work = field(default_factory=Work)
    _before: list[tuple[Any, Work]] = field(default_factory=list)

    def __enter__(self) -> None:
        sources = self.tools.computing(self.model)
        for source in sources:
            source.work.held = 0
        self._before = [(source, replace(source.work)) for source in sources]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for source, before in self._before:
            done = source.work.since(before)
            if source.work is not self.model.work:
                done = replace(done, layer_rows=0, kv_only_rows=0, drafter_rows=done.layer_rows)
            self.total += done

    def take(self) -> Work:
        """What was added up since the last `take`, with the buffers that are kept from pass to pass in `held`."""
        kept = sum(getattr(source, "buffer_bytes", 0) for source in self.tools.computing(self.model))
        taken, self.total = self.total, Work()
        return replace(taken, held=taken.held + kept)

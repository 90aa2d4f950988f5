"""What a sequence is to continue."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """Token ids to continue, and what they were before compression.

    `kept`: which tokens of the original prompt these are, in order; None for all. `embeddings` (n, E), n = len(ids):
    in place of the tokens' own, for soft tokens that no id stands for.
    """

    ids: tuple[int, ...]
    kept: tuple[int, ...] | None = None
    embeddings: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

"""What a feed-forward block is: the part of a layer that works on each token by itself."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from llmlab.models.formats.linear import Linear
from llmlab.models.version import Version


class FeedForward(Protocol):
    """Shapes: N tokens, E width."""

    version: Version

    def linears(self) -> dict[str, Linear]:
        """Its matrices by name."""

    def feed(self, x: Tensor, exact: bool = False) -> Tensor:
        """x (N, E), normed, to what is added to the residual stream (N, E). `exact`: each row as if alone."""

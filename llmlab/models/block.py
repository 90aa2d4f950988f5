"""One layer of a decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, overload

from torch import Tensor, nn

from llmlab.models.batch import Batch
from llmlab.models.feed_forward.feed_forward import FeedForward
from llmlab.models.formats.linear import Linear
from llmlab.models.loading.progress import check
from llmlab.models.mixers.mixer import Mixer
from llmlab.models.norm import Norm
from llmlab.models.version import Versioned


class Block(Versioned):
    """h + mixer(norm(h)), then h + feed-forward(norm(h)). `index` is its place among the model's layers.

    This is what a layer computes; `kernels` hold the same in forms that are fast somewhere, and laws hold them to it.
    """

    norm_mixer: Norm
    norm_feed: Norm
    mixer: Mixer
    feed_forward: FeedForward

    if TYPE_CHECKING:

        def __call__(self, h: Tensor, batch: Batch, kv_only: bool = False) -> Tensor: ...

    def __init__(self, index: int, norm_mixer: Norm, mixer: Mixer, norm_feed: Norm, feed_forward: FeedForward) -> None:
        super().__init__()
        self.index = index
        self.norm_mixer, self.mixer = norm_mixer, mixer
        self.norm_feed, self.feed_forward = norm_feed, feed_forward

    def forward(self, h: Tensor, batch: Batch, kv_only: bool = False) -> Tensor:
        """h (N, E) to (N, E). With `kv_only`, only this layer's memory grows; h returns unchanged."""
        mixed = self.mixer.mix(self.norm_mixer(h), batch, self.index, kv_only)
        if mixed is None:
            return h
        h = h + mixed
        return h + self.feed_forward.feed(self.norm_feed(h), batch.exact and not kv_only)

    # Matrices -----------------------------------------------------------------------------------------------------

    def linears(self) -> dict[str, Linear]:
        """Its matrices by name: `qkv` and `out` of attention, `gate_up` and `down` of a gated feed-forward block."""
        return {**self.mixer.linears(), **self.feed_forward.linears()}

    def replace(self, name: str, linear: Linear) -> None:
        """Use `linear` as the matrix called `name` from the next pass on. Raises KeyError for an unknown name."""
        parts = [p for p in (self.mixer, self.feed_forward) if name in p.linears()]
        if not parts:
            raise KeyError(f"A layer has no matrix called {name!r}; it has {', '.join(self.linears())}")
        setattr(parts[0], name, linear)

    def store(self, name: str, dense: Tensor) -> None:
        """Put `dense` (M, K) into the matrix called `name`, in that matrix's own format."""
        check()
        self.linears()[name].store(dense)

    def mapped(self, make: Callable[[Linear], Linear]) -> Block:
        """A block that shares everything with this one but its matrices, which are `make(matrix)`."""
        twin = self.shallow()
        twin.mixer, twin.feed_forward = self.mixer.shallow(), self.feed_forward.shallow()  # type: ignore[attr-defined]
        for name, linear in self.linears().items():
            twin.replace(name, make(linear))
        return twin


class Blocks(nn.ModuleList):
    """A model's layers in their order."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[Block]: ...

        @overload
        def __getitem__(self, idx: slice) -> Blocks: ...
        @overload
        def __getitem__(self, idx: int) -> Block: ...
        def __getitem__(self, idx: int | slice) -> Block | Blocks: ...

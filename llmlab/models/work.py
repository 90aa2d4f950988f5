"""What was computed and read: counted where layers run and where logits are made, so that no technique can flatter.

A *layer-row* is one token's row put through one layer. Shapes: N rows of a pass, S rows in memory, E width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from llmlab.models.batch import Batch, Span, selected
from llmlab.models.block import Block
from llmlab.models.formats.linear import MANY, Linear, nbytes


@dataclass
class Work:
    """A running account. All but `held` only grow; `held` is the most that was held at once since it was last reset.

    `layer_rows`: rows through whole layers. `kv_only_rows`: rows for which a layer made no more than keys and values.
    `drafter_rows`: layer-rows of other models and networks that draft for it, whose layers are of another size; a model
    itself counts none. `flops`: multiplications and additions. `read_bytes`: weights, in the form that was multiplied
    with, once per stretch of layers or product, and keys and values in the form attended to; never more than was read.
    `held`: bytes of what a pass makes and drops again.
    """

    layer_rows: int = 0
    kv_only_rows: int = 0
    drafter_rows: int = 0
    flops: float = 0.0
    read_bytes: int = 0
    held: int = 0

    def __add__(self, other: Work) -> Work:
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Work(**sums | {"held": max(self.held, other.held)})

    def since(self, before: Work) -> Work:
        """What was added since the account stood at `before`; `held` as it is."""
        gone = {f.name: getattr(self, f.name) - getattr(before, f.name) for f in fields(self)}
        return Work(**gone | {"held": self.held})

    def products(self, rows: int, *linears: Linear) -> None:
        """`rows` rows through each of these matrices."""
        for linear in linears:
            self.flops += 2.0 * rows * linear.outputs * linear.inputs
            self.read_bytes += linear.read_bytes


@dataclass(frozen=True)
class BlockCost:
    """What a row costs in a block: in its matrices (`flops`, of which `kv_flops` make keys and values), and in looking
    at rows of the memory (`mix` + `mix_row` · S). `few` and `many`: bytes of the matrices as few and as many rows read
    them; `kv_few` and `kv_many`: of those that make keys and values."""

    flops: float
    kv_flops: float
    mix: float
    mix_row: float
    few: int
    many: int
    kv_few: int
    kv_many: int

    @classmethod
    def of(cls, block: Block) -> BlockCost:
        # A row of which only keys and values are wanted skips its mixer's last matrix and the feed-forward block.
        kv = [linear for name, linear in block.mixer.linears().items() if name != "out"]
        every = list(block.linears().values())
        norms = nbytes(block.norm_mixer), nbytes(block.norm_feed)
        mix = block.mixer.flops(0)
        return cls(
            sum(2.0 * m.outputs * m.inputs for m in every),
            sum(2.0 * m.outputs * m.inputs for m in kv),
            mix,
            block.mixer.flops(1) - mix,
            sum(m.read_bytes for m in every) + sum(norms),
            sum(m.read_bytes_of_many for m in every) + sum(norms),
            sum(m.read_bytes for m in kv) + norms[0],
            sum(m.read_bytes_of_many for m in kv) + norms[0],
        )


def count_layers(work: Work, costs: Sequence[BlockCost], first: int, batch: Batch, kv_only: bool) -> None:
    """After a batch has gone through the layers `first`, `first` + 1, …, whose costs these are."""
    N = sum(span.stop - span.start for span in batch.spans)
    wide = N >= MANY and not batch.exact
    if kv_only:
        work.kv_only_rows += N * len(costs)
        work.flops += N * sum(c.kv_flops for c in costs)
        work.read_bytes += sum(c.kv_many if wide else c.kv_few for c in costs)
        return
    work.layer_rows += N * len(costs)
    work.flops += N * sum(c.flops + c.mix for c in costs)
    work.read_bytes += sum(c.many if wide else c.few for c in costs)
    for span in batch.spans:
        n, layers = span.stop - span.start, span.memory.layers[first : first + len(costs)]
        looked_at = _narrowed(span, batch, layers)
        for cost, rows in zip(costs, layers, strict=True):
            S = rows.count
            # The last of n rows sees all S, the one before it one less, and so on.
            seen = looked_at if looked_at is not None else n * S - n * (n - 1) // 2
            work.flops += cost.mix_row * seen
            work.read_bytes += rows.read_bytes(looked_at if looked_at is not None else S)


def _narrowed(span: Span, batch: Batch, layers: Sequence[Any]) -> int | None:
    """How many rows a single query looks at where a pattern narrows them down; None where it looks at all."""
    if not span.patterns or span.stop - span.start > 1 or span.watch is not None or not layers:
        return None
    chosen = selected(span.patterns, int(batch.positions[span.start]), layers[0].positions, 0)
    return None if chosen is None else len(chosen)

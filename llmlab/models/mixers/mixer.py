"""What a mixer is: the part of a layer in which tokens look at each other."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from llmlab.kv.memory import LayerMemory
from llmlab.models.batch import Batch
from llmlab.models.capabilities import Capability
from llmlab.models.formats.linear import Linear
from llmlab.models.version import Version


class Mixer(Protocol):
    """Attention, linear attention, and whatever else mixes tokens. Shapes: N tokens of all sequences, E width."""

    capabilities: ClassVar[frozenset[Capability]]
    """What techniques may do to a layer with this mixer; a model can do what all its layers can."""
    version: Version

    def linears(self) -> dict[str, Linear]:
        """Its matrices by name."""

    def memory(self, dtype: torch.dtype, device: torch.device, mirrored: bool) -> LayerMemory:
        """An empty memory for one sequence. `mirrored`: long ones may be read in bfloat16."""

    def mix(self, x: Tensor, batch: Batch, layer: int, kv_only: bool) -> Tensor | None:
        """x (N, E), normed, to what is added to the residual stream (N, E); None with `kv_only`."""

    def flops(self, rows: int) -> float:
        """Multiplications and additions of one token beside its matrices, with `rows` rows in memory."""

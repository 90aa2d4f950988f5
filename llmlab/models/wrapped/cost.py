"""What a pass of a transformers model computes, reads and holds, as far as its parameters and its config tell.

Shapes: N rows of a pass, n of them with logits, S rows in memory, E width, F inner width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from llmlab.kv.memory import LayerMemory
from llmlab.models.config import figure, inner_width, text_of
from llmlab.models.work import Work

F32 = 4


@dataclass(frozen=True)
class PassCost:
    """`flops` of a row in the layers and `head` of a row of logits; `read_bytes` of the weights once; `states` and
    `scores`: bytes that a row holds at once by itself, and for each row that it looks at; `vocab` V.

    Tables that are only looked up are left out, and so are experts, of which a row takes some: both are at least so
    much. Operations in attention are left out, for its heads are the model's own affair.
    """

    flops: float
    head: float
    read_bytes: int
    states: int
    scores: int
    vocab: int

    @classmethod
    def of(cls, model: Any) -> PassCost:
        head = model.get_output_embeddings()
        own = None if head is None else head.weight
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        tables -= {id(own)}
        passed = {id(p) for name, p in model.named_parameters() if id(p) in tables or "expert" in name}
        params = [p for p in model.parameters() if id(p) not in passed]
        # bitsandbytes keeps two 4-bit numbers in a byte.
        counts = {id(p): p.numel() * (2 if hasattr(p, "quant_state") else 1) for p in params}
        last = counts.get(id(own), 0)
        left = sum(p.nbytes for p in model.parameters() if id(p) in passed)
        text = text_of(model.config)
        E, heads = int(text.hidden_size), int(figure(text, "num_attention_heads") or 1)
        F = inner_width(text)
        vocab = int(model.get_input_embeddings().weight.shape[0])
        return cls(
            2.0 * (sum(counts.values()) - last),
            2.0 * (last or vocab * E),
            int(model.get_memory_footprint()) - left,
            F32 * max(6 * E, 2 * E + 2 * F),
            F32 * heads,  # the product of attention and softmax holds scores about once: see the test
            vocab,
        )

    def count(self, work: Work, layers: Sequence[LayerMemory], N: int, n: int) -> None:
        """Add a pass of N rows, after which the layers' memory is this."""
        work.layer_rows += N * len(layers)
        work.flops += N * self.flops + n * self.head
        work.read_bytes += self.read_bytes + sum(rows.read_bytes(rows.count) for rows in layers)
        S = max((rows.count for rows in layers), default=0)
        work.held = max(work.held, N * (self.states + self.scores * S), 2 * n * self.vocab * F32)

"""What the loss of a classifier on a frozen model thinks of every token in every layer: one pass forth and back.

Packed matrices have no gradients, so that the layers run here with their matrices unpacked, one layer at a time: memory
holds one layer's worth.

Shapes: N tokens of all sequences end to end, T of one, L layers, E width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmlab.kv.memory import Memory
from llmlab.kv.rows import Rows
from llmlab.kv.storage import FunctionalStorage
from llmlab.models.batch import Batch, Span
from llmlab.models.decoder import Decoder
from llmlab.models.formats.trainable import Unpacked
from llmlab.runtime.token_drop_plan import AttentionTap


@dataclass(frozen=True)
class Saliency:
    """Per layer, for the N tokens that go into it.

    h (L, N, E): their states. contribution (L, N): ‖∂loss/∂h ⊙ h‖₂, gradient times input. gate (L, N): -∂loss/∂g, where
    g = 1 scales what the layer's attention takes of a token: what keeping the token is worth. received (L, N): the
    attention it draws, summed over heads and queries. `spans` are the sequences' places.
    """

    h: Tensor
    contribution: Tensor
    gate: Tensor
    received: Tensor
    spans: tuple[tuple[int, int], ...]


class _Texts:
    """Sequences laid end to end, to be run through single layers of a model that gradients flow through."""

    def __init__(self, model: Decoder, sequences: Sequence[Sequence[int]]) -> None:
        self.model = model.mapped(Unpacked)
        self.model.fast = False
        ends = [0, *itertools.accumulate(len(s) for s in sequences)]
        self.spans = tuple(itertools.pairwise(ends))
        self.tokens = torch.tensor([t for s in sequences for t in s], device=model.device)
        self.positions = torch.cat([torch.arange(len(s)) for s in sequences]).to(model.device)

    def through(self, layer: int, h: Tensor, gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """h (N, E) through one layer, where gate (N,) scales what attention takes of each token; and, without a gate,
        the attention that each token draws (N,)."""
        s, device = self.model.shape, h.device
        spans, drawn = [], []
        for a, b in self.spans:
            rows = Rows(FunctionalStorage(s.kv_heads, s.head_size, torch.float32, device), device)
            memory = Memory([rows] * len(self.model.layers))  # of which this layer uses its own
            span = Span(a, b, memory, first=0, bias=None if gate is None else gate[a:b].log())
            spans.append(span)
            drawn.append(AttentionTap(span) if gate is None else None)
        h = self.model.run_layers(h, Batch(self.tokens, self.positions, spans), layer, layer + 1)
        return h, torch.cat([tap.undo()[0] for tap in drawn if tap] or [h.new_empty(0)])


def saliency(
    model: Decoder,
    sequences: Sequence[Sequence[int]],
    loss: Callable[[Tensor], Tensor],
    progress: Callable[[int, int], None],
) -> Saliency:
    """`loss` takes the last layer's states (sequences, E) at the last tokens and gives a number to differentiate."""
    texts, count = _Texts(model, sequences), len(model.layers)
    with torch.inference_mode(False):
        inputs, received = [model.embedding.lookup(texts.tokens).float().clone()], []
        with torch.no_grad():
            for l in range(count):
                h, drawn = texts.through(l, inputs[-1])
                inputs.append(h)
                received.append(drawn)
                progress(len(received), 2 * count)
        final = inputs.pop().requires_grad_(True)
        loss(final[[b - 1 for _, b in texts.spans]]).backward()
        assert final.grad is not None
        slope, contribution, gates = final.grad, [], []
        for l in reversed(range(count)):
            h = inputs[l].requires_grad_(True)
            gate = torch.ones(len(h), device=h.device, requires_grad=True)
            out, _ = texts.through(l, h, gate)
            out.backward(slope)
            assert h.grad is not None
            assert gate.grad is not None
            slope = h.grad
            contribution.append((slope * inputs[l].detach()).norm(dim=-1))
            gates.append(-gate.grad)
            progress(2 * count - l, 2 * count)
        states = torch.stack([h.detach() for h in inputs])
        return Saliency(
            states, torch.stack(contribution[::-1]), torch.stack(gates[::-1]), torch.stack(received), texts.spans
        )

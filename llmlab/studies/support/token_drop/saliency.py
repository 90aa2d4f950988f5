"""What the loss of a classifier on a frozen model thinks of every token in every layer: one pass forth and back.

Packed matrices and the quick ways of the engine have no gradients, so that a layer is computed here as the papers write
it, from its matrices unpacked, one layer at a time: memory holds one layer's worth.

Shapes: N tokens of all sequences end to end, T of one, L layers, E width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.models.block import Block
from llmlab.models.kernels.reference import rotate


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


def block_forward(
    block: Block, h: Tensor, rotation: Tensor, spans: Sequence[tuple[int, int]], gate: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A layer by plain differentiable operations. h (N, E), gate (N,) to (h (N, E), attention received (N,))."""
    s = block.shape
    N, G = len(h), s.heads // s.kv_heads

    def linear(part: Any, x: Tensor) -> Tensor:
        return F.linear(x, part.dense(), part.bias)

    qkv = linear(block.qkv, block.norm_attention(h)).view(N, s.heads + 2 * s.kv_heads, s.head_size)
    q, k, v = qkv.split([s.heads, s.kv_heads, s.kv_heads], 1)
    if block.norm_q is not None:
        q, k = block.norm_q(q), block.norm_k(k)
    q, k = rotate(q, rotation), rotate(k, rotation)
    seen, received = [], []
    for a, b in spans:
        T = b - a
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[a:b].repeat_interleave(G, 1)) / s.head_size**0.5
        place = torch.arange(T, device=h.device)
        hidden = place[None, :] > place[:, None]
        if block.window is not None:
            hidden = hidden | (place[:, None] - place[None, :] >= block.window)
        scores = scores.masked_fill(hidden, -torch.inf)
        if gate is not None:
            scores = scores + gate[a:b].log()
        weights = torch.softmax(scores, -1)
        received.append(weights.detach().sum((0, 1)))
        seen.append(torch.einsum("hqk,khd->qhd", weights, v[a:b].repeat_interleave(G, 1)).reshape(T, -1))
    h = h + linear(block.out, torch.cat(seen))
    gates, up = linear(block.gate_up, block.norm_feed(h)).chunk(2, -1)
    return h + linear(block.down, F.silu(gates) * up), torch.cat(received)


def saliency(
    model: Any,
    sequences: Sequence[Sequence[int]],
    loss: Callable[[Tensor], Tensor],
    progress: Callable[[int, int], None],
) -> Saliency:
    """`loss` takes the last layer's states (sequences, E) at the last tokens and gives a number to differentiate."""
    ends, at = [], 0
    for sequence in sequences:
        ends.append((at, at + len(sequence)))
        at += len(sequence)
    tokens = torch.tensor([t for s in sequences for t in s], device=model.device)
    positions = torch.cat([torch.arange(len(s)) for s in sequences]).to(model.device)
    layers = list(model.layers)
    with torch.inference_mode(False):
        rotation = model.rotations_at(positions)[:, None, :].clone()
        inputs, received = [model.embedding.lookup(tokens).float().clone()], []
        with torch.no_grad():
            for block in layers:
                h, drawn = block_forward(block, inputs[-1], rotation, ends)
                inputs.append(h)
                received.append(drawn)
                progress(len(received), 2 * len(layers))
        final = inputs.pop().requires_grad_(True)
        loss(final[[b - 1 for _, b in ends]]).backward()
        assert final.grad is not None
        slope, contribution, gates = final.grad, [], []
        for l in reversed(range(len(layers))):
            h = inputs[l].requires_grad_(True)
            gate = torch.ones(len(h), device=h.device, requires_grad=True)
            out, _ = block_forward(layers[l], h, rotation, ends, gate)
            out.backward(slope)
            assert h.grad is not None
            assert gate.grad is not None
            slope = h.grad
            contribution.append((slope * inputs[l].detach()).norm(dim=-1))
            gates.append(-gate.grad)
            progress(2 * len(layers) - l, 2 * len(layers))
        states = torch.stack([h.detach() for h in inputs])
        return Saliency(
            states, torch.stack(contribution[::-1]), torch.stack(gates[::-1]), torch.stack(received), tuple(ends)
        )

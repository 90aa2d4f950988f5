"""Fewer tokens in deeper layers: a plan that drops tokens between layers, and the rules that choose them.

A layer has rows of its own, so that a token may be in the memory of the first layers and not of the later ones. Works
on the prompt of a run and on sentences that are classified. The first and the last token of a sequence always stay: the
first draws attention that no other token stands in for, the last is where the answer is read.

Shapes: T tokens of one sequence that are still there, H heads, E width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from llmlab.models.batch import Batch, Span
from llmlab.models.decoder import Decoder
from llmlab.models.result import PlanResult

Fate = Literal["discard", "pass", "fuse"]
"""What becomes of dropped tokens: nothing; they join again in the last layer; they are merged into one."""
FATES: tuple[Fate, ...] = ("discard", "pass", "fuse")


@dataclass
class LayerView:
    """What a selector may see of one sequence after a layer."""

    layer: int
    """Layers run so far."""
    whole: int
    """Tokens that the sequence had in the first layer."""
    h: Tensor
    """(T, E): the states after this layer."""
    received: Tensor
    """(T,): the attention that each got in this layer, summed over heads and over the queries that could see it."""
    last: Tensor
    """(T,): the attention that the last token paid to each, summed over heads."""


Selector = Callable[[LayerView], Tensor]
"""(T,) bool: the tokens that stay. With a true attribute `watches`, attention weights are made for it."""


@dataclass(frozen=True)
class Top:
    """Keep the `share` of the tokens that are worth most by `score`; of those that began, where `of_whole`."""

    share: float
    score: Literal["received", "mean", "last", "random"] = "received"
    """"mean": what was received, divided by how many queries could see the token, which early tokens have more of."""
    of_whole: bool = False
    seed: int = 0

    @property
    def watches(self) -> bool:
        return self.score != "random"

    def __call__(self, view: LayerView) -> Tensor:
        T = len(view.h)
        n = min(T, max(1, math.ceil(self.share * (view.whole if self.of_whole else T) - 1e-9)))
        if self.score == "random":
            rng = torch.Generator().manual_seed(self.seed + 7919 * view.layer + T)
            worth = torch.rand(T, generator=rng).to(view.h.device)
        else:
            worth = view.last if self.score == "last" else view.received
        worth = worth.clone()
        if self.score == "mean":
            worth /= torch.arange(T, 0, -1, device=worth.device)
        worth[0] = worth[-1] = torch.inf
        keep = torch.zeros(T, dtype=torch.bool, device=view.h.device)
        keep[worth.topk(n).indices] = True
        return keep


@dataclass(frozen=True)
class AtLeast:
    """Keep the tokens whose attention received is at least `bar` times the sequence's mean."""

    bar: float
    watches = True

    def __call__(self, view: LayerView) -> Tensor:
        return view.received >= self.bar * view.received.mean()


@dataclass
class TokenDropPlan:
    """A plan in which, after some layers, `at[layer]` decides which tokens stay; see `Fate` for the others.

    Afterwards `counts` holds how many tokens of each sequence every layer had, `states` the last tokens' states
    (sequences, E) after every layer, and `kept` who was kept: per layer, the positions of each sequence.
    """

    at: Mapping[int, Selector]
    fate: Fate = "discard"
    answer: bool = True
    """Whether the last layer runs in full; otherwise only its keys and values are made."""
    counts: list[list[int]] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    kept: dict[int, list[Tensor]] = field(default_factory=dict)
    remember: bool = False
    choices: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    """Per layer with a selector, for each sequence the states that it saw and whom it kept, where `remember` is set."""

    def __call__(self, model: Decoder, h: Tensor, batch: Batch) -> PlanResult:
        self.counts, self.states, self.kept, self.choices = [], [], {}, {}
        taps = batch.taps
        # The buffers of a pass of a few rows have one place for every token, so that pass is prepared anew.
        batch = replace(batch, kernel=None, taps=None)
        whole, lengths, count = batch, [s.stop - s.start for s in batch.spans], len(model.layers)
        here = torch.arange(len(h), device=h.device)  # where in `whole` those stand that are still there
        latest = h.clone()  # (N, E): of every token the state that it has come to
        waiting: Tensor | None = None
        for ran in range(1, count + 1):
            final = ran == count
            if final and waiting is not None:
                waiting[here] = h
                h, batch, here = waiting, whole, torch.arange(len(waiting), device=h.device)
            select = None if final else self.at.get(ran)
            watched = [AttentionTap(span) for span in batch.spans] if getattr(select, "watches", False) else []
            h = model.run_layers(h, batch, ran - 1, ran, kv_only=final and not self.answer)
            latest = latest.index_copy(0, here, h)
            if taps and ran in taps.layers:
                taps.states[ran] = latest
            self.counts.append([span.stop - span.start for span in batch.spans])
            self.states.append(h[[span.stop - 1 for span in batch.spans]].float())
            if select is None:
                continue
            attention = [w.undo() for w in watched] or [(h.new_zeros(s.stop - s.start),) * 2 for s in batch.spans]
            keep = self._chosen(select, ran, h, batch, lengths, attention)
            if not keep.all():
                if self.fate == "pass":
                    waiting = h.clone() if waiting is None else waiting.index_copy(0, here, h)
                worth = torch.cat([last for _, last in attention]) if self.fate == "fuse" else None
                h, batch, here = _remaining(h, batch, here, keep, worth)
            self.kept[ran] = [batch.positions[s.start : s.stop].cpu() for s in batch.spans]
        return PlanResult(h, float(count))

    def _chosen(
        self,
        select: Selector,
        ran: int,
        h: Tensor,
        batch: Batch,
        lengths: Sequence[int],
        attention: Sequence[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """(N,) bool: the tokens that stay."""
        keep = torch.ones(len(h), dtype=torch.bool, device=h.device)
        for span, n, (received, last) in zip(batch.spans, lengths, attention, strict=True):
            part = slice(span.start, span.stop)
            keep[part] = select(LayerView(ran, n, h[part], received, last))
            keep[span.start] = keep[span.stop - 1] = True
            if self.remember:
                self.choices.setdefault(ran, []).append((h[part].clone(), keep[part].clone()))
        return keep


class AttentionTap:
    """Attention of one span in the layer that runs next, gathered while it is watched; whoever watched still does."""

    def __init__(self, span: Span) -> None:
        self.span, self.before = span, span.watch
        self.sum: Tensor | None = None
        self.last = torch.empty(0)
        self.queries = 0
        span.watch = self._see

    def _see(self, layer: int, attention: Tensor) -> None:
        if self.before:
            self.before(layer, attention)
        T = self.span.stop - self.span.start
        if self.sum is None:
            self.sum = attention.new_zeros(T)
        self.queries += attention.shape[1]
        own = attention[:, :, attention.shape[2] - self.queries :]  # the columns of this span's tokens seen so far
        self.sum[: self.queries] += own.sum((0, 1))
        self.last = own[:, -1].sum(0)

    def undo(self) -> tuple[Tensor, Tensor]:
        """(received (T,), paid by the last (T,))."""
        self.span.watch = self.before
        assert self.sum is not None
        return self.sum, self.last


def _remaining(
    h: Tensor, batch: Batch, here: Tensor, keep: Tensor, worth: Tensor | None
) -> tuple[Tensor, Batch, Tensor]:
    """States, batch and places of those that stay. With `worth` (N,), the dropped tokens of a sequence become one,
    their mean by worth, at the place of the worthiest."""
    keep, spans, at = keep.clone(), [], 0
    if worth is not None:
        h = h.clone()
        for span in batch.spans:
            gone = (~keep[span.start : span.stop]).nonzero().flatten() + span.start
            if len(gone):
                w = worth[gone] / worth[gone].sum().clamp_min(1e-12)
                heaviest = gone[w.argmax()]
                h[heaviest] = (w[:, None] * h[gone]).sum(0)
                keep[heaviest] = True
    for span in batch.spans:
        n = int(keep[span.start : span.stop].sum())
        spans.append(replace(span, start=at, stop=at + n, first=None))
        at += n
    return h[keep], batch.select(keep, spans), here[keep]


def places(layers: int, first: int, times: int) -> list[int]:
    """After which layers tokens are dropped: after `first`, and at most `times` in all, evenly up to the last."""
    return sorted({first + (layers - first) * i // times for i in range(times)}) if first < layers else []

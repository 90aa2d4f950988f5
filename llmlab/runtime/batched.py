"""Many texts at once: sequences that decode together, each leaving when it ends and the next one taking its place."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmlab.kv.memory import Memory
from llmlab.models.batch import Batch, Span
from llmlab.models.decoder import Decoder, Taps
from llmlab.models.kernels.topk import top_indices

REACHABLE = 128
"""Tokens from which one is drawn, the most likely ones."""
EXACT = 8
"""Of those, how many are scored exactly in the low-bit formats: enough to choose the best one."""


@dataclass
class Text:
    """A text under way: its tokens, of which the first `prompt` were given, and what `taps` saw of each but the last.

    `tag` is whatever the caller wants to find again.
    """

    tokens: list[int]
    prompt: int
    limit: int
    temperature: float = 0.0
    tag: Any = None
    states: list[Tensor] = field(default_factory=list)

    @property
    def answer(self) -> list[int]:
        return self.tokens[self.prompt :]

    @property
    def seen(self) -> Tensor:
        """(len(tokens) - 1, taps, E): the hidden states of each token that went through the model, a prefix apart."""
        return torch.cat(self.states)


@torch.inference_mode()
def generate_batch(
    model: Decoder,
    texts: Iterable[Text],
    stop_tokens: Collection[int] = (),
    together: int = 32,
    taps: Sequence[int] = (),
    seed: int = 0,
    prefix: Sequence[int] = (),
) -> Iterator[Text]:
    """Continue each text to its limit or its end, `together` at a time; they come back in the order in which they end.

    `texts` is asked for one more whenever there is room, so what it yields may depend on what has come back. With
    `taps`, the hidden states after these layers are kept. Tokens are drawn at each text's own temperature. Where every
    text begins with the same `prefix`, that is read once; its tokens then have no states.
    """
    waiting, dice = iter(texts), torch.Generator().manual_seed(seed)
    memories = [model.memory() for _ in range(together)]
    Memory.pooled(memories)
    tap = Taps(taps)
    running: list[Text | None] = [None] * together
    shared = [len(prefix)] * len(model.layers)
    ended: list[Text] = []

    def step(tokens: list[int], places: list[int], spans: list[Span], last: int) -> Tensor:
        batch = Batch(torch.tensor(tokens), torch.tensor(places), spans)
        return model.forward(batch, tap if taps else None, last, EXACT)

    def take(slot: int, token: int) -> None:
        text = running[slot]
        assert text is not None
        text.tokens.append(token)
        if token in stop_tokens or len(text.answer) >= text.limit or len(text.tokens) >= model.context:
            running[slot] = None
            memories[slot].restore(shared)
            ended.append(text)

    def fill(slot: int) -> bool:
        text = next(waiting, None)
        if text is None:
            return False
        running[slot] = text
        p, n = len(prefix), len(text.tokens)
        logits = step(text.tokens[p:], list(range(p, n)), [Span(0, n - p, memories[slot], first=p)], 1)
        if taps:
            text.states.append(tap.taken())
        take(slot, _draw(logits, [text.temperature], dice)[0])
        return True

    if prefix:
        first, *others = memories
        step(list(prefix), list(range(len(prefix))), [Span(0, len(prefix), first, first=0)], 0)
        for memory in others:
            for mine, read in zip(memory.layers, first.layers, strict=True):
                mine.append(read.k, read.v, range(len(prefix)))

    more = True
    while True:
        for slot in range(together):
            while more and running[slot] is None:
                more = fill(slot)
        yield from ended
        ended.clear()
        if not any(running):
            return
        # A slot without a text takes part all the same, with a token that is forgotten: a pool's pass is of all of it.
        tokens = [t.tokens[-1] if t else 0 for t in running]
        places = [len(t.tokens) - 1 if t else 0 for t in running]
        spans = [Span(i, i + 1, memories[i], first=p) for i, p in enumerate(places)]
        logits = step(tokens, places, spans, together)
        seen = tap.taken() if taps else None
        drawn = _draw(logits, [t.temperature if t else 0.0 for t in running], dice)
        for slot, text in enumerate(running):
            if text is None:
                memories[slot].restore(shared)
                continue
            if seen is not None:
                text.states.append(seen[slot : slot + 1])
            take(slot, drawn[slot])


def _draw(logits: Tensor, temperatures: Sequence[float], dice: torch.Generator) -> list[int]:
    """A token for each row of logits (N, V), at its own temperature from the most likely ones; the best at 0."""
    count = min(REACHABLE, logits.shape[1])
    index = top_indices(logits, count)
    values = logits.gather(1, index)
    T = torch.tensor(temperatures)[:, None]
    p = torch.softmax(values / T.clamp_min(1e-3), -1)
    best = values.argmax(-1, keepdim=True)
    picked = torch.where(T > 0, torch.multinomial(p, 1, generator=dice), best)
    return index.gather(1, picked).flatten().tolist()

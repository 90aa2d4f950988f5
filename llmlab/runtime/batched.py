"""Many texts at once: sequences that decode together, each replaced by the next one when it ends."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmlab.kv.memory import Memory
from llmlab.models.decoder import Decoder
from llmlab.models.kernels.topk import top_indices
from llmlab.runtime.session import Session
from llmlab.runtime.step import Lane, Work, verify
from llmlab.runtime.tools import Tools

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


class _Slots:
    """Places for texts that decode together; their memories share tensors."""

    def __init__(self, model: Decoder, count: int, taps: Sequence[int], seed: int, prefix: Sequence[int]) -> None:
        self.model, self.prefix, self.tools = model, list(prefix), Tools()
        self.random = torch.Generator().manual_seed(seed)
        self.memories = [model.memory() for _ in range(count)]
        Memory.pooled(self.memories)
        self.sessions = [
            Session(model, taps=taps, exact=False, exact_top=EXACT, memory=memory) for memory in self.memories
        ]
        self.texts: list[Text | None] = [None] * count
        if prefix:
            self._read_prefix()
        self._marks = self.memories[0].mark()
        for session in self.sessions:
            self._rest(session)

    def _read_prefix(self) -> None:
        first = Session(self.model, exact=False, memory=self.memories[0])
        for _ in first.prefill([*self.prefix, 0]):
            pass
        for memory in self.memories[1:]:
            memory.copy_from(self.memories[0])

    def _rest(self, session: Session) -> None:
        """A slot without a text takes part all the same, with a token that is forgotten: a pool's pass is of all."""
        session.memory.restore(self._marks)
        session.memory.next_position = len(self.prefix)
        session.begin([*self.prefix, 0], cached=len(self.prefix))

    def read(self, slot: int, text: Text) -> int:
        """Put a text into a slot and read it; its next token."""
        self.texts[slot] = text
        session = self.sessions[slot]
        session.begin(text.tokens, cached=len(self.prefix))
        (token,) = self._step([slot])
        return token

    def step(self) -> list[int]:
        """One more token for every slot."""
        return self._step(range(len(self.texts)))

    def _step(self, slots: Sequence[int]) -> list[int]:
        """The one step, in which the tokens of all slots are drawn together."""
        works = [Work(Lane(self.sessions[slot], self.tools, 1)) for slot in slots]
        logits = torch.cat([result.logits for _, result in verify(self.model, works)])
        texts = [self.texts[slot] for slot in slots]
        drawn = _draw(logits, [t.temperature if t else 0.0 for t in texts], self.random)
        for slot, text, token in zip(slots, texts, drawn, strict=True):
            if text is None:
                self._rest(self.sessions[slot])
            else:
                self.sessions[slot].commit((), token)
        return drawn

    def free(self, slot: int) -> None:
        """Let a text go; its slot keeps the prefix."""
        text, session = self.texts[slot], self.sessions[slot]
        if text is not None and session.taps:
            text.states.append(session.states())
        self.texts[slot] = None
        self._rest(session)


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
    waiting, slots = iter(texts), _Slots(model, together, taps, seed, prefix)
    ended: list[Text] = []

    def take(slot: int, token: int) -> None:
        text = slots.texts[slot]
        assert text is not None
        text.tokens.append(token)
        if token in stop_tokens or len(text.answer) >= text.limit or len(text.tokens) >= model.context:
            slots.free(slot)
            ended.append(text)

    more = True
    while True:
        for slot in range(together):
            while more and slots.texts[slot] is None:
                text = next(waiting, None)
                more = text is not None
                if text is not None:
                    take(slot, slots.read(slot, text))
        yield from ended
        ended.clear()
        if not any(slots.texts):
            return
        for slot, token in enumerate(slots.step()):
            if slots.texts[slot] is not None:
                take(slot, token)


def _draw(logits: Tensor, temperatures: Sequence[float], random: torch.Generator) -> list[int]:
    """A token for each row of logits (N, V), at its own temperature from the most likely ones; the best at 0."""
    count = min(REACHABLE, logits.shape[1])
    index = top_indices(logits, count)
    values = logits.gather(1, index)
    T = torch.tensor(temperatures)[:, None]
    p = torch.softmax(values / T.clamp_min(1e-3), -1)
    best = values.argmax(-1, keepdim=True)
    picked = torch.where(T > 0, torch.multinomial(p, 1, generator=random), best)
    return index.gather(1, picked).flatten().tolist()

"""Roles that no technique plays yet have their place in a run: prompt compressors and routers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from llmlab.errors import Refused
from llmlab.lab.experiment import Lab
from llmlab.lab.settings import Settings
from llmlab.models.decoder import Decoder
from llmlab.runtime.events import Started
from llmlab.runtime.generate import committed_tokens, generate
from llmlab.runtime.prompt import Prompt
from llmlab.runtime.roles import PromptCompressor, Router
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make
from llmlab.runtime.tools import Tools
from tests import made, tiny


@dataclass(frozen=True)
class EveryOther(PromptCompressor):
    """Keeps every other token."""

    covers = ("test",)

    def compress(self, prompt: Prompt, tools: Tools) -> Prompt:
        kept = tuple(range(0, len(prompt), 2))
        return Prompt(tuple(prompt.ids[i] for i in kept), kept)


@dataclass(frozen=True)
class Soft(PromptCompressor):
    """The same tokens as embeddings that no id stands for: here, those of other tokens."""

    covers = ("test",)

    def compress(self, prompt: Prompt, tools: Tools) -> Prompt:
        other = torch.tensor([(t + 1) % tiny.VOCAB for t in prompt.ids])
        return replace(prompt, embeddings=tiny.decoder("llama").embedding.lookup(other))


@dataclass(frozen=True)
class Second(Router):
    """Asks a second model once."""

    covers = ("test",)
    model: str = ""

    def next(self, answers: Sequence[str]) -> str | None:
        return self.model if len(answers) == 1 else None


PROMPT = tiny.prompts(1, 24)[0]


def test_a_lane_reads_its_compressed_prompt(llama: Decoder) -> None:
    events = list(generate(llama, PROMPT, 12, Stack([EveryOther()])))
    assert committed_tokens(events) == committed_tokens(list(generate(llama, PROMPT[::2], 12)))
    assert isinstance(events[0], Started)
    assert events[0].prompt_tokens == len(PROMPT[::2])
    drafted = Stack([EveryOther(), make("prompt-lookup")])
    assert committed_tokens(list(generate(llama, PROMPT, 12, drafted))) == committed_tokens(events)


def test_soft_tokens_take_the_place_of_embeddings(llama: Decoder) -> None:
    shifted = [(t + 1) % tiny.VOCAB for t in PROMPT]
    want = committed_tokens(list(generate(llama, shifted, 12)))
    assert committed_tokens(list(generate(llama, PROMPT, 12, Stack([Soft()])))) == want
    assert want != committed_tokens(list(generate(llama, PROMPT, 12)))


def test_a_router_lets_another_model_answer(tmp_path: Path) -> None:
    first, second = (str(made.folder(tmp_path / name, seed=i)) for i, name in enumerate(("first", "second")))
    lab = Lab()
    settings = Settings(first, "say hello", max_new_tokens=8, stack=Stack([Second(model=second)]))
    events = list(lab.route(lab.prepare(settings)))
    starts = [e for e in events if isinstance(e, Started)]
    assert [e.model for e in starts] == [first, second]
    alone = list(lab.run(lab.prepare(replace(settings, model=second, stack=Stack()))))
    assert committed_tokens(events[events.index(starts[1]) :]) == committed_tokens(alone)
    with pytest.raises(Refused):
        list(lab.route(lab.prepare(replace(settings, stack=Stack([Second(model="no/such model")])))))

"""Text that a model has written itself, with the hidden states it had while it wrote: what small parts learn from.

Prompts are made from templates and lists of our own (`assets/texts/training_prompts.json`), of six kinds. Passages that
later prompts ask to summarize, rewrite or quote are answers of the model to earlier ones.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmlab.assets import ASSETS
from llmlab.errors import Refused
from llmlab.models.loading.loaded import Loaded, prompt_tokens
from llmlab.models.loading.progress import Report
from llmlab.models.loading.whole import whole_file
from llmlab.runtime.batched import Text, generate_batch

KINDS = ("chat", "summary", "qa", "maths", "code", "rewriting")
TEMPERATURES = (0.0, 0.7, 1.0, 1.0)
"""Drawn from for each prompt: samples at 1 show the model's whole distribution, and its use is mostly at 0."""
LONGEST = 320
"""Tokens of an answer."""
SHARD = 40_000
"""Tokens of a file."""


@cache  # one file of the project's own, read once
def lists() -> dict[str, list[str]]:
    """Subjects, tasks and other lists that prompts are put together from."""
    found: dict[str, list[str]] = json.loads((ASSETS / "texts" / "training_prompts.json").read_text(encoding="utf-8"))
    return found


class Prompts:
    """An endless supply of prompts of six kinds. `learn` adds a passage that later prompts may be about."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.passages: list[str] = []

    def learn(self, text: str) -> None:
        sentences = re.findall(r"[A-Z][^.!?\n]{20,200}[.!?]", text)
        if len(sentences) >= 2:
            self.passages.append(" ".join(sentences[: self.rng.randint(2, 6)]))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(kind, prompt), without end."""
        while True:
            kind = self.rng.choice(KINDS)
            template = self.rng.choice(lists()[kind])
            if ("{passage}" in template or "{typos}" in template) and not self.passages:
                continue
            yield kind, self._filled(template)

    def _filled(self, template: str) -> str:
        pick, words = self.rng.choice, lists()
        (topic, topic2), (person, person2) = (self.rng.sample(words[w], 2) for w in ("topics", "people"))
        (place, place2), (things, things2) = (self.rng.sample(words[w], 2) for w in ("places", "things"))
        a, b = self.rng.randint(11, 90), self.rng.randint(2, 12)
        passage = pick(self.passages) if self.passages else ""
        return template.format(
            topic=topic, topic2=topic2, person=person, person2=person2, place=place, place2=place2, things=things,
            things2=things2, a=a, b=b, c=a + b + self.rng.randint(1, 60), a2=self.rng.randint(2, 4),
            b2=b + self.rng.randint(5, 15), passage=passage, typos=self._mistyped(passage), task=pick(words["tasks"]),
            code=pick(words["code_pieces"]), name=pick(words["names"]),
        )  # fmt: skip

    def _mistyped(self, text: str) -> str:
        """The text with two letters swapped in every eighth word or so."""
        words = text.split()
        for i, word in enumerate(words):
            if len(word) > 4 and self.rng.random() < 0.12:
                words[i] = word[0] + word[2] + word[1] + word[3:]
        return " ".join(words)


def write(
    loaded: Loaded, folder: Path, tokens: int, taps: tuple[int, ...], report: Report, seed: int = 0, together: int = 64
) -> None:
    """Let the model write until `folder` holds `tokens` tokens, those of the prompts included.

    Goes on where an earlier call ended. Each file holds `tokens` (T,), `states` (T, taps, E) in bfloat16 and, for each
    text, `lengths`, `prompts` (tokens of its prompt), `kinds` and `temperatures`; the last token of a text has no
    states of its own, so its text ends before it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    have = shards(folder)
    done = sum(_count(path) for path in have)
    if done >= tokens:
        return
    supply, rng = Prompts(seed + len(have)), random.Random(seed + len(have))

    def texts() -> Iterator[Text]:
        for kind, prompt in supply:
            ids = prompt_tokens(loaded, prompt)
            if len(ids) <= 400:
                yield Text(ids, len(ids), rng.randint(LONGEST // 3, LONGEST), rng.choice(TEMPERATURES), kind)

    batch: list[Text] = []
    held = 0
    try:
        for text in generate_batch(loaded.model, texts(), loaded.stop_tokens, together, taps, seed + len(have)):
            if text.tag == "chat":
                supply.learn(loaded.tokenizer.decode(text.answer, skip_special_tokens=True))
            batch.append(text)
            held += len(text.tokens) - 1
            report("Writing text to learn from", min(done + held, tokens), tokens)
            if held >= SHARD or done + held >= tokens:
                _save(folder, batch, taps)
                done, held, batch = done + held, 0, []
            if done >= tokens:
                return
    except KeyboardInterrupt:
        if batch:
            _save(folder, batch, taps)
        raise


def _save(folder: Path, texts: list[Text], taps: tuple[int, ...]) -> None:
    value = {
        "tokens": torch.tensor([t for text in texts for t in text.tokens[:-1]], dtype=torch.int32),
        "next": torch.tensor([text.tokens[-1] for text in texts], dtype=torch.int32),
        "lengths": torch.tensor([len(text.tokens) - 1 for text in texts], dtype=torch.int32),
        "prompts": torch.tensor([text.prompt for text in texts], dtype=torch.int32),
        "kinds": torch.tensor([KINDS.index(text.tag) for text in texts], dtype=torch.int32),
        "temperatures": torch.tensor([text.temperature for text in texts]),
    }
    if taps:
        value["states"] = torch.cat([text.seen for text in texts]).bfloat16()
    with whole_file(folder / f"text-{len(shards(folder)):04}.safetensors") as part:
        save_file(value, part, {"taps": json.dumps(taps)})


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("text-*.safetensors"))


def taps(folder: Path) -> tuple[int, ...]:
    """After which layers, counted from 1, the states of a folder's texts were taken."""
    with safe_open(shards(folder)[0], "pt") as f:
        return tuple(json.loads((f.metadata() or {}).get("taps", "[]")))


def _count(path: Path) -> int:
    with safe_open(path, "pt") as f:
        return int(f.get_slice("tokens").get_shape()[0])


@dataclass(frozen=True)
class Sequence:
    """One text: tokens (T,) long, states (T, taps, E) or None, how many of the tokens were its prompt, and its kind.

    `following` (T,): the token that stood next, for the last one the one that ended the text.
    """

    tokens: Tensor
    following: Tensor
    states: Tensor | None
    prompt: int
    kind: str
    temperature: float


def sequences(folder: Path, layers: tuple[int, ...] = ()) -> Iterator[Sequence]:
    """The texts of a folder, with the states that stand after `layers`; without any, without states.

    Raises Refused where there are no texts, or none with these states.
    """
    if not shards(folder):
        raise Refused(f"The folder {folder}", "holds no text to learn from", "Write some first")
    have = taps(folder)
    if not set(layers) <= set(have):
        missing = ", ".join(map(str, sorted(set(layers) - set(have))))
        raise Refused(f"The folder {folder}", f"holds no states of the layers {missing}", "Write its text again")
    columns = [have.index(layer) for layer in layers]
    for path in shards(folder):
        with safe_open(path, "pt") as f:
            held: dict[str, Tensor] = {k: f.get_tensor(k) for k in f.keys() if k != "states"}  # noqa: SIM118
            states = f.get_tensor("states")[:, columns] if columns else None
        start = 0
        lists_of = (held[k].tolist() for k in ("lengths", "prompts", "kinds", "temperatures", "next"))
        for n, prompt, kind, temperature, end in zip(*lists_of, strict=True):
            tokens = held["tokens"][start : start + n].long()
            following = torch.cat([tokens[1:], torch.tensor([end])])
            own = states[start : start + n] if states is not None else None
            yield Sequence(tokens, following, own, prompt, KINDS[kind], temperature)
            start += n

"""Sentence classification on a frozen language model: what stands after each layer at a sentence's last token.

The backbone is never trained; classifiers are (`probes`), from the states that one pass over each sentence leaves.
Everything that an exit does to accuracy and cost follows from those states, so a sweep over thresholds costs nothing.

Shapes: L layers, n sentences, E width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from llmlab.errors import Refused
from llmlab.lab.study import Subject
from llmlab.measure.roofline import flops_per_token
from llmlab.models.batch import Batch, Span
from llmlab.models.cached import cached_on
from llmlab.models.capabilities import Capability
from llmlab.models.decoder import Decoder
from llmlab.models.result import PlanResult
from llmlab.models.shape import Shape
from llmlab.studies.support.classification import probes, sentences
from llmlab.studies.support.classification.sentences import Labelled
from llmlab.techniques.early_exit.rules import Rule

QUESTION = "\nIn one word, the writer's verdict is"
"""What follows each sentence, so that its last token is where a language model would say what it thinks."""
LONGEST = 512
"""Tokens of a sentence that are read; the rest of a longer one is left out."""
TOGETHER = 1024
"""Tokens of the sentences that are read in one pass."""
PARTS = ("train", "calibration", "test")


# Reading ------------------------------------------------------------------------------------------------------------


def encoded(tokenizer: Any, texts: Sequence[str], question: str = QUESTION) -> list[list[int]]:
    """Each text's token ids with the question behind it; of a text that is too long, the first part."""
    asked = list(tokenizer(question, add_special_tokens=False)["input_ids"])
    return [list(ids)[: LONGEST - len(asked)] + asked for ids in (tokenizer(t)["input_ids"] for t in texts)]


class Ends:
    """A plan that goes through every layer and keeps what stands after each at the last token of every sequence."""

    def __init__(self) -> None:
        self.states: list[Tensor] = []

    def __call__(self, model: Decoder, h: Tensor, batch: Batch) -> PlanResult:
        ends = torch.tensor([span.stop - 1 for span in batch.spans], device=h.device)
        for i in range(len(model.layers)):
            h = model.run_layers(h, batch, i, i + 1)
            self.states.append(h[ends].float())
        return PlanResult(h, float(len(model.layers)))

    def stacked(self) -> Tensor:
        """(L, sequences, E) of the pass."""
        return torch.stack(self.states).cpu()


@torch.inference_mode()
def states(model: Any, sequences: Sequence[Sequence[int]], progress: Callable[[int, int], None]) -> Tensor:
    """(L, n, E): the last token's state after every layer, for token sequences of any lengths.

    Several are read in one pass, alike in length. `progress(done, total)` is called after each pass.
    """
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    out: Tensor | None = None
    done = 0
    while done < len(order):
        picked: list[int] = []
        tokens = 0
        while done < len(order) and (not picked or tokens + len(sequences[order[done]]) <= TOGETHER):
            picked.append(order[done])
            tokens += len(sequences[order[done]])
            done += 1
        ends = Ends()
        model.forward(batch_of(model, [sequences[i] for i in picked]), ends, 0)
        taken = ends.stacked()
        if out is None:
            with torch.inference_mode(False):  # classifiers are trained on it
                out = torch.empty(len(taken), len(order), taken.shape[2])
        out[:, picked] = taken
        progress(done, len(order))
    assert out is not None
    return out


def batch_of(model: Any, sequences: Sequence[Sequence[int]]) -> Batch:
    spans, at = [], 0
    for sequence in sequences:
        spans.append(Span(at, at + len(sequence), model.memory(), first=0))
        at += len(sequence)
    tokens = torch.tensor([t for s in sequences for t in s], device=model.device)
    positions = torch.cat([torch.arange(len(s)) for s in sequences]).to(model.device)
    return Batch(tokens, positions, spans)


# Cost ---------------------------------------------------------------------------------------------------------------


def flops(shape: Shape, counts: Sequence[int], filled: Sequence[int] = ()) -> float:
    """Multiplications and additions of one sentence, with `counts` tokens in each layer that it goes through.

    `filled`: in each layer, the tokens of which only keys and values are made; the others attend to their rows too. No
    head: classifiers of C classes cost less than a thousandth of a layer.
    """
    head = 2 * shape.vocab * shape.width
    total = 0.0
    for i, n in enumerate(counts):
        extra = filled[i] if i < len(filled) else 0
        linear = flops_per_token(shape, 1, 0) - head
        attention = flops_per_token(shape, 1, 1) - head - linear
        qkv = 2 * shape.width * (shape.heads + 2 * shape.kv_heads) * shape.head_size
        total += n * linear + extra * qkv + attention * (n * (n + 1) / 2 + n * extra)
    return total


# The task -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Which sentences: `source` is "made" or a CSV file's path."""

    source: str = "made"
    classes: int = 3
    train: int = 1000
    calibration: int = 400
    test: int = 400
    seed: int = 0
    words: tuple[int, int] = (4, 26)

    def load(self) -> Labelled:
        sizes = (self.train, self.calibration, self.test, self.seed)
        if self.source == "made":
            return sentences.make(self.classes, *sizes, words=self.words)
        return sentences.read(self.source, *sizes)


class Task:
    """A labelled set as one model sees it: states, labels, lengths and the classifier on the last layer."""

    def __init__(self, model: Any, tokenizer: Any, data: Data, progress: Callable[[str, int, int], None]) -> None:
        self.model, self.shape, self.data = model, model.shape, data
        self.sentences = data.load()
        self.asked = len(tokenizer(QUESTION, add_special_tokens=False)["input_ids"])
        """Tokens of the question."""
        self.ids = {p: encoded(tokenizer, [s.text for s in getattr(self.sentences, p)]) for p in PARTS}
        self.y = {p: torch.tensor([s.label for s in getattr(self.sentences, p)]) for p in PARTS}
        self.x: dict[str, Tensor] = {}
        for p in PARTS:
            self.x[p] = states(model, self.ids[p], partial(progress, f"Reading: {p}"))
        self.scale = probes.Scale.of(self.x["train"])
        for p in PARTS:
            self.scale.apply_(self.x[p])

    @property
    def layers(self) -> int:
        return len(self.x["train"])

    @property
    def labels(self) -> tuple[str, ...]:
        return self.sentences.labels

    @cached_property
    def probes(self) -> probes.Linear:
        """A linear classifier per layer, each trained alone on the labels; the last is the full model's."""
        return probes.trained(self.x["train"], self.y["train"], len(self.labels))

    def lengths(self, part: str) -> Tensor:
        """(n,) tokens."""
        return torch.tensor([len(ids) for ids in self.ids[part]])

    def see(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """(L, n, E): the states of other token sequences, as the classifiers want them."""
        return self.scale.apply_(states(self.model, sequences, lambda done, all: None))


def task(subject: Subject, data: Data) -> Task:
    """The task on a study's model; the last one of each model is kept. Refused for a model without single layers."""
    if Capability.LAYERS not in subject.lab.model_cache.capabilities(subject.settings.model):
        raise Refused("Classification", "needs a decoder whose layers can be read one by one", "Choose another model")
    model = subject.model
    held: list[Task] = cached_on(model, "task", list)
    if not held or held[0].data != data:
        held[:] = [Task(model, subject.tokenizer, data, subject.progress)]
    return held[0]


@dataclass(frozen=True)
class Answers:
    """What a complete model says of each sentence of a part: p (n, C), the labels (n,) and its FLOPs (n,)."""

    p: Tensor
    y: Tensor
    flops: Tensor


def answers(
    model: Any, tokenizer: Any, data: Data, progress: Callable[[str, int, int], None], layers: int = 0
) -> dict[str, Answers]:
    """A model as a classifier of its own, for cascades: per part, what the classifier on its last layer says.

    `model` may be any decoder: another size, packed or pruned, with layers removed. `layers` cuts it there; 0 for all.
    """
    own = Task(model, tokenizer, data, progress)
    at = (layers or own.layers) - 1
    last = probes.trained(own.x["train"][at : at + 1], own.y["train"], len(own.labels))
    found = {}
    for p in PARTS:
        cost = torch.tensor([flops(own.shape, [len(ids)] * (at + 1)) for ids in own.ids[p]])
        found[p] = Answers(last(own.x[p][at : at + 1])[-1], own.y[p], cost)
    return found


# Early exits --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exits:
    """Where n sentences exited: the `layers` (n,) that each went through, and the `labels` (n,) given there."""

    layers: Tensor
    labels: Tensor

    def accuracy(self, y: Tensor) -> float:
        return float((self.labels == y).double().mean())

    def mean(self) -> float:
        return float(self.layers.double().mean())


def run_exits(rule: Rule, p: Tensor, depths: Sequence[int], answer: Callable[[Tensor], Tensor] | None = None) -> Exits:
    """Ask `rule` after each classifier; a sentence that never exits gets the last one's answer.

    p (l, n, C): what the classifiers at `depths` (layers, rising; the last is the model's own) say of n sentences.
    `answer(p so far)` (n, C) is what is answered, where that is not the newest classifier's distribution.
    """
    n = p.shape[1]
    layers = torch.full((n,), depths[-1])
    labels = torch.empty(n, dtype=torch.long)
    here = torch.ones(n, dtype=torch.bool)
    for l, depth in enumerate(depths, 1):
        so_far = p[:l]
        go = here & rule.leaves(so_far) if l < len(depths) else here
        out = so_far[-1] if answer is None else answer(so_far)
        labels[go], layers[go] = out[go].argmax(-1), depth
        here = here & ~go
    return Exits(layers, labels)

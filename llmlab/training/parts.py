"""What the trainers of small parts share: batches of a model's own text, checkpoints, a learning rate, a loss curve."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmlab.models.loading.progress import Report
from llmlab.models.loading.whole import whole_file
from llmlab.training.corpus import KINDS, Sequence, sequences

HELD_OUT = 40
"""Every so many texts one is kept from training and measured on."""
WIDTHS = 64
"""A batch is padded to a multiple of this."""


@dataclass(frozen=True)
class Plan:
    """How long and how a part is trained."""

    steps: int = 1500
    batch: int = 4096
    """Tokens of a batch, padding not counted."""
    rate: float = 1e-3
    warmup: int = 50
    seed: int = 0


class Texts:
    """The texts of a folder in memory: those to learn from, and those kept back."""

    def __init__(self, folder: Path, layers: tuple[int, ...], longest: int = 512) -> None:
        every = list(sequences(folder, layers))
        self.learn = [s for i, s in enumerate(every) if i % HELD_OUT and len(s.tokens) <= longest]
        self.kept = [s for i, s in enumerate(every) if not i % HELD_OUT and len(s.tokens) <= longest]
        self.tokens = sum(len(s.tokens) for s in self.learn)

    def shortlist(self, words: int, vocabulary: int) -> tuple[Tensor, float]:
        """The words that stand most often in answers, ascending, and the share of kept answers that they cover.

        As many as are asked for, but a multiple of 64, which the int4 kernel wants; all of a smaller vocabulary.
        """
        size = min(words, vocabulary) // 64 * 64 or vocabulary
        counts: Counter[int] = Counter()
        for s in self.learn:
            counts.update(s.following[s.prompt - 1 :].tolist())
        chosen = {word for word, _ in counts.most_common(size)}
        chosen.update([w for w in range(vocabulary) if w not in counts][: size - len(chosen)])
        kept = [t for s in self.kept for t in s.following[s.prompt - 1 :].tolist()]
        return torch.tensor(sorted(chosen)), sum(t in chosen for t in kept) / max(1, len(kept))

    def batches(self, plan: Plan, first: int) -> Iterator[list[Sequence]]:
        """Batches of about equal length from step `first` on, without end, the same for the same seed."""
        order: list[list[Sequence]] = []
        step, epoch = 0, 0
        while True:
            if not order:
                rng = torch.Generator().manual_seed(plan.seed * 1000 + epoch)
                texts = [self.learn[i] for i in torch.randperm(len(self.learn), generator=rng)]
                texts.sort(key=lambda s: -(-len(s.tokens) // WIDTHS))
                order = _grouped(texts, plan.batch)
                order = [order[i] for i in torch.randperm(len(order), generator=rng)]
                epoch += 1
            batch = order.pop()
            if step >= first:
                yield batch
            step += 1


def _grouped(texts: list[Sequence], tokens: int) -> list[list[Sequence]]:
    groups: list[list[Sequence]] = [[]]
    held = 0
    for text in texts:
        if groups[-1] and held + len(text.tokens) > tokens:
            groups.append([])
            held = 0
        groups[-1].append(text)
        held += len(text.tokens)
    return groups


def padded(tensors: list[Tensor]) -> Tensor:
    """Tensors (T_i, …) as one (B, T, …), zeros behind the shorter ones."""
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True)


def learning_rate(plan: Plan, step: int, done: float) -> float:
    """A linear warm-up, then a cosine from `plan.rate` to a twentieth of it; `done` is the share that is over."""
    return plan.rate * min(1.0, (step + 1) / plan.warmup) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def _means(figures: list[dict[str, float]]) -> dict[str, float]:
    found = {k: [f[k] for f in figures if k in f] for k in figures[-1]}
    return {k: sum(v) / len(v) for k, v in found.items()}


class Checkpoint:
    """A training on the disk, and its clock: seconds of this call, since the last save, and of all calls."""

    def __init__(self, path: Path, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.path, self.network, self.optimizer = path, net, optimizer
        self.start = self.saved = time.monotonic()
        self.spent = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)

    def load(self) -> tuple[int, list[dict[str, float]]]:
        """(steps made, curve) of an interrupted training, put into network and optimizer; (0, []) where none is."""
        if not self.path.is_file():
            return 0, []
        held = torch.load(self.path, weights_only=True)
        self.network.load_state_dict(held["net"])
        self.optimizer.load_state_dict(held["optimizer"])
        self.spent = held["seconds"]
        return held["step"], held["curve"]

    def save(self, step: int, curve: list[dict[str, float]]) -> None:
        """Replace the file by the present state; an interruption leaves the old one whole."""
        states = {"net": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        with whole_file(self.path) as part:
            torch.save({**states, "step": step, "curve": curve, "seconds": self.seconds_in_all}, part)
        self.saved = time.monotonic()

    @property
    def seconds_now(self) -> float:
        return time.monotonic() - self.start

    @property
    def seconds_since(self) -> float:
        return time.monotonic() - self.saved

    @property
    def seconds_in_all(self) -> float:
        return self.spent + self.seconds_now


def train(
    net: nn.Module,
    loss: Callable[[list[Sequence]], tuple[Tensor, dict[str, float]]],
    texts: Texts,
    plan: Plan,
    measure: Callable[[], dict[str, float]],
    checkpoint: Path,
    report: Report,
    seconds: float = math.inf,
    pace: Callable[[float], None] = lambda done: None,
) -> dict[str, Any]:
    """Train `net` with AdamW and a cosine rate; goes on where `checkpoint` ended, and ends early after `seconds`.

    `loss(batch)` gives the loss and figures to follow; `measure()` gives figures of the held-out texts; `pace(done)` is
    called before each step with the share of the training that is over. Returns the curve, a list of figures by step,
    and what `measure` says at the end. Raises nothing for an interruption: the next call goes on.
    """
    optimizer = torch.optim.AdamW(net.parameters(), lr=plan.rate, betas=(0.9, 0.95), weight_decay=0.01)
    saved = Checkpoint(checkpoint, net, optimizer)
    step, curve = saved.load()
    recent: list[dict[str, float]] = []
    try:
        for batch in texts.batches(plan, step):
            if step >= plan.steps or saved.seconds_now > seconds:
                break
            # Where time ends before the steps do, the rate must have come down all the same.
            done = max(step / plan.steps, saved.seconds_now / seconds)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(plan, step, done)
            pace(done)
            value, figures = loss(batch)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            step += 1
            recent.append({"loss": float(value.detach()), **figures})
            if step % 25 == 0 or step == plan.steps:
                mean = _means(recent)
                curve.append({"step": step, **{k: round(v, 4) for k, v in mean.items()}})
                recent = []
                report("Training: " + ", ".join(f"{k} {v:.3f}" for k, v in mean.items()), step, plan.steps)
            if saved.seconds_since > 120:
                saved.save(step, curve)
    except KeyboardInterrupt:
        saved.save(step, curve)  # perhaps in the midst of a step, a part of which the next call then makes twice
        raise
    saved.save(step, curve)
    return {
        "steps": step,
        "tokens_of_text": texts.tokens,
        "seconds": round(saved.seconds_in_all),
        "curve": curve,
        "held_out": measure(),
        "kinds": list(KINDS),
    }

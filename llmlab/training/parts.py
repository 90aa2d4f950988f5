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
        said: Counter[int] = Counter()
        for s in self.learn:
            said.update(s.following[s.prompt - 1 :].tolist())
        chosen = {word for word, _ in said.most_common(size)}
        chosen.update([w for w in range(vocabulary) if w not in said][: size - len(chosen)])
        kept = [t for s in self.kept for t in s.following[s.prompt - 1 :].tolist()]
        return torch.tensor(sorted(chosen)), sum(t in chosen for t in kept) / max(1, len(kept))

    def batches(self, plan: Plan, first: int) -> Iterator[list[Sequence]]:
        """Batches of about equal length from step `first` on, without end, the same for the same seed."""
        order: list[list[Sequence]] = []
        step, epoch = 0, 0
        while True:
            if not order:
                dice = torch.Generator().manual_seed(plan.seed * 1000 + epoch)
                texts = [self.learn[i] for i in torch.randperm(len(self.learn), generator=dice)]
                texts.sort(key=lambda s: -(-len(s.tokens) // WIDTHS))
                order = _grouped(texts, plan.batch)
                order = [order[i] for i in torch.randperm(len(order), generator=dice)]
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


class _Progress:
    """What a checkpoint keeps: the net, its optimizer, the step, the curve and the seconds spent."""

    def __init__(self, net: nn.Module, plan: Plan, checkpoint: Path, report: Report) -> None:
        self.network, self.plan, self.checkpoint, self.report = net, plan, checkpoint, report
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=plan.rate, betas=(0.9, 0.95), weight_decay=0.01)
        self.curve: list[dict[str, float]] = []
        self.step, self._before = 0, 0.0
        if checkpoint.is_file():
            held = torch.load(checkpoint, weights_only=True)
            net.load_state_dict(held["net"])
            self.optimizer.load_state_dict(held["optimizer"])
            self.step, self.curve, self._before = held["step"], held["curve"], held["seconds"]
        self._start = self._saved = time.monotonic()
        self._recent: list[dict[str, float]] = []

    @property
    def running(self) -> float:
        """Seconds since this call began."""
        return time.monotonic() - self._start

    @property
    def spent(self) -> float:
        """Seconds of all calls together."""
        return self._before + self.running

    def set_rate(self, done: float) -> None:
        """Warm up, then follow a cosine down to a twentieth; `done` is the share of the training that is over."""
        cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate * min(1.0, (self.step + 1) / self.plan.warmup) * cosine

    def update(self, loss: Tensor, figures: dict[str, float]) -> None:
        """One step of the optimizer, and its figures into the curve, of which a point is a mean of up to 25 steps."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self._recent.append({"loss": float(loss.detach()), **figures})
        if self.step % 25 == 0 or self.step == self.plan.steps:
            held = {k: [r[k] for r in self._recent if k in r] for k in self._recent[-1]}
            mean = {k: sum(v) / len(v) for k, v in held.items()}
            self.curve.append({"step": self.step, **{k: round(v, 4) for k, v in mean.items()}})
            self._recent = []
            told = ", ".join(f"{k} {v:.3f}" for k, v in mean.items())
            self.report(f"Training: {told}", self.step, self.plan.steps)

    def save(self, every: float = 0.0) -> None:
        """Write the checkpoint, if the last is at least `every` seconds old."""
        if time.monotonic() - self._saved < every:
            return
        value = {"net": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        part = self.checkpoint.with_suffix(".part")
        torch.save({**value, "step": self.step, "curve": self.curve, "seconds": self.spent}, part)
        part.rename(self.checkpoint)
        self._saved = time.monotonic()


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

    `loss(batch)` gives the loss and figures to follow; `measure()` looks at the kept texts; `pace(done)` hears before
    each step which share of the training is over. Returns the curve, a list of figures by step, and what `measure`
    says at the end. Raises nothing for an interruption: the next call goes on.
    """
    progress = _Progress(net, plan, checkpoint, report)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    for batch in texts.batches(plan, progress.step):
        if progress.step >= plan.steps or progress.running > seconds:
            break
        # Where time ends before the steps do, the rate must have come down all the same.
        done = max(progress.step / plan.steps, progress.running / seconds)
        progress.set_rate(done)
        pace(done)
        progress.update(*loss(batch))
        progress.save(every=120)
    progress.save()
    return {
        "steps": progress.step,
        "tokens_of_text": texts.tokens,
        "seconds": round(progress.spent),
        "curve": progress.curve,
        "held_out": measure(),
        "kinds": list(KINDS),
    }

"""Trains exits: to say after some of a model's layers what its last layer would say, and how likely that is right.

An exit turns the state before the model's own head (a tuned lens, arXiv 2303.08112, with a small gated network beside
its matrix) and learns the model's distribution over the shortlist, as FastBERT's branches learn the last classifier's
(arXiv 2004.02178, section 3.3.2). Its gate learns whether the two agree (CALM's early-exit classifier, arXiv
2207.07061, section 3.5). Shapes: n rows, E width, F inner width, l exits, S words of the shortlist.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.models.decoder import Decoder
from llmlab.models.loading.progress import Report
from llmlab.techniques.early_exit import thresholds
from llmlab.training.corpus import Sequence
from llmlab.training.parts import Plan, Texts, train

SHARES = (0.6, 0.7, 0.8, 0.9)
"""After which shares of the layers exits stand."""
INNER, GATE = 384, 64
ROWS = 768
"""Rows of a batch that are trained on: the head takes most of a step's time."""
FITTED = 30_000
"""Rows from which the exits' matrices are fitted before training."""
AGREEMENT = 0.95


def taps(model: Decoder) -> tuple[int, ...]:
    """The layers whose states the part is made from: those of its exits, and the last."""
    count = len(model.layers)
    return (*sorted({layer for s in SHARES if 0 < (layer := round(s * count)) < count}), count)


class Exits(nn.Module):
    """Exit i of x = rms(h): y = W x + b + V (silu(U₁ x) · U₂ x); its gate: silu(G x + g) · o + s."""

    def __init__(self, width: int, count: int, inner: int = INNER, gate: int = GATE) -> None:
        super().__init__()
        noise = torch.Generator().manual_seed(0)
        scale = width**-0.5
        self.W = nn.Parameter(torch.eye(width).repeat(count, 1, 1))
        self.b = nn.Parameter(torch.zeros(count, width))
        self.U = nn.Parameter(torch.randn(count, 2 * inner, width, generator=noise) * scale)
        self.V = nn.Parameter(torch.zeros(count, width, inner))
        self.gate_in = nn.Parameter(torch.randn(count, gate, width, generator=noise) * scale)
        self.gate_bias = nn.Parameter(torch.zeros(count, gate))
        self.gate_out = nn.Parameter(torch.zeros(count, gate))
        self.gate_shift = nn.Parameter(torch.zeros(count))

    def forward(self, x: Tensor, i: int) -> Tensor:
        up, gate = F.linear(x, self.U[i]).chunk(2, -1)
        return F.linear(x, self.W[i], self.b[i]) + F.linear(F.silu(up) * gate, self.V[i])

    def odds(self, x: Tensor, i: int) -> Tensor:
        """(n,) logits: how likely exit i is to be right."""
        return F.silu(F.linear(x, self.gate_in[i], self.gate_bias[i])) @ self.gate_out[i] + self.gate_shift[i]


class Trainer:
    """Loss and measurement of `Exits` on a model's own texts."""

    def __init__(self, model: Decoder, texts: Texts, words: int) -> None:
        self.layers, self.full = taps(model)[:-1], len(model.layers)
        self.texts, self.eps = texts, model.shape.eps
        self.shortlist, self.covered = texts.shortlist(words, model.shape.vocab)
        norm = model.norm.weight.float().cpu()
        self.head = (model.embedding.head.dense().float().cpu() * norm).bfloat16()
        self.short = self.head[self.shortlist].clone()
        self.network = Exits(model.shape.width, len(self.layers))
        self.rng = torch.Generator().manual_seed(0)
        self._fit()

    def _rms(self, h: Tensor) -> Tensor:
        return F.rms_norm(h.float(), (h.shape[-1],), None, self.eps)

    @staticmethod
    def _answers(s: Sequence) -> Tensor:
        """(n, l + 1, E): the states from which a text's answer was predicted, word by word."""
        assert s.states is not None
        return s.states[max(0, s.prompt - 1) :]

    @torch.no_grad()
    def _fit(self) -> None:
        """Start from the linear map that comes closest to the last layer's state: training then has half its way."""
        held, count = [], 0
        for s in self.texts.learn:
            held.append(self._answers(s))
            count += len(held[-1])
            if count >= FITTED:
                break
        h = torch.cat(held)
        want = self._rms(h[:, -1])
        for i in range(len(self.layers)):
            x = F.pad(self._rms(h[:, i]), (0, 1), value=1.0)
            A = x.t() @ x + 10 * torch.eye(x.shape[1])
            W = torch.linalg.solve(A, x.t() @ want).t()
            self.network.W[i], self.network.b[i] = W[:, :-1], W[:, -1]

    def says(self, h: Tensor) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]:
        """h (n, l + 1, E): per exit its logits (n, S), whether its best word is the model's (n,), and its gate's logits
        (n,); and the model's logits over the shortlist (n, S)."""
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            whole = F.linear(self._rms(h[:, -1]), self.head)
            best = whole.argmax(-1)
        out = []
        for i in range(len(self.layers)):
            x = self._rms(h[:, i])
            with torch.autocast("cpu", torch.bfloat16):
                got = F.linear(self._rms(self.network(x, i)), self.short)
            out.append((got.float(), self.shortlist[got.argmax(-1)] == best, self.network.odds(x, i)))
        return out, whole[:, self.shortlist].float()

    def loss(self, batch: list[Sequence]) -> tuple[Tensor, dict[str, float]]:
        h = torch.cat([self._answers(s) for s in batch])
        h = h[torch.randperm(len(h), generator=self.rng)[:ROWS]]
        out, want = self.says(h)
        p, total, figures = torch.softmax(want, -1), torch.zeros(()), {}
        for layer, (got, right, odds) in zip(self.layers, out, strict=True):
            total = total - (p * torch.log_softmax(got, -1)).sum(-1).mean()
            total = total + F.binary_cross_entropy_with_logits(odds, right.float())
            figures[f"agree {layer}"] = float(right.float().mean())
        return total, figures

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """On the kept texts: how often each exit is right; and, exiting where 95 % of words stay the same, how many
        layers run on average and under which bar: for all texts, and for those that were written greedily."""
        scores: dict[str, list[Tensor]] = {"probability": [], "margin": [], "learned": []}
        same, greedy = [], []
        for s in self.texts.kept:
            out, _ = self.says(self._answers(s))
            best = torch.stack([torch.softmax(got, -1).topk(2, -1).values for got, _, _ in out])
            scores["probability"].append(best[..., 0])
            scores["margin"].append(best[..., 0] - best[..., 1])
            scores["learned"].append(torch.stack([torch.sigmoid(odds) for _, _, odds in out]))
            same.append(torch.stack([right for _, right, _ in out]))
            greedy += [s.temperature == 0] * same[-1].shape[1]
        right, cold = torch.cat(same, 1), torch.tensor(greedy)
        found = {f"agree {layer}": float(right[i].float().mean()) for i, layer in enumerate(self.layers)}
        for kind, chosen in (("all", torch.ones_like(cold)), ("greedy", cold)):
            for name, parts in scores.items():
                if not chosen.any():
                    continue
                score = torch.cat(parts, 1)[:, chosen]
                bar = thresholds.at_agreement(score, right[:, chosen], AGREEMENT)
                found[f"{name}, {kind}: bar"] = bar
                found[f"{name}, {kind}: layers"] = thresholds.trade(
                    score, right[:, chosen], self.layers, self.full, bar
                )[1]
        return {k: round(v, 4) for k, v in found.items()}


def run(
    model: Decoder, folder: Path, work: Path, plan: Plan, report: Report, seconds: float, words: int = 8192
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train the part "exits" for `model` on the texts of `folder`: its tensors in bfloat16, and what came of it.

    `work` keeps the checkpoint. Raises Refused where there are no texts.
    """
    texts = Texts(folder, taps(model))
    trainer = Trainer(model, texts, words)
    result = train(trainer.network, trainer.loss, texts, plan, trainer.measure, work / "exits.pt", report, seconds)
    part = {k: v.detach().bfloat16() for k, v in trainer.network.state_dict().items()}
    part |= {"layers": torch.tensor(trainer.layers), "shortlist": trainer.shortlist.to(torch.int32)}
    return part, {"words": len(trainer.shortlist), "covered": round(trainer.covered, 4), **result}

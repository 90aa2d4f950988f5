"""Trains draft heads: head k says, from the model's last hidden state alone, what comes k tokens after the next one.

As Medusa-1 (arXiv 2401.10774, section 2.2): the model is frozen, a head is a residual block before the model's own
head, here cut to a shortlist. Shapes: n rows, E width, K heads, S words of the shortlist.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.models.decoder import Decoder
from llmlab.models.loading.progress import Report
from llmlab.training.corpus import Sequence
from llmlab.training.parts import Plan, Texts, train

HEADS = 4
ROWS = 512
"""Rows of a batch that are trained on: the head takes most of a step's time."""
FADE = 0.8
"""Weight of each head's loss against the one before it (Medusa, section 2.2.1)."""


class Heads(nn.Module):
    """x (n, E) the model's last state after its final norm; head k is x + silu(W_k x), zero at first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.Parameter(torch.zeros(heads, width, width))

    def forward(self, x: Tensor, k: int) -> Tensor:
        return x + F.silu(F.linear(x, self.blocks[k]))


def taps(model: Decoder) -> tuple[int, ...]:
    """The layers whose states the part is made from: the last."""
    return (len(model.layers),)


def run(
    model: Decoder, folder: Path, work: Path, plan: Plan, report: Report, seconds: float, words: int = 8192
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train the part "heads" for `model` on the texts of `folder`: its tensors in bfloat16, and what came of it.

    `work` keeps the checkpoint. Raises Refused where there are no texts.
    """
    texts, norm = Texts(folder, taps(model)), model.norm.weight.float().cpu()
    shortlist, covered = texts.shortlist(words, model.shape.vocab)
    head = model.embedding.head.rows(shortlist.to(model.device)).float().cpu().clone()
    net, rng = Heads(model.shape.width, HEADS), torch.Generator().manual_seed(plan.seed)

    def pairs(batch: list[Sequence], most: int = ROWS) -> list[tuple[Tensor, Tensor]]:
        """Per head: its logits (n, S) and the model's own where that word is decided (n, S)."""
        with torch.no_grad():
            states = [s.states[:, -1].float() for s in batch if s.states is not None]
            x = [F.rms_norm(h, norm.shape, norm, model.shape.eps) for h in states]
        out = []
        for k in range(HEADS):
            ahead, following = [], []
            for s, rows in zip(batch, x, strict=True):
                first, last = max(0, s.prompt - 2 - k), len(rows) - 1 - k
                if last > first:
                    ahead.append(rows[first:last])
                    following.append(rows[first + 1 + k : last + 1 + k])
            rows_of = torch.cat(ahead)
            chosen = torch.randperm(len(rows_of), generator=rng)[:most]
            with torch.no_grad():
                want = F.linear(torch.cat(following)[chosen], head).float()
            out.append((F.linear(net(rows_of[chosen], k), head).float(), want))
        return out

    def loss(batch: list[Sequence]) -> tuple[Tensor, dict[str, float]]:
        total, figures = torch.zeros(()), {}
        with torch.autocast("cpu", torch.bfloat16):
            for k, (got, want) in enumerate(pairs(batch)):
                total = total + FADE**k * -(torch.softmax(want, -1) * torch.log_softmax(got, -1)).sum(-1).mean()
                figures[f"agree {k + 1}"] = float((got.argmax(-1) == want.argmax(-1)).float().mean())
        return total, figures

    @torch.no_grad()
    def measure() -> dict[str, float]:
        hits: list[list[float]] = [[] for _ in range(HEADS)]
        for s in texts.kept:
            if len(s.tokens) > s.prompt + HEADS + 2:
                for k, (got, want) in enumerate(pairs([s])):
                    hits[k] += (got.argmax(-1) == want.argmax(-1)).float().tolist()
        return {f"agree {k + 1}": round(sum(h) / max(1, len(h)), 4) for k, h in enumerate(hits)}

    result = train(net, loss, texts, plan, measure, work / "heads.pt", report, seconds)
    part = {"blocks": net.blocks.detach().bfloat16(), "shortlist": shortlist.to(torch.int32)}
    return part, {"words": len(shortlist), "covered": round(covered, 4), **result}

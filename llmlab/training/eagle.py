"""Trains EAGLE's layer: to say, from a model's hidden states and its own guesses, what the model would say.

The layer learns the model's distribution over the shortlist at the next token and, fed with its own output, at those
after it (the training-time test of EAGLE-3, arXiv 2503.01840, section 3.2). It starts as a copy of the model's last
layer. Shapes: B texts, T tokens, E width, H heads, KV key-value heads, D head size, S words of the shortlist.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.models.decoder import Decoder
from llmlab.models.loading.progress import Report
from llmlab.training.corpus import Sequence
from llmlab.training.parts import Plan, Texts, padded, train

DEPTH = 3
"""Guesses in a row that the layer is trained for."""
ALONE = 0.75
"""Share of the training in which it learns the first guess alone, at a third of the cost: the others rest on it."""
NOISE = 0.1
"""Uniform noise on the fused states, of this amplitude: a few hundred thousand tokens are soon learned by heart (EAGLE,
arXiv 2401.15077, section 4.2, does the same)."""
FADE = 0.8
"""Weight of each guess's loss against the one before it."""


class Layer(nn.Module):
    """The layer with trainable weights, in the names and the order of rows that `FeatureDrafter` reads."""

    def __init__(self, model: Decoder, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = s = model.shape
        E, last = s.width, model.layers[-1]

        def weight(value: Tensor) -> nn.Parameter:
            return nn.Parameter(value.detach().float().cpu().clone())

        self.norm_taps = weight(torch.ones(len(taps), E))
        self.norm_state, self.norm_token, self.norm_out = (weight(torch.ones(E)) for _ in range(3))
        noise = torch.Generator().manual_seed(0)
        fuse = torch.randn(E, len(taps), E, generator=noise) * 0.02 / math.sqrt(len(taps))
        fuse[:, -1] += torch.eye(E)  # the last tap goes through unchanged at first
        join = torch.randn(E, 2, E, generator=noise) * 0.02
        join[:, 0] += torch.eye(E)
        self.fuse, self.join = weight(fuse.flatten(1)), weight(join.flatten(1))
        self.norm_attention, self.norm_feed = weight(last.norm_attention.weight), weight(last.norm_feed.weight)
        self.qkv, self.out = weight(last.qkv.dense()), weight(last.out.dense())
        self.gate_up, self.down = weight(last.gate_up.dense()), weight(last.down.dense())
        self.register_buffer("angles", model.angles.cpu(), persistent=False)

    def _norm(self, x: Tensor, w: Tensor) -> Tensor:
        return F.rms_norm(x.float(), w.shape[-1:], None, self.shape.eps) * w

    def fused(self, states: Tensor) -> Tensor:
        """(B, T, taps, E) to (B, T, E)."""
        return F.linear(self._norm(states, self.norm_taps).flatten(2), self.fuse)

    def forward(self, g: Tensor, tokens: Tensor, before: list[tuple[Tensor, Tensor]]) -> Tensor:
        """g and the embeddings of the following tokens (B, T, E) to the output (B, T, E).

        `before` holds the keys and values (B, H, T, D) of the earlier guesses' passes, the first made from the model's
        own states; those of this pass are added. Guess j of row t sees the model's states up to row t - j and, of the
        guesses on the way to it, rows t - j + 1 to t.
        """
        s = self.shape
        B, T, _ = g.shape
        H, KV, D = s.heads, s.kv_heads, s.head_size
        x = F.linear(torch.cat([self._norm(g, self.norm_state), self._norm(tokens, self.norm_token)], -1), self.join)
        qkv = F.linear(self._norm(x, self.norm_attention), self.qkv).float().view(B, T, H + 2 * KV, D).transpose(1, 2)
        angle = torch.arange(T)[:, None] * self.angles
        q, k = (_turned(part, angle) for part in (qkv[:, :H], qkv[:, H : H + KV]))
        k, v = (part.repeat_interleave(H // KV, 1) for part in (k, qkv[:, H + KV :]))
        before.append((k, v))
        j, q = len(before) - 1, q / math.sqrt(D)
        past = torch.ones(T, T, dtype=torch.bool).tril(-j)
        first_k, first_v = before[0]
        scores = (q @ first_k.transpose(-1, -2)).masked_fill(~past, -1e9)
        own = [(q * _later(ki, j - i)).sum(-1, keepdim=True) for i, (ki, _) in enumerate(before) if i]
        w = torch.softmax(torch.cat([scores, *own], -1), -1)
        y = w[..., :T] @ first_v
        for i, (_, vi) in enumerate(before):
            if i:
                y = y + w[..., T + i - 1 : T + i] * _later(vi, j - i)
        x = x + F.linear(y.transpose(1, 2).flatten(2), self.out)
        gate, up = F.linear(self._norm(x, self.norm_feed), self.gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down)

    def say(self, h: Tensor, head: Tensor) -> Tensor:
        """(n, E) to the shortlist's logits (n, S)."""
        return F.linear(self._norm(h, self.norm_out), head)


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    """x (B, heads, T, D) turned in pairs by angle (T, D/2), as `decoder` does."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def _later(x: Tensor, by: int) -> Tensor:
    """x (B, H, T, D) with row t - by at row t, zeros before it."""
    return x if by == 0 else F.pad(x, (0, 0, by, 0))[:, :, : x.shape[2]]


class Trainer:
    """Loss and measurement of a `Layer` on a model's own texts."""

    def __init__(self, model: Decoder, texts: Texts, taps: tuple[int, ...], words: int) -> None:
        self.network, self.texts, self.taps = Layer(model, taps), texts, taps
        self.shortlist, self.covered = texts.shortlist(words, model.shape.vocab)
        self.head = model.embedding.head.rows(self.shortlist.to(model.device)).float().cpu().clone()
        self.norm = model.norm.weight.float().cpu().clone()
        self.embed = model.embedding.lookup
        self.device = model.device
        self.depth = DEPTH

    def pace(self, done: float) -> None:
        self.depth = 1 if done < ALONE else DEPTH

    def guesses(self, batch: list[Sequence]) -> list[tuple[Tensor, Tensor]]:
        """Per guess: the layer's logits (n, S) and the model's own distribution over the shortlist (n, S)."""
        states = padded([s.states for s in batch if s.states is not None]).float()  # (B, T, taps, E)
        B, T = states.shape[:2]
        with torch.no_grad():
            tokens = padded([s.following for s in batch])
            e = self.embed(tokens.flatten().to(self.device)).float().cpu().view(B, T, -1)
            # Row t guesses what the model's state of row t + 1 says, which the last row of a text has not got.
            rows = [(i, t) for i, s in enumerate(batch) for t in range(max(0, s.prompt - 2), len(s.tokens) - 1)]
            at = torch.tensor(rows)
            said = F.rms_norm(states[at[:, 0], at[:, 1] + 1, -1], self.norm.shape, self.norm, self.network.shape.eps)
            with torch.autocast("cpu", torch.bfloat16):
                p = torch.softmax(F.linear(said, self.head), -1)
        out, before = [], []
        g = self.network.fused(states)
        if torch.is_grad_enabled():
            g = g + NOISE * g.detach().std() * (2 * torch.rand_like(g) - 1)
        for _ in range(self.depth):
            h = self.network(g, e, before)
            rows_of = h[at[:, 0], at[:, 1]]
            out.append((self.network.say(rows_of, self.head).float(), p))
            g = F.pad(h, (0, 0, 1, 0))[:, :T]  # the layer's output at row t - 1 stands for the model's state of row t
        return out

    def loss(self, batch: list[Sequence]) -> tuple[Tensor, dict[str, float]]:
        with torch.autocast("cpu", torch.bfloat16):
            guesses = self.guesses(batch)
        total, figures = torch.zeros(()), {}
        best = guesses[0][1].argmax(-1)
        for j, (got, p) in enumerate(guesses):
            # The cross entropy of p and softmax(got), without the whole log-softmax in memory.
            total = total + FADE**j * (got.logsumexp(-1) - (p * got).sum(-1)).mean()
            figures[f"agree {j + 1}"] = float((got.argmax(-1) == best).float().mean())
        return total, figures

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """On the kept texts: how often each guess is the model's best word, all in all and by kind."""
        self.depth = DEPTH
        right: dict[str, list[float]] = {}
        for s in self.texts.kept:
            if len(s.tokens) <= s.prompt:
                continue
            with torch.autocast("cpu", torch.bfloat16):
                guesses = self.guesses([s])
            for j, (got, p) in enumerate(guesses):
                hits = (got.argmax(-1) == p.argmax(-1)).float().tolist()
                right.setdefault(f"agree {j + 1}", []).extend(hits)
                if j == 0:
                    right.setdefault(f"agree 1, {s.kind}", []).extend(hits)
        return {k: round(sum(v) / len(v), 4) for k, v in sorted(right.items())}


def taps(model: Decoder) -> tuple[int, ...]:
    """The layers whose states the part is made from: the middle one and the last."""
    return (len(model.layers) // 2, len(model.layers))


def run(
    model: Decoder, folder: Path, work: Path, plan: Plan, report: Report, seconds: float, words: int = 8192
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train the part "eagle" for `model` on the texts of `folder`: its tensors in bfloat16, and what came of it.

    `work` keeps the checkpoint. Raises Refused where there are no texts.
    """
    texts = Texts(folder, taps(model))
    trainer = Trainer(model, texts, taps(model), words)
    result = train(
        trainer.network, trainer.loss, texts, plan, trainer.measure, work / "eagle.pt", report, seconds, trainer.pace
    )
    part = {k: v.detach().bfloat16() for k, v in trainer.network.state_dict().items()}
    part |= {"taps": torch.tensor(trainer.taps), "shortlist": trainer.shortlist.to(torch.int32)}
    return part, {"words": len(trainer.shortlist), "covered": round(trainer.covered, 4), **result}

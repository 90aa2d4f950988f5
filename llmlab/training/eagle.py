"""Trains EAGLE's layer: to say, from a model's hidden states and its own guesses, what the model would say.

The layer learns the model's distribution over the shortlist at the next token and, fed with its own output, at those
after it (the training-time test of EAGLE-3, arXiv 2503.01840, section 3.2). It starts as a copy of the model's last
layer. Shapes: B texts, T tokens, E width, H heads, KV key-value heads, D head size, S words of the shortlist.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.kv.memory import Memory
from llmlab.kv.rows import Rows
from llmlab.kv.storage import FunctionalStorage
from llmlab.models.batch import Batch, Span
from llmlab.models.block import Block
from llmlab.models.decoder import Decoder
from llmlab.models.feed_forward.gated import GatedFeedForward
from llmlab.models.formats.trainable import Trainable
from llmlab.models.loading.progress import Report
from llmlab.models.mixers.attention import Attention
from llmlab.models.norm import Norm
from llmlab.training.corpus import Sequence
from llmlab.training.parts import Plan, Texts, train

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
    """The layer with trainable weights: a `Block` as the model's own, before which states and tokens are joined."""

    def __init__(self, model: Decoder, taps: tuple[int, ...]) -> None:
        super().__init__()
        shape = replace(model.shape, layers=1, window=(None,))
        E, eps = shape.width, shape.eps
        last = model.layers[-1]
        matrices = {name: Trainable(linear.dense()) for name, linear in last.linears().items()}

        def norm(weight: Tensor) -> Norm:
            return Norm(weight.detach().float().cpu().clone(), eps, trainable=True)

        random = torch.Generator().manual_seed(0)
        fuse = torch.randn(E, len(taps), E, generator=random) * 0.02 / math.sqrt(len(taps))
        fuse[:, -1] += torch.eye(E)  # the last tap goes through unchanged at first
        join = torch.randn(E, 2, E, generator=random) * 0.02
        join[:, 0] += torch.eye(E)
        self.fuse, self.join = Trainable(fuse.flatten(1)), Trainable(join.flatten(1))
        self.norm_taps = nn.Parameter(torch.ones(len(taps), E))
        self.norm_state, self.norm_token, self.norm_out = (norm(torch.ones(E)) for _ in range(3))
        self.block = Block(
            0,
            norm(last.norm_mixer.weight),
            Attention(shape, None, matrices["qkv"], matrices["out"]),
            norm(last.norm_feed.weight),
            GatedFeedForward(matrices["gate_up"], matrices["down"]),
        )
        # In a list, because what it shares with the model is no part of the layer.
        rotary = copy.deepcopy(model.rotary).cpu()
        self._decoders = [Decoder(shape, model.embedding, [self.block], self.norm_out, rotary, "dense-fp32")]
        self._decoders[0].fast = False

    def tensors(self) -> dict[str, Tensor]:
        """Its weights in the names that `FeatureDrafter` reads."""
        linears = {"fuse": self.fuse, "join": self.join, **self.block.linears()}
        norms = {"attention": self.block.norm_mixer, "feed": self.block.norm_feed}
        norms |= {"state": self.norm_state, "token": self.norm_token, "out": self.norm_out}
        found = {"norm_taps": self.norm_taps, **{f"norm_{name}": n.weight for name, n in norms.items()}}
        return {name: t.detach() for name, t in (found | {n: m.dense() for n, m in linears.items()}).items()}

    def memories(self, count: int) -> list[Memory]:
        """Empty memories for `count` texts, through which gradients flow."""
        s = self._decoders[0].shape
        cpu = torch.device("cpu")
        return [
            Memory([Rows(FunctionalStorage(s.kv_heads, s.head_size, torch.float32, cpu), cpu)]) for _ in range(count)
        ]

    def fused(self, states: Tensor) -> Tensor:
        """(N, taps, E) to (N, E)."""
        x = F.rms_norm(states.float(), states.shape[-1:], None, self.norm_out.eps) * self.norm_taps
        return self.fuse(x.flatten(1))

    def forward(self, g: Tensor, tokens: Tensor, lengths: list[int], memories: list[Memory], j: int) -> Tensor:
        """Guess j: g and the embeddings of the following tokens (N, E), texts end to end, to the output (N, E).

        A text's memory holds the keys and values of its passes for earlier guesses, each of all of its rows. Guess j of
        row t sees those of the first pass, made from the model's own states, up to row t - j and, of the guesses on the
        way to it, row t - j + i of pass i.
        """
        spans, at = [], 0
        for T, memory in zip(lengths, memories, strict=True):
            spans.append(Span(at, at + T, memory, _seen(T, j)))
            at += T
        positions = torch.cat([torch.arange(T) for T in lengths])
        x = self.join(torch.cat([self.norm_state(g), self.norm_token(tokens)], -1))
        batch = Batch(torch.zeros(at, dtype=torch.long), positions, spans)
        return self._decoders[0].run_layers(x, batch)

    def logits(self, h: Tensor, head: Tensor) -> Tensor:
        """(n, E) to the shortlist's logits (n, S)."""
        return F.linear(self.norm_out(h), head)


def _seen(T: int, j: int) -> Tensor:
    """(T, (j + 1) T) bool: what guess j of each row sees of the passes 0 … j over T rows."""
    own = [torch.eye(T, dtype=torch.bool).roll(-(j - i), 1).tril() for i in range(1, j + 1)]
    return torch.cat([torch.ones(T, T, dtype=torch.bool).tril(-j), *own], 1)


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
        texts = [s for s in batch if s.states is not None]
        seen = [s.states for s in batch if s.states is not None]
        lengths = [len(states) for states in seen]
        states = torch.cat(seen).float()  # (N, taps, E)
        starts = [0, *itertools.accumulate(lengths)]
        with torch.no_grad():
            following = torch.cat([s.following for s in texts])
            e = self.embed(following.to(self.device)).float().cpu()
            # Row t guesses what the model's state of row t + 1 says, which the last row of a text has not got.
            rows = [
                a + t
                for a, s in zip(starts, texts, strict=False)
                for t in range(max(0, s.prompt - 2), len(s.tokens) - 1)
            ]
            at = torch.tensor(rows)
            last = F.rms_norm(states[at + 1, -1], self.norm.shape, self.norm, self.network.norm_out.eps)
            with torch.autocast("cpu", torch.bfloat16):
                p = torch.softmax(F.linear(last, self.head), -1)
        out, memories = [], self.network.memories(len(texts))
        g = self.network.fused(states)
        if torch.is_grad_enabled():
            g = g + NOISE * g.detach().std() * (2 * torch.rand_like(g) - 1)
        first = torch.zeros(len(states), dtype=torch.bool)
        first[starts[:-1]] = True
        for j in range(self.depth):
            h = self.network(g, e, lengths, memories, j)
            out.append((self.network.logits(h[at], self.head).float(), p))
            # The layer's output at row t - 1 stands for the model's state of row t.
            g = h.roll(1, 0).masked_fill(first[:, None], 0.0)
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
    part = {k: v.bfloat16() for k, v in trainer.network.tensors().items()}
    part |= {"taps": torch.tensor(trainer.taps), "shortlist": trainer.shortlist.to(torch.int32)}
    return part, {"words": len(trainer.shortlist), "covered": round(trainer.covered, 4), **result}

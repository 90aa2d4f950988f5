"""What a gain costs in quality, against the unmodified model: on the baseline's text, and on long fixed texts."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from llmlab.measure.excerpts import Excerpt, excerpts
from llmlab.measure.scoring import DECIDING, Forced, Unmodified, score
from llmlab.measure.statistics import Estimate, in_blocks
from llmlab.runtime.stack import Stack
from llmlab.runtime.tools import Tools

__all__ = ["DECIDING", "choices", "compare", "decides_itself", "first_difference", "measured", "score"]

BLOCK, SHORT_BLOCK = 32, 8
"""Neighbouring tokens that count as one draw for a standard error: of the long texts, and of a run's own."""
TEXT = "text"
RATIO = ("perplexity_ratio", "perplexity_ratio_error", "perplexity_ratio_freedom")

Measuring = Generator[tuple[int, int], None, dict[str, Any]]
"""Yields (tokens scored, of how many) after each pass, and returns the quality."""


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The first place where two token sequences differ, an end included; None when they are the same."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return None if len(a) == len(b) else min(len(a), len(b))


def surprise(logp: Tensor, tokens: Sequence[int]) -> Tensor:
    """(n,): minus the log-probability of each of `tokens` (n,) under logp (n, V), in nats."""
    return -logp.gather(1, torch.tensor(list(tokens))[:, None])[:, 0]


def margins(p: Tensor) -> Tensor:
    """(n,): how far apart in nats the two best tokens are under log-probabilities p (n, V)."""
    best = p.topk(2).values
    return best[:, 0] - best[:, 1]


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """(n,): KL(p ‖ q) in nats, of the unmodified model's log-probabilities p (n, V) and the stack's q (n, V)."""
    return (p.exp() * (p - q)).nan_to_num(0.0).sum(-1).clamp_min(0)


def choices(p: Tensor, q: Tensor | None, tokens: Sequence[int]) -> tuple[float, float | None]:
    """(top-1 agreement, mean KL in nats) of a stack with the unmodified model on one text.

    p (n, V): the unmodified model's log-probabilities. q (n, V): the stack's on the same text; None where what the
    stack chooses is not a function of the text: then `tokens` (n,) are its own choices, and there is no KL.
    """
    if q is None:
        return float((p.argmax(-1) == torch.tensor(list(tokens))).float().mean()), None
    return float((p.argmax(-1) == q.argmax(-1)).float().mean()), float(divergence(p, q).mean())


def decides_itself(stack: Stack) -> bool:
    """Whether a rule of acceptance, rather than the probabilities, may choose another token than the model would."""
    acceptor = stack.one("Acceptor")
    return acceptor is not None and not acceptor.lossless()


def changes_probabilities(stack: Stack) -> bool:
    """Whether any member makes the probabilities of a given text others than the unmodified model's."""
    return not stack.without(*DECIDING).lossless()


@dataclass
class Scores:
    """Per scored token of a piece of text: surprise under both models, KL, whether both prefer the same token, and how
    far apart the unmodified model's two best are. Each a list of (n,), one per pass."""

    plain: list[Tensor] = field(default_factory=list)
    changed: list[Tensor] = field(default_factory=list)
    kl: list[Tensor] = field(default_factory=list)
    same: list[Tensor] = field(default_factory=list)
    margin: list[Tensor] = field(default_factory=list)

    def add(self, p: Tensor, q: Tensor, tokens: Sequence[int]) -> None:
        self.plain.append(surprise(p, tokens))
        self.changed.append(surprise(q, tokens))
        self.kl.append(divergence(p, q))
        self.same.append((p.argmax(-1) == q.argmax(-1)).float())
        self.margin.append(margins(p))

    def all(self, name: str) -> Tensor:
        """(n,) of the whole piece."""
        found: list[Tensor] = getattr(self, name)
        return torch.cat(found)


def _told(e: Estimate) -> float | None:
    """A standard error as JSON: None where there is too little to tell."""
    return e.error if math.isfinite(e.error) else None


def figures(pieces: Sequence[Scores]) -> dict[str, Any]:
    """Perplexities [plain, changed], their ratio, KL and agreement over pieces of text, with standard errors.

    The ratio's error is that of the mean difference in surprise, token by token, in blocks; times the ratio, because it
    is the exponential of that mean.
    """
    plain, changed = [[s.all(side).double() for s in pieces] for side in ("plain", "changed")]
    ratio = in_blocks([q - p for p, q in zip(plain, changed, strict=True)], BLOCK)
    kl = in_blocks([s.all("kl") for s in pieces], BLOCK)
    factor, error = math.exp(ratio.value), _told(ratio)
    return {
        "tokens": sum(len(p) for p in plain),
        "perplexity": [float(torch.cat(side).mean().exp()) for side in (plain, changed)],
        "perplexity_ratio": factor,
        "perplexity_ratio_error": None if error is None else factor * error,
        "perplexity_ratio_freedom": None if error is None else ratio.freedom,
        "kl": kl.value,
        "kl_error": _told(kl),
        "top1_agreement": float(torch.cat([s.all("same") for s in pieces]).mean()),
    }


def unmeasured(baseline: Sequence[int], text: Sequence[int], withheld: str) -> dict[str, Any]:
    """What is known from the two texts alone, and why there is no more: see `measured`."""
    differs = first_difference(baseline, text)
    known: dict[str, Any] = {"identical": differs is None, "first_difference": differs, "margin": None}
    known |= dict.fromkeys(("kl_mean", "kl_error", "top1_agreement"))
    known |= dict.fromkeys(RATIO)
    return known | {"kl_text": None, "kl_text_error": None, "scored_tokens": 0, "kinds": {}, "withheld": withheld}


@dataclass(frozen=True)
class Sides:
    """What is compared: the models without and with weight transforms, and the stack."""

    plain: Any
    changed: Any
    stack: Stack
    tools: Tools | None = None

    def scores(self, piece: Excerpt, remember: bool) -> Generator[int, None, Scores]:
        """Yields after each pass how many tokens of the piece have been scored."""
        unmodified = Unmodified(self.plain, piece.tokens, piece.start, remember)
        forced = Forced(self.changed, self.stack, piece.tokens, piece.start, self.tools)
        for side in (unmodified, forced):
            for _ in side.context():
                yield 0
        found = Scores()
        while not forced.over:
            at, started = forced.at, perf_counter()
            q = forced.next()
            spent = perf_counter() - started
            reading = unmodified.read(len(q))
            try:
                while True:
                    next(reading)
                    yield at - piece.start
            except StopIteration as end:
                p = end.value
            started = perf_counter()
            found.add(p, q, piece.tokens[at : forced.at])
            forced.adapt(spent + perf_counter() - started)
            yield forced.at - piece.start
        return found


def measured(
    sides: Sides,
    prompt: Sequence[int],
    baseline: Sequence[int],
    text: Sequence[int],
    tokenizer: Any = None,
    own: str | None = None,
) -> Measuring:
    """Quality of a stack's run, of `text`, against the baseline's; one pass is computed between two yields.

    `identical, first_difference, margin` speak of the texts (margin: how far apart the baseline's two best tokens were
    there, in nats). `kl_mean` and `top1_agreement` force the baseline's text through both. `perplexity_ratio` (changed
    over plain), `kl_text` and `kinds` (the same per kind of text) are of long texts, the project's or the visitor's
    `own`, `scored_tokens` of them, scored where the stack acts; absent without a tokenizer. Each `…_error` is a
    standard error, `perplexity_ratio_freedom` its degrees of freedom. `withheld` says what was not measured and why:
    "lossless" (nothing changes a probability: KL 0 and ratio 1 by construction), "acceptance" (a lossy rule of
    acceptance chooses, so that no probability of a given text tells of it; `top1_agreement` is how often the unmodified
    model would have chosen the tokens of the stack's own text), "idle" (the stack does not act on a text of that
    length), "unfinished", or "".
    """
    stack, differs = sides.stack, first_difference(baseline, text)
    result = unmeasured(baseline, text, "")
    if decides_itself(stack):
        return (yield from _judged_by_its_own_text(sides, prompt, baseline, text, result | {"withheld": "acceptance"}))
    if not changes_probabilities(stack):
        same = {"kl_mean": 0.0, "top1_agreement": 1.0, "perplexity_ratio": 1.0, "withheld": "lossless"}
        if differs is None or differs >= len(baseline):
            return result | same
        margin = yield from _margin(sides, prompt, baseline, differs)
        return result | same | {"margin": margin}
    pieces = [] if tokenizer is None else excerpts(tokenizer, sides.plain.context, stack, own)
    total, done = len(baseline) + sum(p.scored for p in pieces), 0
    found: dict[str, list[Scores]] = {}
    for piece in [Excerpt(TEXT, (*prompt, *baseline), len(prompt)), *pieces]:
        scoring = sides.scores(piece, remember=own is None and piece.kind != TEXT)
        try:
            while True:
                yield done + next(scoring), total
        except StopIteration as end:
            found.setdefault(piece.kind, []).append(end.value)
        done += piece.scored
    (run,) = found.pop(TEXT)
    if differs is not None and differs < len(baseline):
        result["margin"] = float(run.all("margin")[differs])
    kl = in_blocks([run.all("kl")], SHORT_BLOCK)
    result |= {"kl_mean": kl.value, "kl_error": _told(kl), "top1_agreement": float(run.all("same").mean())}
    if not found:
        return result | {"withheld": "" if tokenizer is None else "idle"}
    whole = figures([s for scores in found.values() for s in scores])
    for name in ("perplexity", *RATIO):
        result[name] = whole[name]
    result |= {"kl_text": whole["kl"], "kl_text_error": whole["kl_error"], "scored_tokens": whole["tokens"]}
    return result | {"kinds": {kind: figures(scores) for kind, scores in found.items()}}


def _plainly(sides: Sides, tokens: Sequence[int], start: int) -> Generator[tuple[int, int], None, Tensor]:
    """Log-probabilities (n, V) of the unmodified model for the tokens from `start` on."""
    forced, out = Forced(sides.plain, Stack(), tokens, start), []
    for _ in forced.context():
        yield 0, len(tokens) - start
    for logp in forced.passes():
        out.append(logp)
        yield forced.at - start, len(tokens) - start
    return torch.cat(out)


def _margin(
    sides: Sides, prompt: Sequence[int], baseline: Sequence[int], at: int
) -> Generator[tuple[int, int], None, float]:
    p = yield from _plainly(sides, [*prompt, *baseline[: at + 1]], len(prompt))
    return float(margins(p)[at])


def _judged_by_its_own_text(
    sides: Sides, prompt: Sequence[int], baseline: Sequence[int], text: Sequence[int], result: dict[str, Any]
) -> Measuring:
    p = yield from _plainly(sides, [*prompt, *text], len(prompt))
    result["top1_agreement"], _ = choices(p, None, text)
    differs = result["first_difference"]
    if differs is not None and differs < min(len(baseline), len(text)):  # up to there both texts are the same
        result["margin"] = float(margins(p)[differs])
    return result


def compare(
    plain: Any,
    changed: Any,
    stack: Stack,
    prompt: Sequence[int],
    baseline: Sequence[int],
    text: Sequence[int],
    tokenizer: Any = None,
    tools: Tools | None = None,
    own: str | None = None,
) -> dict[str, Any]:
    """As `measured`, at one go. `plain` and `changed`: the models without and with the stack's weight transforms."""
    measuring = measured(Sides(plain, changed, stack, tools), prompt, baseline, text, tokenizer, own)
    while True:
        try:
            next(measuring)
        except StopIteration as end:
            found: dict[str, Any] = end.value
            return found

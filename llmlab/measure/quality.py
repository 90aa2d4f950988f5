"""What a gain costs in quality, measured against the unmodified model on the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from llmlab.assets import ASSETS
from llmlab.models.capabilities import Capability
from llmlab.runtime.draft import Draft
from llmlab.runtime.roles import ForwardPatch
from llmlab.runtime.stack import Stack
from llmlab.runtime.tools import Tools

STRIDE = 8
"""Tokens scored per pass where the stack allows several."""
DECIDING = ("Drafter", "Acceptor")
"""Roles that choose among tokens and do not change the probabilities of a given text."""
EVALUATED = 256
CONTEXT = 32
"""The evaluation text: how many of its tokens are read, and how many of those are context only."""


@torch.inference_mode()
def score(model: Any, stack: Stack, tokens: Sequence[int], start: int, tools: Tools | None = None) -> Tensor:
    """Log-probabilities (n, V), n = len(tokens) - start, of every token from `start` on as the stack computes them.

    The tokens are forced, so that two stacks answer the same questions. Evictions, exits and changed weights take
    effect as they would in a run; drafts, and rules that accept them, have nothing to decide.
    """
    stack = stack.without(*DECIDING)
    session = stack.session(model, tools, exact_top=0)
    one = any(Capability.MANY_ROWS in t.disabled() for t in stack)
    out = []
    with ExitStack() as undo:
        for patch in stack:
            if isinstance(patch, ForwardPatch):
                undo.enter_context(patch.installed(session))
        for _ in session.prefill(tokens[:start]):
            pass
        at = start
        while at < len(tokens):
            n = 1 if one else min(STRIDE, len(tokens) - at, session.max_draft_depth() + 1)
            draft = Draft.chain(tokens[at : at + n - 1])
            out.append(torch.log_softmax(session.forward(draft).logits.float(), -1).cpu())
            session.commit(range(n - 1), tokens[at + n - 1], draft)
            at += n
    return torch.cat(out)


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The first place where two token sequences differ, an end included; None when they are the same."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return None if len(a) == len(b) else min(len(a), len(b))


def perplexity(logp: Tensor, tokens: Sequence[int]) -> float:
    """exp of the mean surprise of `tokens` (n,) under logp (n, V)."""
    return float(torch.exp(-logp.gather(1, torch.tensor(list(tokens))[:, None]).mean()))


def choices(p: Tensor, q: Tensor | None, tokens: Sequence[int]) -> tuple[float, float | None]:
    """(top-1 agreement, mean KL in nats) of a stack with the unmodified model on one text.

    p (n, V): the unmodified model's log-probabilities. q (n, V): the stack's on the same text; None where what the
    stack chooses is not a function of the text: then `tokens` (n,) are its own choices, and there is no KL.
    """
    if q is None:
        return float((p.argmax(-1) == torch.tensor(list(tokens))).float().mean()), None
    kl = (p.exp() * (p - q)).nan_to_num(0.0).sum(-1).clamp_min(0).mean()
    return float((p.argmax(-1) == q.argmax(-1)).float().mean()), float(kl)


def decides_itself(stack: Stack) -> bool:
    """Whether a rule of acceptance, rather than the probabilities, may choose another token than the model would."""
    acceptor = stack.one("Acceptor")
    return acceptor is not None and not acceptor.lossless()


def compare(
    plain: Any,
    changed: Any,
    stack: Stack,
    prompt: Sequence[int],
    baseline: Sequence[int],
    text: Sequence[int],
    tokenizer: Any = None,
    tools: Tools | None = None,
) -> dict[str, Any]:
    """Quality of a stack's run against the baseline's. `plain` and `changed`: the models without and with transforms.

    `identical, first_difference, margin` speak of the texts (margin: how far apart the baseline's two best tokens were
    there, in nats). `kl_mean` and `top1_agreement` force the baseline's text through both; under a lossy rule of
    acceptance, which depends on drafts, top-1 agreement is how often the unmodified model would have chosen the tokens
    of the stack's own text, and there is no `kl_mean`. `perplexity_ratio` is on the project's own evaluation text,
    changed over plain; None without a tokenizer.
    """
    differs = first_difference(baseline, text)
    result: dict[str, Any] = {"identical": differs is None, "first_difference": differs, "margin": None}
    whole = [*prompt, *baseline]
    p = score(plain, Stack(), whole, len(prompt))
    if differs is not None and differs < len(p):
        best = p[differs].topk(2).values
        result["margin"] = float(best[0] - best[1])
    if decides_itself(stack):
        own = p if differs is None else score(plain, Stack(), [*prompt, *text], len(prompt))
        result["top1_agreement"], result["kl_mean"] = choices(own, None, text)
    else:
        q = score(changed, stack, whole, len(prompt), tools)
        result["top1_agreement"], result["kl_mean"] = choices(p, q, baseline)
    result["perplexity_ratio"] = None
    if tokenizer is not None:
        text_ = (ASSETS / "texts" / "evaluation.txt").read_text(encoding="utf-8")
        ids = tokenizer(text_, add_special_tokens=False)["input_ids"][: min(EVALUATED, plain.context)]
        held = [score(m, s, ids, CONTEXT, tools) for m, s in ((plain, Stack()), (changed, stack))]
        result["perplexity"] = [perplexity(h, ids[CONTEXT:]) for h in held]
        result["perplexity_ratio"] = result["perplexity"][1] / result["perplexity"][0]
    return result

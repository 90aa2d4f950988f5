"""Word problems put to a model: examples in one of three styles before each, many problems decoded together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from llmlab.errors import Refused
from llmlab.runtime.batched import Text, generate_batch
from llmlab.studies.support.cascades.models import flops
from llmlab.studies.support.cascades.problems import KINDS, Problem, Reading, read, shots

NEW = {"direct": 8, "cot": 72, "pot": 40}
"""Tokens that an answer may take in each style; worked solutions of two steps need about 50."""
TOGETHER = 32
NEAR = 32
"""Logits that are exact where log-probabilities are taken; in the low-bit formats the others are near."""


@dataclass(frozen=True)
class Reply:
    """One answer to one problem (its place in the list that was asked).

    `likely`: its tokens' mean log-probability; `least`: that of its least likely token. `seconds`: its part of the time
    that all took together, by its tokens.
    """

    problem: int
    text: str
    reading: Reading
    prompt_tokens: int
    new_tokens: int
    likely: float
    least: float
    flops: float
    seconds: float


def ask(
    model: Any,
    tokenizer: Any,
    asked: Sequence[Problem],
    style: str,
    progress: Callable[[int, int], None],
    examples: int = 5,
    samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Reply]:
    """`samples` replies to each problem, in the problems' order, after `examples` of the problem's own kind.

    Examples are read once for all problems of a kind; FLOPs are those of the question and the answer, which attend
    at them. Raises Refused where they do not fit the model's context.
    """
    found: list[Reply] = []
    total = len(asked) * samples
    for kind in KINDS:
        here = [i for i, p in enumerate(asked) if p.kind == kind]
        if here:
            prefix = _prefix(tokenizer, style, shots(kind, examples, seed))
            texts = list(_texts(tokenizer, asked, here, prefix, style, samples, temperature))
            longest = max(t.prompt + t.limit for t in texts)
            if longest > model.context:
                raise Refused("These problems", f"take {longest} tokens with their examples", "Give fewer examples")
            tell = partial(_tell, progress, len(found), total)
            found += _replies(model, tokenizer, asked, style, texts, prefix, seed, tell)
    return sorted(found, key=lambda r: r.problem)


def _tell(progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _prefix(tokenizer: Any, style: str, examples: Sequence[Problem]) -> list[int]:
    text = "".join(f"{_question(p)} {p.solution(style)}\n\n" for p in examples)
    return list(tokenizer(text)["input_ids"])


def _question(problem: Problem) -> str:
    return f"Q: {problem.question}\nA:"


def _texts(
    tokenizer: Any, asked: Sequence[Problem], here: Sequence[int], prefix: list[int], style: str, samples: int, T: float
) -> Iterator[Text]:
    for i in here:
        ids = list(tokenizer(_question(asked[i]), add_special_tokens=False)["input_ids"])
        for _ in range(samples):
            yield Text([*prefix, *ids], len(prefix) + len(ids), NEW[style], T, i)


def _replies(
    model: Any,
    tokenizer: Any,
    asked: Sequence[Problem],
    style: str,
    texts: list[Text],
    prefix: list[int],
    seed: int,
    progress: Callable[[int], None],
) -> list[Reply]:
    start, ended = perf_counter(), []
    lines, top = new_lines(tokenizer), len(model.layers)
    for text in generate_batch(model, texts, lines, min(TOGETHER, len(texts)), (top,), seed, prefix):
        ended.append((text, _chances(model, text)))
        text.states = []
        progress(len(ended))
    each = (perf_counter() - start) / sum(len(t.tokens) - len(prefix) for t in texts)
    found = []
    for text, logp in ended:
        written = tokenizer.decode(text.answer, skip_special_tokens=True)
        n = len(text.tokens) - len(prefix)
        found.append(
            Reply(
                problem=text.tag,
                text=written.strip(),
                reading=read(style, written, asked[text.tag].answer),
                prompt_tokens=text.prompt,
                new_tokens=len(text.answer),
                likely=float(logp.mean()),
                least=float(logp.min()),
                flops=flops(model, len(prefix), n - 1, len(text.answer)),
                seconds=n * each,
            )
        )
    return found


@torch.inference_mode()
def _chances(model: Any, text: Text) -> Tensor:
    """The log-probability of each of an answer's tokens, from the states that it left."""
    h = text.seen[-len(text.answer) :, 0]
    logp = torch.log_softmax(model.head(h, NEAR).float(), -1)
    return logp.gather(1, torch.tensor(text.answer, device=logp.device)[:, None])[:, 0]


def new_lines(tokenizer: Any) -> frozenset[int]:
    """The tokens that end a line: every answer is one. Raises Refused for a vocabulary without."""
    found = frozenset(i for t, i in tokenizer.get_vocab().items() if "\n" in t or "Ċ" in t or t == "<0x0A>")
    if not found:
        raise Refused("This vocabulary", "has no token for a new line, at which answers end", "Choose another model")
    return found | {t for t in [tokenizer.eos_token_id] if t is not None}


def features(reply: Reply) -> list[float]:
    """A scorer's features, which need no knowledge of the truth."""
    answer = reply.reading.answer
    size = 0.0 if answer is None else min(6.0, len(str(abs(answer.numerator))))
    whole = answer is not None and answer.denominator == 1 and answer >= 0
    return [reply.likely, reply.least, float(reply.new_tokens), float(answer is not None), float(whole), size]

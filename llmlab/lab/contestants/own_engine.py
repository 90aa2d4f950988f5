"""The lab's own engine as a contestant of `llmlab.measure.benchmark`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmlab.kv.memory import Memory
from llmlab.lab.experiment import Lab, Prepared
from llmlab.lab.settings import Settings
from llmlab.measure.benchmark import SHALLOW
from llmlab.measure.hardware import use_threads
from llmlab.models.batch import Batch, Span
from llmlab.models.kernels.topk import argmax
from llmlab.runtime.draft import Draft
from llmlab.runtime.events import Committed
from llmlab.runtime.generate import generate
from llmlab.runtime.session import Session


class Ours:
    """The lab's engine as a run uses it: the one loop, with its events and meters."""

    name = "llmlab"
    version = torch.__version__

    def __init__(
        self, ref: str, threads: int = 0, weights: str = "int4", device: str = "auto", copies: str = "auto"
    ) -> None:
        use_threads(threads)
        self.lab = Lab()
        self.loaded = self.lab.model_cache.load(ref, weights, device, SHALLOW, copies=copies == "auto")
        self.model = self.loaded.model
        self.weights = weights

    def ready(self, tokens: Sequence[int]) -> None:
        self.prompt = list(tokens)
        self.sessions = {exact: Session(self.model, exact=exact) for exact in (True, False)}
        for session in self.sessions.values():
            for _ in session.prefill(self.prompt):
                pass
            session.forward()

    def decode(self, count: int) -> float:
        commits = [e for e in generate(self.model, self.prompt, count + 1) if isinstance(e, Committed)]
        return (commits[-1].t - commits[0].t) / count

    def _verify(self, tokens: Sequence[int], count: int, exact: bool) -> float:
        session, draft, total = self.sessions[exact], Draft.chain(tokens[1:]), 0.0
        for _ in range(count):
            start = time.perf_counter()
            argmax(session.forward(draft).logits)
            session.take_back()
            total += time.perf_counter() - start
        return total / count

    def verify(self, tokens: Sequence[int], count: int) -> float:
        return self._verify(tokens, count, True)

    def verify_fast(self, tokens: Sequence[int], count: int) -> float:
        return self._verify(tokens, count, False)

    def prefill(self, tokens: Sequence[int]) -> float:
        start = time.perf_counter()
        next(e for e in generate(self.model, tokens, 1) if isinstance(e, Committed))
        return time.perf_counter() - start

    @torch.inference_mode()
    def batch(self, prompts: Sequence[Sequence[int]], count: int) -> float | None:
        if not hasattr(self.model, "shape"):
            return None  # a wrapped model takes one sequence at a time
        memories = [self.model.memory() for _ in prompts]
        Memory.pooled(memories)
        best = []
        for prompt, memory in zip(prompts, memories, strict=True):
            best += argmax(self._step([list(prompt)], [memory], 0)[-1:])
        start = time.perf_counter()
        for i in range(count):
            best = argmax(self._step([[t] for t in best], memories, len(prompts[0]) + i))
        return (time.perf_counter() - start) / count

    def _step(self, parts: Sequence[list[int]], memories: Sequence[Any], at: int) -> torch.Tensor:
        n = len(parts[0])
        device = self.model.device
        spans = [Span(i * n, (i + 1) * n, memory, first=at) for i, memory in enumerate(memories)]
        positions = torch.arange(at, at + n).repeat(len(parts)).to(device)
        batch = Batch(torch.tensor(parts).flatten().to(device), positions, spans)
        logits: Tensor = self.model.forward(batch, last=len(parts) if n == 1 else 1, best=32).logits
        return logits

    def events(self, count: int) -> float:
        """Time per token of a whole run: text, events and meters on."""
        settings = Settings(self.loaded.name, "Count from 1 to 500.", max_new_tokens=count + 1, weights=self.weights)
        prepared = Prepared(settings, self.loaded, self.prompt, str(self.model.device))
        commits = [e for e in self.lab.run(prepared) if isinstance(e, Committed)]
        return (commits[-1].t - commits[0].t) / max(1, len(commits) - 1)

    @torch.inference_mode()
    def bare(self, count: int) -> float:
        """Time per token of the same forward in a loop that does nothing else."""
        session = Session(self.model)
        for _ in session.prefill(self.prompt):
            pass
        memory, token, at = session.memory, self.prompt[-1], len(self.prompt) - 1
        for i in range(count + 1):
            if i == 1:
                start = time.perf_counter()
            span = Span(0, 1, memory, first=at + i)
            batch = Batch(torch.tensor([token]), torch.tensor([at + i]), [span], True)
            (token,) = argmax(self.model.forward(batch, None, 1, 32).logits)
        return (time.perf_counter() - start) / count


class OursLean(Ours):
    """The same without any copy of the weights."""

    name = "llmlab, no copies"

    def __init__(self, ref: str, threads: int = 0) -> None:
        super().__init__(ref, threads, copies="none")

"""llama.cpp through llama-cpp-python's low-level interface: no more work per token than llama.cpp's own programs do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import llama_cpp as lib
import numpy as np

LONGEST = 4608
SEQUENCES = 32


class LlamaCpp:
    """A GGUF file on the CPU with llama.cpp's defaults but for the thread count."""

    name = "llama.cpp"

    def __init__(self, path: str, threads: int) -> None:
        self.version = lib.__version__
        self.quiet = lib.llama_log_callback(lambda level, text, data: None)
        lib.llama_log_set(self.quiet, None)
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        if not self.model:
            raise RuntimeError("llama.cpp cannot load this file")
        self.context = self._context(LONGEST, 1, threads)
        self.many = self._context(SEQUENCES * 128, SEQUENCES, threads)
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))

    def _context(self, rows: int, sequences: int, threads: int) -> Any:
        p = lib.llama_context_default_params()
        p.n_ctx, p.n_seq_max, p.n_threads, p.n_threads_batch = rows, sequences, threads, threads
        p.n_batch = max(p.n_batch, 512)
        p.no_perf = True
        context = lib.llama_init_from_model(self.model, p)
        if not context:
            raise RuntimeError("llama.cpp cannot make a context")
        return context

    def _forward(
        self,
        context: Any,
        tokens: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[int],
        heads: Sequence[int],
    ) -> list[int]:
        """Tokens with their positions and sequences through the model; the best next token after each of `heads`."""
        n = len(tokens)
        batch = lib.llama_batch_init(n, 0, 1)
        batch.n_tokens = n
        wanted = set(heads)
        for i in range(n):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = tokens[i], positions[i], 1
            batch.seq_id[i][0], batch.logits[i] = sequences[i], i in wanted
        if lib.llama_decode(context, batch):
            raise RuntimeError("llama.cpp cannot decode this batch")
        best = [int(np.ctypeslib.as_array(lib.llama_get_logits_ith(context, i), (self.vocab,)).argmax()) for i in heads]
        lib.llama_batch_free(batch)
        return best

    def _read(self, tokens: Sequence[int]) -> int:
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        best = [0]
        for a in range(0, len(tokens), 512):
            part = tokens[a : a + 512]
            last = [len(part) - 1] if a + 512 >= len(tokens) else []
            best = self._forward(self.context, part, range(a, a + len(part)), [0] * len(part), last)
        return best[0]

    def _cut(self, rows: int) -> None:
        lib.llama_memory_seq_rm(lib.llama_get_memory(self.context), 0, rows, -1)

    def ready(self, tokens: Sequence[int]) -> None:
        self.depth, self.next = len(tokens), self._read(tokens)

    def decode(self, count: int) -> float:
        token = self.next
        start = time.perf_counter()
        for i in range(count):
            (token,) = self._forward(self.context, [token], [self.depth + i], [0], [0])
        seconds = (time.perf_counter() - start) / count
        self._cut(self.depth)
        return seconds

    def verify(self, tokens: Sequence[int], count: int) -> float:
        n, total = len(tokens), 0.0
        for _ in range(count):
            start = time.perf_counter()
            self._forward(self.context, tokens, range(self.depth, self.depth + n), [0] * n, range(n))
            self._cut(self.depth)
            total += time.perf_counter() - start
        return total / count

    def prefill(self, tokens: Sequence[int]) -> float:
        start = time.perf_counter()
        self._read(tokens)
        return time.perf_counter() - start

    def batch(self, prompts: Sequence[Sequence[int]], count: int) -> float:
        memory = lib.llama_get_memory(self.many)
        lib.llama_memory_clear(memory, True)
        n, B = len(prompts[0]), len(prompts)
        best = []
        for s, prompt in enumerate(prompts):
            best += self._forward(self.many, prompt, range(n), [s] * n, [n - 1])
        start = time.perf_counter()
        for i in range(count):
            best = self._forward(self.many, best, [n + i] * B, range(B), range(B))
        return (time.perf_counter() - start) / count


ENGINE = LlamaCpp

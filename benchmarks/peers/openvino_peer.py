"""OpenVINO GenAI on the same GGUF file, through its own pipeline and its own clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as lib


class OpenVino:
    """An LLMPipeline on the CPU with its defaults but for the thread count.

    The pipeline keeps the prefixes that it has read, so that a prompt read twice is not read the second time.
    `prefill` therefore wants a new first token each time.
    """

    name = "OpenVINO GenAI"

    def __init__(self, path: str, threads: int) -> None:
        self.version = lib.__version__
        self.pipe = lib.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)

    def _generate(self, prompts: Sequence[Sequence[int]], count: int) -> Any:
        config = lib.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
        ids = np.array([list(p) for p in prompts], dtype=np.int64)
        inputs = lib.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        return self.pipe.generate(inputs, config).perf_metrics

    def ready(self, tokens: Sequence[int]) -> None:
        self.prompt = tokens
        self._generate([tokens], 2)

    def decode(self, count: int) -> float:
        return self._generate([self.prompt], count + 1).get_tpot().mean / 1e3

    def verify(self, tokens: Sequence[int], count: int) -> float | None:
        return None  # its interface does not offer a pass over several given tokens

    def prefill(self, tokens: Sequence[int]) -> float:
        return self._generate([tokens], 1).get_ttft().mean / 1e3

    def batch(self, prompts: Sequence[Sequence[int]], count: int) -> float:
        # Its time per output token counts the tokens of all sequences.
        return self._generate(prompts, count + 1).get_tpot().mean / 1e3 * len(prompts)


ENGINE = OpenVino

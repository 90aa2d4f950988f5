"""Evicting rows is hiding them: the oracle is transformers with a mask, or a memory built afresh at every step."""

from __future__ import annotations

import pytest

from llmlab.runtime.technique import make
from tests import tiny
from tests.laws import laws

TOKENS = tiny.prompts(1, 60, seed=8)[0]
CLOSE = 1e-4


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("sinks", [0, 2])
def test_streaming_llm_without_repositioning(family: str, sinks: int) -> None:
    policy = make("streaming-llm", budget=12, every=5, sinks=sinks, reposition=False)
    gap, dropped = laws.hidden_rows(tiny.decoder(family), tiny.reference(family), policy, TOKENS)
    assert dropped > 50
    assert gap < CLOSE


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("recent", [0.0, 0.5])
def test_h2o(family: str, recent: float) -> None:
    policy = make("h2o", budget=12, every=5, recent=recent)
    gap, dropped = laws.hidden_rows(tiny.decoder(family), tiny.reference(family), policy, TOKENS)
    assert dropped > 50
    assert gap < CLOSE


@pytest.mark.parametrize("family", ["llama", "llama-yarn", "qwen3"])
@pytest.mark.parametrize("sinks", [0, 3])
def test_streaming_llm_with_repositioning(family: str, sinks: int) -> None:
    policy = make("streaming-llm", budget=12, every=5, sinks=sinks, reposition=True)
    assert laws.repositioned_rows(tiny.decoder(family), policy, TOKENS) < CLOSE

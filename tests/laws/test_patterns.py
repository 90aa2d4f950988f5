"""Attention patterns: reading only the rows that a query may see is the same as masking the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmlab.runtime.roles import AttentionPattern
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make, registry
from tests import tiny
from tests.laws import laws

PATTERNS = [id for id, cls in registry().items() if cls.role == "AttentionPattern"]
TOKENS = tiny.prompts(1, 50, seed=8)[0]


def along(stack: Stack, tokens: list[int] = TOKENS) -> Tensor:
    """The logits (n, V) after every token from the tenth on, one pass each."""
    session = stack.session(tiny.decoder("llama"))
    list(session.prefill(tokens[:10]))
    out = []
    for token in [*tokens[10:], 0]:
        out.append(session.forward().logits[0])
        session.commit((), token)
    return torch.stack(out)


def masked(pattern: AttentionPattern, tokens: list[int]) -> list[Tensor]:
    """Per layer (H, n, n) bool: what each token may see, written out from `visible` alone."""
    n, model = len(tokens), tiny.decoder("llama")
    q, k, head = torch.arange(n)[None, :, None], torch.arange(n)[None, None, :], torch.arange(2)[:, None, None]
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    seen = [pattern.visible(q, k, layer, head) & causal for layer in range(len(model.layers))]
    return [m.expand(2, n, n).repeat_interleave(2, 0) for m in seen]


@pytest.mark.parametrize("id", PATTERNS)
def test_a_pattern_is_the_mask_that_it_says(id: str) -> None:
    """Against transformers with the mask put in by hand, prompt and decoding."""
    pattern = laws.sharp(id)
    assert isinstance(pattern, AttentionPattern)
    want = laws.attention_given(tiny.reference("llama"), TOKENS, masked(pattern, TOKENS))[9:]
    got = along(Stack([pattern]))
    assert float((got - want).abs().max() / want.std()) < 1e-4


@pytest.mark.parametrize("id", PATTERNS)
@pytest.mark.parametrize("policy", ["", "streaming-llm", "h2o"])
def test_selecting_rows_is_masking_the_others(id: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack([laws.sharp(id), *([make(policy, budget=30, every=5)] if policy else [])])
    got = along(stack)
    asked = []
    monkeypatch.setattr(registry()[id], "select", lambda self, q, rows, layer: asked.append(q))
    want = along(stack)
    assert asked or policy == "h2o", "the pattern is asked which rows to read, unless somebody watches them all"
    assert float((got - want).abs().max() / want.std()) < 1e-4


@pytest.mark.parametrize("id", PATTERNS)
def test_a_pattern_hides_something(id: str) -> None:
    assert not torch.allclose(along(Stack([laws.sharp(id)])), along(Stack()), atol=1e-2)

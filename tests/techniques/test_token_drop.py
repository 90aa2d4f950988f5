"""A prompt whose words leave on the way: what is left in memory, and what is written then."""

from __future__ import annotations

import pytest
import torch

from llmlab.errors import Refused
from llmlab.models.batch import Batch, Span
from llmlab.runtime.session import Session
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make
from llmlab.runtime.token_drop_plan import TokenDropPlan, Top
from llmlab.techniques.prompt.token_drop import TokenDrop
from tests import tiny
from tests.laws import laws

PROMPT = tiny.prompts(1, 41)[0]


def session_after(technique: TokenDrop, prompt: list[int] = PROMPT) -> Session:
    session = Stack([technique]).session(tiny.decoder(), tiny.tools())
    list(session.prefill(prompt))
    return session


def test_memory_holds_fewer_rows_from_layer_to_layer() -> None:
    """40 tokens are read before the last: half of them go on after layer 1, half of those after layer 2."""
    session = session_after(TokenDrop(ratio=0.5, first=1, times=3))
    assert session.memory.rows() == [40, 20, 10, 5]
    assert session.memory.next_position == 40
    for rows in session.memory.layers:
        assert rows.positions[0, 0] == 0
        assert rows.positions[0, -1] == 39


def test_a_ratio_of_nothing_is_the_plain_run() -> None:
    plain = laws.text(tiny.decoder(), PROMPT, 12)
    assert laws.text(tiny.decoder(), PROMPT, 12, Stack([TokenDrop(ratio=0.0)])) == plain
    assert make("token-drop", ratio=0.0).lossless()


def test_it_reads_as_the_depth_by_itself_does() -> None:
    session = session_after(TokenDrop(ratio=0.4, first=2, times=1))
    model = tiny.decoder()
    depth = TokenDropPlan({2: Top(0.6, "last")}, answer=False)
    memory = model.memory()
    ids = torch.tensor(PROMPT[:-1])
    with torch.inference_mode():
        model.forward(Batch(ids, torch.arange(len(ids)), [Span(0, len(ids), memory, first=0)]), depth, 0)
    for mine, theirs in zip(session.memory.layers, memory.layers, strict=True):
        assert torch.equal(mine.positions, theirs.positions)
        assert torch.allclose(mine.k, theirs.k, atol=1e-4)


def test_long_prompts_drop_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmlab.runtime import session as module

    monkeypatch.setattr(module, "PIECE", 16)
    session = session_after(TokenDrop(ratio=0.5, first=2, times=1))
    assert session.memory.rows() == [40, 40, 20, 20]  # of 16, 16 and 8


def test_a_prompt_of_a_few_words_is_read_too() -> None:
    """So short that the pass would go the way of a few rows, whose buffers cannot shrink."""
    session = session_after(TokenDrop(ratio=0.5, first=1, times=1), PROMPT[:7])
    assert session.memory.rows() == [6, 3, 3, 3]
    assert len(laws.text(tiny.decoder(), PROMPT[:3], 5, Stack([TokenDrop(ratio=0.9, first=1)]))) == 5


def test_dropping_after_the_last_layer_is_refused() -> None:
    with pytest.raises(Refused, match="would drop nothing"):
        laws.text(tiny.decoder(), PROMPT, 2, Stack([TokenDrop(first=4)]))

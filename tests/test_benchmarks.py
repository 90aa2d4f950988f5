"""What the commands that measure on held-out prompts count, on a tiny model."""

from __future__ import annotations

import pytest
import torch

from benchmarks.drafters import error_of
from benchmarks.exits import Read, figures, passes
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make
from tests import tiny
from tests.laws import laws

PROMPT = tiny.text(12)


def test_plain_passes_say_what_the_model_writes() -> None:
    model = tiny.decoder("llama")
    own = passes(model, Stack(), tiny.tools(), PROMPT, None, 10, ())
    assert [w.choice for w in own] == laws.text(model, PROMPT, 10)
    assert {(w.waited, w.rows) for w in own} == {(4, 4)}
    given = passes(model, Stack(), tiny.tools(), PROMPT, [w.choice for w in own], 99, ())
    assert [w.choice for w in given] == [w.choice for w in own]
    stop = own[3].choice
    assert len(passes(model, Stack(), tiny.tools(), PROMPT, None, 10, (stop,))) <= 4
    assert "run_layers" not in vars(model), "counting leaves nothing behind"


def test_rows_made_up_later_are_counted_where_they_are_computed() -> None:
    """An exit that makes up its keys and values later waits for fewer layers, and computes no fewer rows."""
    model = tiny.decoder("llama")
    words = {}
    for fill in ("later", "copy"):
        stack = Stack([make("early-exit", threshold=0.15, first=2, step=1, fill=fill)])
        words[fill] = passes(model, stack, tiny.tools(), PROMPT, None, 40, ())
    waited = sum(w.waited for w in words["later"])
    assert waited < 4 * 40
    assert waited < sum(w.rows for w in words["later"]) <= 4 * 40
    assert sum(w.rows for w in words["copy"]) == sum(w.waited for w in words["copy"]) < 4 * 40
    assert max(w.rows for w in words["later"]) > 4, "a pass makes up for those before it"


def test_figures_are_of_words_and_errors_of_prompts() -> None:
    """Of 10 and of 30 words 5 and 30 are the model's: 35 of 40."""
    row = figures([Read("chat", 5, 10, 5.0, 10.0, 1.0), Read("chat", 30, 30, 30.0, 30.0, 1.2)])
    assert (row["words"], row["agreement"], row["layers"], row["layer_rows"]) == (40, 0.875, 0.875, 1.0)
    assert row["agreement_error"] > 0
    assert row["layer_rows_error"] == 0
    assert (row["time"], row["low"], row["high"]) == pytest.approx((1.1, 1.05, 1.15))
    assert error_of(torch.tensor([1.0, 3.0])) == 1.0
    assert error_of(torch.tensor([1.0])) is None

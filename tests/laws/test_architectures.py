"""Law: every causal architecture that transformers has is either read right or refused in one sentence."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import transformers

from benchmarks.architectures import NEW_TOKENS, PROMPT, judge, kinds
from llmlab.models.loading.architectures import architectures, judged_with

TOLERANCE = 1e-4
SAME = judged_with() == transformers.__version__
"""Whether the shipped table was made with the transformers that is installed."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For matrices this small, more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", kinds())
def test_an_architecture_is_right_or_refused(kind: str) -> None:
    row = judge(kind)
    if row.engine == "none":
        sentences = row.why.rstrip(".").split(". ")
        assert row.why.endswith(".")
        assert "\n" not in row.why
        assert len(row.why) < 320
        assert sentences[-1][:1].isupper()  # the last sentence says what to do now
    else:
        assert row.off <= TOLERANCE, f"logits differ by {row.off:.1e}"
        assert row.same, f"another greedy text within {NEW_TOKENS} tokens after {PROMPT}"
    if SAME:
        known = {a.kind: a for a in architectures()}[kind]
        assert (row.engine, row.seam) == (known.engine, known.seam), "assets/architectures.json says otherwise"


@pytest.mark.skipif(not SAME, reason="another transformers than the table's: python -m benchmarks.architectures --keep")
def test_the_shipped_table_has_every_architecture() -> None:
    assert {a.kind for a in architectures()} == set(kinds())


def test_most_run() -> None:
    """What the table is for: a change that turns architectures away must be seen."""
    engines = [a.engine for a in architectures()]
    assert engines.count("none") <= 56
    assert engines.count("decoder") >= 5

"""Which rows stay, by hand."""

from __future__ import annotations

import pytest
import torch

from llmlab.errors import Refused
from llmlab.kv.rows import Rows
from llmlab.kv.storage import PlainStorage
from llmlab.models.decoder import Decoder
from llmlab.runtime.events import Committed, Finished
from llmlab.runtime.generate import generate
from llmlab.runtime.roles import UNBOUNDED
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make
from tests import tiny
from tests.laws import laws


def rows(count: int, heads: int = 2) -> Rows:
    cpu = torch.device("cpu")
    made = Rows(PlainStorage(heads, 4, torch.float32, cpu), cpu)
    k = torch.arange(count).float()[None, :, None].expand(heads, -1, 4)
    made.append(torch.stack([k, -k]), torch.arange(count))
    return made


@pytest.mark.parametrize(
    ("sinks", "want"), [(0, [6, 7, 8, 9]), (1, [0, 7, 8, 9]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])]
)
def test_streaming_llm_keeps_the_sinks_and_the_latest(sinks: int, want: list[int]) -> None:
    assert make("streaming-llm", budget=4, sinks=sinks, every=6).keep(rows(10)).tolist() == want


def test_streaming_llm_counts_positions_in_the_cache(llama: Decoder) -> None:
    policy = make("streaming-llm", budget=6, sinks=2, every=4)
    session = Stack([policy]).session(llama)
    list(session.prefill(tiny.text(11)))  # ten tokens go to memory, and that is the line
    assert session.memory.rows() == [6] * 4
    assert session.memory.next_position == 6
    for layer in session.memory.layers:
        assert layer.positions.tolist() == [[0, 1, 2, 3, 4, 5]] * 2


def test_streaming_llm_may_leave_positions_alone(llama: Decoder) -> None:
    session = Stack([make("streaming-llm", budget=6, sinks=2, every=4, reposition=False)]).session(llama)
    list(session.prefill(tiny.text(11)))
    assert session.memory.next_position == 10
    assert session.memory.layers[0].positions.tolist() == [[0, 1, 6, 7, 8, 9]] * 2


def test_h2o_adds_up_what_queries_paid() -> None:
    """Four query heads over two key-value heads: heads 0 and 1 share the first, 2 and 3 the second."""
    policy, held = make("h2o", budget=4), rows(3)
    attention = torch.zeros(4, 2, 3)
    attention[0, 0] = torch.tensor([0.5, 0.5, 0.0])
    attention[1, 1] = torch.tensor([0.0, 0.2, 0.8])
    attention[3, 0] = torch.tensor([1.0, 0.0, 0.0])
    policy.observe(held, attention)
    assert torch.allclose(held.stat("score"), torch.tensor([[0.5, 0.7, 0.8], [1.0, 0.0, 0.0]]))
    policy.observe(held, attention)
    assert torch.allclose(held.stat("score"), torch.tensor([[1.0, 1.4, 1.6], [2.0, 0.0, 0.0]]))


def test_h2o_keeps_the_heavy_hitters_of_each_head_and_the_latest() -> None:
    policy, held = make("h2o", budget=4, recent=0.5), rows(8)
    held.stat("score")[:] = torch.tensor([[1.0, 9, 2, 8, 3, 0, 99, 0], [5.0, 0, 0, 0, 0, 6, 0, 0]])
    kept = policy.keep(held)
    assert kept.tolist() == [[1, 3, 6, 7], [0, 5, 6, 7]]
    held.keep(kept)
    assert held.k[:, :, 0].tolist() == [[1, 3, 6, 7], [0, 5, 6, 7]]
    assert held.positions.tolist() == [[1, 3, 6, 7], [0, 5, 6, 7]]
    assert held.stat("score").tolist() == [[9, 8, 99, 0], [5, 6, 0, 0]]


@pytest.mark.parametrize(("recent", "want"), [(1.0, [4, 5, 6, 7]), (0.0, [1, 3, 4, 6])])
def test_h2o_at_the_ends_of_its_share(recent: float, want: list[int]) -> None:
    policy, held = make("h2o", budget=4, recent=recent), rows(8, heads=1)
    held.stat("score")[:] = torch.tensor([[1.0, 9, 2, 8, 3, 0, 99, 0]])
    assert policy.keep(held).tolist() == [want]


def test_h2o_reads_the_prompt_whole(llama: Decoder) -> None:
    """The scores at the end of the prompt are the column sums of its attention, as transformers sees it."""
    tokens = tiny.text(40)
    session = Stack([make("h2o", budget=64)]).session(llama)
    list(session.prefill(tokens))
    ids = torch.tensor([tokens[:-1]])
    weights = tiny.reference("llama")(ids, output_attentions=True).attentions
    for layer, w in zip(session.memory.layers, weights, strict=True):
        want = w[0].sum(1).view(2, 2, 39).sum(1)  # (KV, S): two query heads over each key-value head
        assert torch.allclose(layer.stat("score"), want, atol=1e-4)


def test_rows_keep_moves_everything_together() -> None:
    held = rows(5)
    held.stat("a")[:] = torch.arange(5.0)
    held.keep(range(4))
    held.keep(torch.tensor([3, 0]))
    assert held.k[0, :, 0].tolist() == [3, 0]
    assert held.v[1, :, 0].tolist() == [-3, 0]
    assert held.stat("a").tolist() == [[3, 0]] * 2
    held.append(torch.ones(2, 2, 1, 4), torch.tensor([9]))
    assert held.positions.tolist() == [[3, 0, 9]] * 2
    assert held.stat("a").tolist() == [[3, 0, 0]] * 2, "a new row starts from nothing, whatever stood there before"


@pytest.mark.parametrize("wrong", [range(1, 3), range(6), range(0, 4, 2)])
def test_a_range_is_a_prefix(wrong: range) -> None:
    with pytest.raises(IndexError):
        rows(5).keep(wrong)


def test_buffers_shrink_after_a_large_eviction() -> None:
    held = rows(1000)
    before = held.nbytes
    held.keep(torch.arange(10))
    assert held.nbytes < before / 10
    assert held.k[0, :, 0].tolist() == list(range(10))


# Past the context ----------------------------------------------------------------------------------------------------


def test_streaming_llm_runs_far_past_the_context_and_stays_flat(llama: Decoder) -> None:
    """20 000 tokens on a model that reads 256: neither rows nor bytes grow once the window is full."""
    stack = Stack([make("streaming-llm", budget=24, every=8)])
    held: list[tuple[int, int]] = []
    for e in generate(llama, tiny.text(600), 19_400, stack, tools=tiny.tools()):
        if isinstance(e, Committed):
            held.append((max(e.kv_rows), e.kv_bytes))
        if isinstance(e, Finished):
            assert e.reason == "limit"
    assert len(held) == 19_400
    assert max(rows for rows, _ in held) <= 32
    assert {size for _, size in held[100:200]} == {size for _, size in held[-100:]}


@pytest.mark.parametrize("drafter", ["prompt-lookup", "self-speculation", "draft-model", "eagle", "layer-skip"])
def test_drafts_past_the_context_change_no_token(llama: Decoder, drafter: str) -> None:
    policy = make("streaming-llm", budget=24, every=8)
    prompt = tiny.text(llama.context + 30)
    plain = laws.text(llama, prompt, 40, Stack([policy]))
    assert laws.text(llama, prompt, 40, Stack([policy, make(drafter)])) == plain


@pytest.mark.parametrize(
    "settings", [{"reposition": False}, {"budget": 250, "every": 16}, {"budget": UNBOUNDED}], ids=str
)
def test_a_window_that_leaves_the_context_is_refused_there(llama: Decoder, settings: dict[str, object]) -> None:
    stack = Stack([make("streaming-llm", **settings)])
    with pytest.raises(Refused, match="reads at most 256"):
        laws.text(llama, tiny.text(257), 4, stack)
    events = laws.run(llama, tiny.text(250), 20, stack)
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "context full"


def test_h2o_waits_for_the_look_of_the_prompts_last_token(llama: Decoder) -> None:
    """The first eviction ranks rows by the looks of all prompt tokens, the last one's too."""
    tokens = tiny.text(40)
    session = Stack([make("h2o", budget=12)]).session(llama)
    assert [e for _, e in session.prefill(tokens) if e] == []
    assert session.max_draft_depth() == 0, "no draft may look before the eviction"
    session.forward()
    scores = []
    policy = session.policy
    keep = type(policy).keep

    class Watched(type(policy)):  # type: ignore[misc]
        def keep(self, rows: Rows) -> torch.Tensor:
            scores.append(rows.stat("score").clone())
            return keep(self, rows)

    session.policy = Watched(budget=12)
    session.commit((), 1)
    weights = tiny.reference("llama")(torch.tensor([tokens]), output_attentions=True).attentions
    for score, w in zip(scores, weights, strict=True):
        assert torch.allclose(score, w[0].sum(1).view(2, 2, 40).sum(1), atol=1e-4)

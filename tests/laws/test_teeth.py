"""The laws have teeth: break the engine on purpose, and the law that guards the broken part fails."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from llmlab.kv.memory import Memory
from llmlab.kv.rows import Rows
from llmlab.models import batch, building, families
from llmlab.models.building import build
from llmlab.models.decoder import Decoder
from llmlab.models.rope import Rotary
from llmlab.runtime import step
from llmlab.runtime.draft import Draft
from llmlab.runtime.session import Session
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make
from llmlab.techniques.early_exit.early_exit import EarlyExit
from llmlab.techniques.kv_eviction.streaming_llm import StreamingLLM
from llmlab.techniques.weights.magnitude import Magnitude
from tests import tiny
from tests.laws import laws

Break = Callable[[pytest.MonkeyPatch], Any]
Law = Callable[[], Any]

POLICIES = {"streaming-llm": make("streaming-llm", budget=12, every=5), "h2o": make("h2o", budget=12, every=5)}
PROMPTS = tiny.prompts(4, 21)
TOKENS = tiny.prompts(1, 50, seed=8)[0]


def scripted(*policy: str, tree: bool = False) -> list[str]:
    return laws.scripted(tiny.decoder("llama"), Stack(POLICIES[p] for p in policy), PROMPTS, 30, tree)[0]


def sampled(*parents: int, certain: bool = False) -> list[float]:
    p, q = laws.conditional(1, 3), laws.conditional(2, 3)
    gap = laws.sampling(parents, p, q, (lambda i, prefix: i % 3) if certain else None)
    return [gap] if gap > 1e-6 else []


def referee(family: str) -> list[float]:
    gap = laws.reference(
        build(tiny.StateDict(tiny.reference(family)), "dense-fp32"), tiny.reference(family), TOKENS, [40, *[1] * 10]
    )
    return [gap] if gap > 1e-4 else []


def hidden(id: str) -> list[float]:
    free = {"reposition": False} if id == "streaming-llm" else {}
    policy = make(id, budget=12, every=5, **free)
    gap, _ = laws.hidden_rows(tiny.decoder("llama"), tiny.reference("llama"), policy, TOKENS)
    return [gap] if gap > 1e-4 else []


def moved() -> list[float]:
    gap = laws.repositioned_rows(tiny.decoder("llama"), POLICIES["streaming-llm"], TOKENS)
    return [gap] if gap > 1e-4 else []


def undone(id: str) -> list[str]:
    return laws.undo(copy.deepcopy(tiny.decoder("llama")), Stack([laws.sharp(id)]), PROMPTS[0], 6)


def booked(id: str) -> list[str]:
    alive: list[Memory] = []
    model = tiny.decoder("llama").private_copy()
    model.memory = lambda: alive.append(Decoder.memory(model)) or alive[-1]
    return laws.books(model, PROMPTS[0], 20, Stack([laws.sharp(id)]), lambda: alive)


def neutral(id: str) -> list[str]:
    changed = laws.changed(tiny.decoder("llama"), Stack([make(id, **laws.registry()[id].noop_settings)]), tiny.tools())
    after = laws.fingerprint(changed)
    return [k for k, v in laws.fingerprint(tiny.decoder("llama")).items() if after[k] != v]


# What is broken -------------------------------------------------------------------------------------------------


def no_rollback(patch: pytest.MonkeyPatch) -> None:
    """Rejected rows stay in memory."""
    keep = Rows.keep
    patch.setattr(Rows, "keep", lambda self, rows: None if isinstance(rows, range) else keep(self, rows))


def wrong_path(patch: pytest.MonkeyPatch) -> None:
    """Of a tree, the first nodes are kept in place of the accepted ones."""
    commit = Session.commit

    def broken(self: Session, path: Any, bonus: int, draft: Draft | None = None) -> Any:
        return commit(self, path if draft is None or draft.is_chain else range(len(path)), bonus, draft)

    patch.setattr(Session, "commit", broken)


def observe_the_rejected(patch: pytest.MonkeyPatch) -> None:
    """What rejected tokens looked at counts."""
    patch.setattr(Session, "_hold_back", Session._observe_now)


def observe_nothing(patch: pytest.MonkeyPatch) -> None:
    """Only what was read as prompt, or committed without a draft, counts."""
    hold = Session._hold_back
    patch.setattr(Session, "_hold_back", lambda self, layer, a: hold(self, layer, a if a.shape[1] == 1 else 0 * a))


def shift_a_position(patch: pytest.MonkeyPatch) -> None:
    """After an accepted guess, the next token stands one place too far on."""
    commit = Session.commit

    def broken(self: Session, path: Any, bonus: int, draft: Draft | None = None) -> Any:
        evicted = commit(self, path, bonus, draft)
        self.memory.next_position += bool(path)
        return evicted

    patch.setattr(Session, "commit", broken)


def shift_the_depths(patch: pytest.MonkeyPatch) -> None:
    """Nodes of a tree take positions in the order in which they are listed."""
    patch.setattr(Draft, "depths", lambda self: list(range(1, len(self) + 1)))


def see_the_siblings(patch: pytest.MonkeyPatch) -> None:
    """Nodes of a tree attend to everything listed before them."""
    patch.setattr(Draft, "visible", lambda self: torch.ones(len(self) + 1, len(self) + 1, dtype=torch.bool).tril())


def ignore_the_line(patch: pytest.MonkeyPatch) -> None:
    """Drafts cross the line at which rows are evicted."""
    patch.setattr(Session, "max_draft_depth", lambda self: 1000)


def accept_one_too_many(patch: pytest.MonkeyPatch) -> None:
    """After the accepted path, its first child comes along too."""
    accept = step.accept_greedy

    def broken(draft: Draft, best: Any) -> tuple[tuple[int, ...], int]:
        path, bonus = accept(draft, best)
        more = draft.children(path[-1] if path else -1)
        return ((*path, more[0]), best[more[0] + 1]) if more else (path, bonus)

    patch.setattr(step, "accept_greedy", broken)


def accept_one_too_few(patch: pytest.MonkeyPatch) -> None:
    """The last accepted token is dropped, and the model's own answer to it kept."""
    accept = step.accept_greedy
    patch.setattr(
        step, "accept_greedy", lambda draft, best: (lambda path, bonus: (path[:-1], bonus))(*accept(draft, best))
    )


def forget_the_residual(patch: pytest.MonkeyPatch) -> None:
    """After a rejection, p itself is drawn from."""
    patch.setattr(Tensor, "clamp_min", lambda self, low: self - self + 1)


def coin_of(change: Callable[[float], float]) -> Break:
    def broken(patch: pytest.MonkeyPatch) -> None:
        coin = laws.Fate.bernoulli
        patch.setattr(laws.Fate, "bernoulli", lambda self, p: coin(self, min(1.0, change(p))))

    return broken


def no_interleaving(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(building, "interleave", lambda rows, head_size, turning: torch.arange(rows))


def no_scaling(patch: pytest.MonkeyPatch) -> None:
    """The config's rule for long contexts is ignored."""
    plain = lambda *given: Rotary(1e4 ** -(torch.arange(0, 16, 2) / 16))  # noqa: E731
    patch.setattr(building, "rotary", plain)


def no_window(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(batch.Window, "visible", lambda self, q, k, layer, head: q - k < 10 * self.width)


def window_off_by_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(batch.Window, "visible", lambda self, q, k, layer, head: q - k <= self.width)


def no_head_norms(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(families.FAMILIES, "qwen3", families.Family())
    patch.setattr(building, "unread", lambda *given: [])  # which would refuse the norms that nobody reads


def no_bias(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(families.FAMILIES, "qwen2", families.Family())
    patch.setattr(building, "unread", lambda *given: [])


def keep_another_row(patch: pytest.MonkeyPatch) -> None:
    """The memory drops another row than the one it was told to: keys and positions part."""
    keep = Rows.keep

    def broken(self: Rows, rows: Any) -> None:
        keep(self, rows)
        if not isinstance(rows, range):
            self.k[:] = self.k.roll(1, 1)

    patch.setattr(Rows, "keep", broken)


def move_without_turning(patch: pytest.MonkeyPatch) -> None:
    """Rows get new positions, but their keys keep the old rotation."""
    move = Rows.reposition
    patch.setattr(Rows, "reposition", lambda self, positions, turn: move(self, positions, torch.ones_like(turn)))


def forget_to_move(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StreamingLLM, "after_eviction", lambda self, rows, session: None)


def keep_other_sinks(patch: pytest.MonkeyPatch) -> None:
    keep = StreamingLLM.keep

    def broken(self: StreamingLLM, rows: Rows) -> Tensor:
        kept = keep(self, rows).clone()
        kept[: self.sinks] += 1
        return kept

    patch.setattr(StreamingLLM, "keep", broken)


def change_the_shared_model(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Decoder, "private_copy", lambda self: self)


def leave_a_hook(patch: pytest.MonkeyPatch) -> None:
    def plan(self: EarlyExit, model: Any, tools: Any) -> Any:
        model.layers[0].register_forward_hook(lambda *args: None)
        return original(self, model, tools)

    original = EarlyExit.plan
    patch.setattr(EarlyExit, "plan", plan)


def half_the_bytes(patch: pytest.MonkeyPatch) -> None:
    """Memory reports its keys and forgets its values."""
    patch.setattr(Rows, "nbytes", property(lambda self: self.storage.nbytes // 2 + self.index.nbytes))


def used_bytes(patch: pytest.MonkeyPatch) -> None:
    """Memory reports the rows in use and not the buffers that hold them."""
    patch.setattr(Rows, "nbytes", property(lambda self: self.k.nbytes + self.v.nbytes + self.positions.nbytes))


def overshoot(patch: pytest.MonkeyPatch) -> None:
    """Drafts are not cut at the limit."""
    patch.setattr(Draft, "clipped", lambda self, depth: self)


def prune_at_nought(patch: pytest.MonkeyPatch) -> None:
    """A setting that promises to change nothing changes one weight."""
    original = Magnitude.apply

    def apply(self: Magnitude, model: Any, tools: Any) -> str:
        W = model.layers[0].linears()["out"].dense()
        W[0, 0] = 0
        model.layers[0].linears()["out"].store(W)
        return original(self, model, tools)

    patch.setattr(Magnitude, "apply", apply)


CASES: list[tuple[Break, Law]] = [
    (no_rollback, lambda: scripted()),
    (no_rollback, lambda: scripted(tree=True)),
    (wrong_path, lambda: scripted(tree=True)),
    (observe_the_rejected, lambda: scripted("h2o")),
    (observe_nothing, lambda: scripted("h2o")),
    (shift_a_position, lambda: scripted()),
    (shift_the_depths, lambda: scripted(tree=True)),
    (see_the_siblings, lambda: scripted(tree=True)),
    (ignore_the_line, lambda: scripted("h2o")),
    (ignore_the_line, lambda: scripted("streaming-llm")),
    (accept_one_too_many, lambda: scripted()),
    (accept_one_too_few, lambda: scripted()),
    (forget_the_residual, lambda: sampled(-1)),
    (forget_the_residual, lambda: sampled(-1, -1)),
    (coin_of(lambda p: p * 0.9), lambda: sampled(-1)),
    (coin_of(lambda p: p * 1.1), lambda: sampled(-1, 0)),
    (coin_of(lambda p: p * p), lambda: sampled(-1, certain=True)),
    (no_interleaving, lambda: referee("llama")),
    (no_scaling, lambda: referee("llama")),
    (no_scaling, lambda: referee("llama-yarn")),
    (no_window, lambda: referee("mistral")),
    (window_off_by_one, lambda: referee("mistral")),
    (window_off_by_one, lambda: referee("qwen2-window")),
    (no_head_norms, lambda: referee("qwen3")),
    (no_bias, lambda: referee("qwen2")),
    (keep_another_row, lambda: hidden("streaming-llm")),
    (keep_another_row, lambda: hidden("h2o")),
    (keep_another_row, moved),
    (move_without_turning, moved),
    (forget_to_move, moved),
    (keep_other_sinks, moved),
    (change_the_shared_model, lambda: undone("magnitude")),
    (change_the_shared_model, lambda: undone("layer-drop")),
    (leave_a_hook, lambda: undone("early-exit")),
    (half_the_bytes, lambda: booked("prompt-lookup")),
    (used_bytes, lambda: booked("h2o")),
    (overshoot, lambda: scripted()),
    (prune_at_nought, lambda: neutral("magnitude")),
]


@pytest.mark.parametrize(("broken", "law"), CASES, ids=lambda f: f.__name__.strip("<>"))
def test_a_broken_engine_is_caught(monkeypatch: pytest.MonkeyPatch, broken: Break, law: Law) -> None:
    assert not law(), "the law must hold before the engine is broken"
    with monkeypatch.context() as patch:
        broken(patch)
        assert law()

"""What the account says of layers, arithmetic and memory, and that page, panel and account name the parts alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmlab.measure import trace
from llmlab.models.loading.catalog import MODELS
from llmlab.runtime.events import Committed, Event, Finished, Prefilled, Started, WeightsChanged
from llmlab.ui import machine
from llmlab.ui.figures import run as figures
from llmlab.ui.i18n import catalogue
from llmlab.ui.live.panel import HERE
from llmlab.ui.playground.account import PASSES, passes_table
from llmlab.ui.run_summary import run_summary
from tests.test_verdict import lane

LABELS = json.loads((Path(HERE) / "labels.json").read_text(encoding="utf-8"))
PARTS = ("weights", "copies", "parts", "kv", "activations")


def told(layers_run: float, rows: int, kv_only: int = 0, drafter: int = 0, lang: str = "en", read: int = 20) -> str:
    return run_summary(events(layers_run, rows, kv_only, drafter, read), lang)


def events(layers_run: float, rows: int, kv_only: int = 0, drafter: int = 0, read: int = 20) -> list[Event]:
    """Two passes of one token each through a model of 10 layers."""
    start = Started(0.0, "m", "baseline", "cpu", "int4", [], {}, 3, 10, 97_000_000, True, copies_bytes=60_000_000)
    counted = (rows, kv_only, drafter, 2e9 if rows else 0.0, 100 if rows else 0, 4_000_000 if rows else 0)
    made: list[Event] = [
        replace(start, auxiliary_bytes=5_000_000),
        Prefilled(0.5, 2, 2, 1_000_000, [2] * 10, read, 0, 0, 1e9, 100, 9_000_000),
    ]
    for i in range(2):
        made.append(Committed(1.0 + i, [5], [], 0.5, [3] * 10, 2_000_000, layers_run, ["a"], *counted))
    return [*made, Finished(3.0, "limit")]


def test_a_saving_that_is_made_up_for_is_called_none() -> None:
    text = told(8.5, 10)
    assert "waited for 8.5 of 10 layers" in text
    assert "computed later all the same: 10.0 layer-rows and 2.00 GFLOP" in text
    assert "no saving of arithmetic" in text


def test_a_saving_is_told_with_what_was_still_made() -> None:
    text = told(7.0, 7, kv_only=3)
    assert "waited for 7.0 of 10 layers" in text
    assert "7.0 layer-rows, where the model has 10 layers" in text
    assert "In 3.0 more layers per token just keys and values were made" in text
    assert "no saving" not in text


def test_drafting_is_told_as_arithmetic() -> None:
    text = told(10.0, 19, drafter=4)
    assert "19.0 layer-rows, where plain decoding takes 10" in text
    assert "waited for" not in text
    assert "The drafter ran 4.0 rows per new token through layers of its own" in text


def test_a_plain_run_says_nothing_of_layers() -> None:
    assert "layer-rows" not in told(10.0, 10)
    assert "layer-rows" not in told(10.0, 0)


def test_a_prompt_that_went_through_fewer_layers_is_told() -> None:
    assert "The prompt took 6.0 layer-rows per token" in told(10.0, 10, read=12)


def test_a_trace_that_did_not_count_says_so() -> None:
    text = told(8.5, 0)
    assert "waited for 8.5 of 10 layers" in text
    assert "was not counted" in text


def test_memory_is_told_part_by_part() -> None:
    seen = events(10.0, 10)
    seen[1] = replace(seen[1], activation_bytes=1_000_000)
    text = run_summary(seen, "en")
    assert "Memory at most 103 MB: weights 32 MB + copies 60 MB + drafters and parts 5.0 MB + KV cache 2.0 MB" in text
    assert "+ activations 4.0 MB." in text
    assert "内存最多 103 MB" in run_summary(seen, "zh-CN")


def test_parts_that_were_never_held_at_once_are_not_added_up() -> None:
    """A prompt takes the most activations, a text's end the most keys and values: here 107 MB at once, 108 in all."""
    assert "Memory at most 107 MB: weights 32 MB, copies 60 MB" in told(10.0, 10)
    assert "KV cache 2.0 MB, activations 9.0 MB, each at its largest and not all at once." in told(10.0, 10)
    assert "各自的最大值，并非同时达到" in told(10.0, 10, lang="zh-CN")


def stopped(baseline: str, stack: str, tokens: Sequence[int]) -> list[Event]:
    """A comparison whose runs ended so; the baseline wrote eight tokens, the techniques these."""
    runs = [*lane("baseline", 0.2, 8), *lane("stack", 0.1, len(tokens))]
    runs = [
        replace(e, stack=[{"id": "prompt-lookup", "knobs": {}}]) if isinstance(e, Started) and e.lane == "stack" else e
        for e in runs
    ]
    wanted = iter([*range(8), *tokens])
    runs = [replace(e, tokens=[next(wanted)]) if isinstance(e, Committed) else e for e in runs]
    reasons = iter([baseline, stack])
    return [replace(e, reason=next(reasons)) if isinstance(e, Finished) else e for e in runs]


def test_a_text_that_was_stopped_is_no_other_text() -> None:
    """Shorter because someone pressed Stop is no difference; another token before that is one."""
    text = run_summary(stopped("limit", "stopped", [0, 1, 2]), "en")
    assert "As far as both went, the output is the baseline's, token for token." in text
    assert "differs" not in text
    assert "**differs from the baseline's** from token 1" in run_summary(stopped("limit", "stopped", [0, 7, 2]), "en")
    assert "**differs from the baseline's** from token 3" in run_summary(stopped("limit", "end", [0, 1, 2]), "en")


def test_a_run_that_wrote_nothing_has_no_speed() -> None:
    seen = [e for e in events(10.0, 10) if not isinstance(e, Committed)]
    text = run_summary(seen, "en")
    assert "**Plain decoding** generated no token." in text
    assert "time to first token" not in text
    assert "**普通解码**没有生成词元。" in run_summary(seen, "zh-CN")


def test_a_change_of_weights_shows() -> None:
    seen = events(10.0, 10)
    seen.insert(1, WeightsChanged(0.0, "Wanda", 512_000_000, 480_000_000, "n"))
    assert "512 MB → 480 MB" in run_summary(seen, "en")


def test_page_panel_and_account_name_the_parts_alike() -> None:
    for lang, words in catalogue().items():
        for part in PARTS:
            assert LABELS[lang][f"m_{part}"] == words[f"m_{part}"]
    assert tuple(trace.memory_parts(trace.ledger(events(10.0, 10)))) == PARTS


def test_the_sidebar_names_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda device: 16 * 10**9)
    entry = MODELS["smollm2-135m"]
    with_copies, without = (machine.fit_html(entry, "int4", 100, copies) for copies in (True, False))
    for html in (with_copies, without):
        for part in ("weights", "kv", "activations"):
            assert catalogue()["en"][f"m_{part}"] in html
    assert catalogue()["en"]["m_copies"] not in without
    assert "Drafters and trained parts come on top" in with_copies


def test_figures_and_tables_have_both() -> None:
    seen = events(8.5, 10)
    drawn = figures.layers({"baseline": seen}, "en")
    lines: dict[str, Any] = {t.name.split(": ")[1]: list(t.y) for t in drawn.data}
    assert lines["layers waited for"] == [8.5, 8.5]
    assert lines["layer-rows per token"] == [10, 10]
    stacked = figures.memory({"baseline": seen}, "en")
    assert [t.name.split(": ")[1] for t in stacked.data] == [catalogue()["en"][f"m_{p}"] for p in PARTS]
    assert sum(t.y[-1] for t in stacked.data) == pytest.approx(97 + 2 + 4)
    assert all(len(row) == len(PASSES) for row in passes_table(seen, "en"))
    assert trace.rounds_csv(seen).splitlines()[0].endswith("layer_rows,kv_only_rows,flops,read_bytes,activation_bytes")

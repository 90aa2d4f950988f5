"""What the live panel draws of layers and memory, in a browser: both counts of layers, and every part by its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmlab.measure import trace
from llmlab.runtime.events import Committed, Drafted, Event, Finished, Prefilled, Started
from tests.ui.conftest import Site
from tests.ui.test_browser import open_trace, settled

pytestmark = pytest.mark.browser


def drafted_twice(counted: bool) -> list[Event]:
    """A run of 4 layers whose passes compute 12 layer-rows for two tokens each; or of a version that did not count."""
    more = {"copies_bytes": 60_000_000, "auxiliary_bytes": 5_000_000} if counted else {}
    work = (12, 0, 3, 2e9, 90_000_000, 3_000_000) if counted else ()
    made: list[Event] = [
        Started(0.0, "m", "stack", "cpu", "int4", [], {}, 3, 4, 97_000_000, True, ["a"], **more),
        Prefilled(0.5, 2, 2, 1_000_000, [2] * 4),
    ]
    for i in range(12):
        made.append(Drafted(0.6 + i, [1, 2], [-1, 0], 0.1, ["x", "y"]))
        made.append(Committed(1.0 + i, [1, 5], [0], 0.4, [4] * 4, 2_000_000, 4.0, ["x", "z"], *work))
    return [*made, Finished(13.0, "limit")]


def opened(page: Any, tmp_path: Path, counted: bool) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(trace.dumps(drafted_twice(counted)), encoding="utf-8")
    open_trace(page, path)
    settled(page)
    page.wait_for_selector("[data-chart=memory] .parts span:has-text('KV cache 2 MB')", state="visible")


def test_layers_waited_for_and_computed_are_drawn_apart(visit: Any, site: Site, tmp_path: Path) -> None:
    page = visit(site.link())
    opened(page, tmp_path, True)
    page.wait_for_selector("[data-chart=layers]", state="visible")
    told = page.get_attribute("[data-chart=layers] canvas", "aria-label")
    assert "on average 4 of 4 layers waited for, 6 layer-rows computed per token" in told
    note = page.text_content("[data-chart=layers] header span")
    assert "waited" in note
    assert "computed" in note
    for chart in ("layers", "drafts"):
        wide = page.eval_on_selector(f"[data-chart={chart}] header span", "e => e.scrollWidth - e.clientWidth")
        assert wide <= 0, f"the legend of {chart} is cut off by {wide} px"


def test_what_was_not_counted_has_no_line_in_the_legend(visit: Any, site: Site, tmp_path: Path) -> None:
    page = visit(site.link())
    path = tmp_path / "run.jsonl"
    less = [replace(e, layers_run=3.0) if isinstance(e, Committed) else e for e in drafted_twice(False)]
    path.write_text(trace.dumps(less), encoding="utf-8")
    open_trace(page, path)
    page.wait_for_selector("[data-testid=live-panel] .status:has-text('run.jsonl')")
    page.wait_for_selector("[data-chart=layers]", state="visible")
    page.wait_for_timeout(300)
    note = page.text_content("[data-chart=layers] header span")
    assert "waited" in note
    assert "computed" not in note


def test_every_part_of_memory_has_its_name_and_size(visit: Any, site: Site, tmp_path: Path) -> None:
    page = visit(site.link())
    opened(page, tmp_path, True)
    parts = page.locator("[data-chart=memory] .parts span").all_text_contents()
    assert parts == ["weights 32 MB", "copies 60 MB", "drafters and parts 5 MB", "KV cache 2 MB", "activations 3 MB"]
    assert page.text_content("[data-figure=memory] .value") == "102MB"
    assert page.text_content("[data-figure=memory] .extra") == " + ".join(parts)
    assert "102 MB: weights 32 MB" in page.get_attribute("[data-chart=memory] canvas", "aria-label")


def test_a_trace_that_counted_nothing_opens(visit: Any, site: Site, tmp_path: Path) -> None:
    page = visit(site.link())
    opened(page, tmp_path, False)
    parts = page.locator("[data-chart=memory] .parts span").all_text_contents()
    assert parts == ["weights 97 MB", "KV cache 2 MB"]
    assert page.is_hidden("[data-chart=layers]")

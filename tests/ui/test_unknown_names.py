"""What the page does with names that it does not know, and what it keeps of its visitors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmlab.errors import Refused
from llmlab.runtime.events import Started
from llmlab.ui.controls import setting_control
from llmlab.ui.exports import KEPT, Exports
from llmlab.ui.figures.study import chart
from llmlab.ui.gradio_events import Newest, Refusals
from llmlab.ui.playground import samples
from llmlab.ui.run_summary import run_summary
from tests.ui.conftest import Site


def test_an_unknown_recording_is_refused() -> None:
    assert samples.recording("lookup")["file"] == "lookup.jsonl"
    with pytest.raises(Refused, match=r"No recorded run is called 'lokup'.*lookup, draft"):
        samples.recording("lokup")


def test_a_setting_without_a_control_is_refused() -> None:
    with pytest.raises(Refused, match=r"has no knob called 'temprature'. Did you mean temperature"):
        setting_control("temprature", lambda key: key)


def test_a_chart_of_an_unknown_kind_is_refused() -> None:
    spec = {"title": "Pie", "x": "a", "y": "b", "group": "", "ideal": "", "kind": "pie"}
    found = {"columns": {"a": "A", "b": "B"}, "rows": [{"a": 1, "b": 2}]}
    with pytest.raises(Refused, match=r"'pie'.*line, bar, points, front"):
        chart(found, spec, "en")


def test_an_engine_path_or_lane_of_another_version_is_shown_by_its_name() -> None:
    events = samples.events_of(samples.recordings()[0])
    odd: list[Any] = [replace(e, lane="third", engine_paths=["warp"]) if isinstance(e, Started) else e for e in events]
    first_lane = odd[: next(i for i, e in enumerate(odd) if i and isinstance(e, Started))]
    summary = run_summary(first_lane, "en")
    assert "### Third" in summary
    assert "- Engine path: warp." in summary


def test_the_last_refusals_are_kept_and_given_once() -> None:
    refusals = Refusals(most=3)
    for n in range(10):
        refusals.put(f"visitor {n}", f"no {n}")
    assert len(refusals) == 3
    assert refusals.pop("visitor 0") is None
    assert refusals.pop("visitor 9") == "no 9"
    assert refusals.pop("visitor 9") is None


def test_old_downloads_are_deleted() -> None:
    exports = Exports()
    paths = [exports.write({"a.txt": str(n)})[0] for n in range(KEPT + 2)]
    assert [Path(p).exists() for p in (paths[0], paths[1], paths[2], paths[-1])] == [False, False, True, True]


@pytest.mark.browser
def test_a_link_to_an_unknown_recording_is_explained(visit: Any, site: Site) -> None:
    page = visit(f"{site.url}?run=lokup")
    page.wait_for_selector("#refusal [role=alert]:has-text('No recorded run is called')")
    page.wait_for_selector("#story h3")


def test_the_answer_to_an_old_question_is_not_shown() -> None:
    newest = Newest(most=2)
    newest.ask("a", 2, "controls", "count")
    newest.ask("a", 1, "controls", "count")  # asked before, come after
    assert newest.stands("a", 2, "controls")
    assert not newest.stands("a", 1, "count")
    newest.ask("a", 3, "count")
    assert newest.stands("a", 2, "controls")
    assert not newest.stands("a", 2, "count")
    newest.ask("b", 1, "count")
    assert newest.stands("b", 1, "count")
    newest.ask("c", 1, "count")
    assert newest.stands("a", 1, "count"), "only the newest visitors are known"

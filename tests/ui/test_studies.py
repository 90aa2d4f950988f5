"""The page's view of studies, in Chromium: open, turn, run, stop, read, and find it all again by its link."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest

from llmlab.lab.findings import cell, table
from llmlab.lab.queue import StudyRun
from llmlab.lab.study import make_study
from llmlab.ui.figures import study as figures
from llmlab.ui.findings import claims_html
from tests.held import PATIENCE, Gate
from tests.ui.conftest import PANEL, Site
from tests.ui.test_browser import state, until

browser_test = pytest.mark.browser


def link(site: Site, **knobs: Any) -> str:
    return f"{site.url}?{urlencode({'study': 'tiny-count', 'm': site.model} | knobs)}"


@pytest.fixture
def study(visit: Any, site: Site) -> Callable[..., Any]:
    """study(knob=value, …) -> the page with the counting study open."""

    def open_study(width: int = 1280, locale: str = "en-US", **knobs: Any) -> Any:
        page = visit(link(site, **{f"tiny-count.{k}": v for k, v in knobs.items()}), width, locale=locale)
        page.wait_for_function("window.llmlabStudyReady")
        return page

    return open_study


def done(page: Any, what: str = "done") -> None:
    page.wait_for_selector(f'#study-progress [data-state="{what}"]')


@browser_test
def test_a_link_opens_a_study_with_its_knobs_and_it_runs(study: Any, site: Site) -> None:
    page = study(steps=6, word="again")
    assert page.is_visible("#study-head:has-text('Counting')")
    assert not page.is_visible(PANEL)
    assert page.input_value("#knob-study-tiny-count-steps input[type=number]") == "6"
    assert page.input_value("#knob-study-tiny-count-word input") == "again"
    assert page.is_checked('input[value="tiny-count"]')
    page.click("#study-run")
    done(page)
    page.wait_for_selector("#study-claims li")
    kinds = page.eval_on_selector_all("#study-claims li", "all => all.map(e => e.dataset.holds)")
    assert kinds == ["confirmed", "refuted", "undecided", "untestable"]
    assert [b.strip() for b in page.locator("#study-claims .badge .en").all_inner_texts()] == [
        "confirmed",
        "refuted",
        "undecided",
        "not testable here",
    ]
    page.wait_for_function("document.querySelectorAll('#study-figures .js-plotly-plot').length === 6")
    assert "again" in page.inner_text("#study-table")
    with page.expect_download() as download:
        page.click("#study-json")
    found = json.loads(download.value.path().read_text())
    assert found["schema"] == "llmlab.study/1"
    assert found["settings"] == {"steps": 6, "cost": 1.5, "word": "again", "loud": False}
    assert found["model"] == site.model
    page.wait_for_function("location.search.includes('tiny-count.steps=6')")
    assert page.evaluate("window.pwned") is None
    assert page.locator("img[src=x]").count() == 0
    assert "${7*7}" in page.inner_text("#study-claims")
    page.click("#study-reproduce button")
    page.wait_for_selector("#study-command:has-text('study tiny-count:steps=6,word=again')")


@browser_test
def test_a_study_stops_and_the_next_runs(study: Any, steps: Gate) -> None:
    page = study(steps=900)
    steps.shut(after=3)
    page.click("#study-run")
    page.wait_for_selector("#study-progress progress")
    page.wait_for_selector("#study-progress:has-text('/ 900')")
    page.keyboard.press("Escape")
    done(page)
    assert "Stopped" in page.inner_text("#study-progress")
    assert not page.is_visible("#study-table")
    steps.open()
    page.fill("#knob-study-tiny-count-steps input[type=number]", "2")
    page.locator("h1").click()
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#study-progress:has-text('Done in')")


@browser_test
@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("study=tiny-cuont", "Did you mean tiny-count"),
        ("study=tiny-count&tiny-count.steps=0", "whole number from 1"),
        ("study=tiny-count&tiny-count.stesp=1", "Did you mean steps"),
        ("study=tiny-count&seed=-1", "The setting seed cannot be -1"),
    ],
)
def test_a_link_to_a_study_that_cannot_work_is_explained(visit: Any, site: Site, query: str, says: str) -> None:
    page = visit(f"{site.url}?{query}")
    page.wait_for_selector(f"#study-progress [role=alert]:has-text('{says}')")


@browser_test
def test_a_study_of_a_model_that_is_not_there_is_refused(study: Any) -> None:
    page = study(steps=1)
    page.click("#study-run")
    done(page)
    page.click("#study-controls .label-wrap:has-text('Advanced')")
    page.fill("#study-own input, #study-own textarea", "smolm2-135m")
    page.click("#study-run")
    page.wait_for_selector("#study-progress [role=alert]:has-text('Did you mean smollm2-135m')")


@browser_test
def test_both_views_stay_alive_and_have_links_of_their_own(visit: Any, site: Site, passes: Gate) -> None:
    page = visit(site.link(p="hello", n=200))
    page.wait_for_function("window.llmlabStudyReady")
    passes.shut(after=20)
    page.click("#run")
    until(page, "d.state == 'running' && +d.tokensBaseline > 3")
    page.get_by_role("button", name="Studies").click()
    page.wait_for_selector("#study-head")
    page.wait_for_selector("#prompt", state="hidden")
    page.wait_for_function("location.search.startsWith('?study=')")
    passes.open()
    assert until(page, "d.state == 'done'")["tokensBaseline"] == "200"
    cursor = state(page)["cursor"]
    page.locator("h1").click()
    page.keyboard.press("Home")  # the replay is out of sight, so its keys are asleep
    page.get_by_role("button", name="Playground").click()
    page.wait_for_function("location.search.includes('p=hello')")
    assert state(page)["cursor"] == cursor
    assert page.is_visible(PANEL)


@browser_test
def test_choosing_another_study_brings_its_card_and_knobs(study: Any) -> None:
    page = study(steps=3)
    page.click("#study-run")
    done(page)
    page.wait_for_selector("#study-table")
    page.click('#bench-sweep input[value="sweep"]')
    page.wait_for_selector("#study-head:has-text('Quality against cost')")
    page.wait_for_selector("#study-box-sweep")
    page.wait_for_selector("#study-box-tiny-count", state="hidden")
    page.wait_for_selector("#study-table", state="hidden")
    page.wait_for_selector('input[value="tiny-count"]:not(:checked)', state="attached")
    page.wait_for_function("location.search.startsWith('?study=sweep')")


@browser_test
def test_findings_of_a_study_that_is_no_longer_open_bring_it_back(study: Any, steps: Gate) -> None:
    page = study(steps=10)
    steps.shut(after=3)
    page.click("#study-run")
    page.wait_for_selector("#study-progress progress")
    page.click('#bench-sweep input[value="sweep"]')
    page.wait_for_selector("#study-head:has-text('Quality against cost')")
    steps.open()
    page.wait_for_selector("#study-head:has-text('Counting')")
    page.wait_for_selector("#study-table:has-text('Level')")


@browser_test
def test_studies_in_chinese_on_a_phone(study: Any) -> None:
    page = study(390, "zh-CN", steps=5)
    page.click("#study-run:has-text('开始研究')")
    page.wait_for_selector("#study-claims:has-text('得到证实')")
    page.wait_for_function("document.querySelectorAll('#study-figures .js-plotly-plot').length === 6")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert "级联" in page.inner_text("#study-controls")


def findings(**knobs: Any) -> dict[str, Any]:
    """What the counting study finds, as the page gets it."""
    from llmlab.lab.experiment import Lab
    from llmlab.lab.settings import Settings
    from llmlab.lab.study import Subject, carry_out

    return carry_out(make_study("tiny-count", **knobs), Subject(Lab(), Settings()))


def test_a_front_holds_what_nothing_beats() -> None:
    """(2, 0.5) costs more than (1, 0.5) and is no better; (3, 0.4) is worse than both; (4, 0.9) is the best."""
    points = [(3, 0.4), (1, 0.5), (4, 0.9), (2, 0.5), (1, 0.2)]
    assert figures.front(points) == [(1, 0.5), (4, 0.9)]


def test_charts_draw_their_rows(site: Site) -> None:
    found = findings(steps=4)
    drawn = figures.study_figures(found, "cascade", "en")
    assert len(drawn) == 6, "who answered, then each chart that has rows"
    who = drawn[0]
    right, wrong, cost = who.data
    assert [list(right.y), list(wrong.y)] == [[1, 1], [1, 1]]  # rows 0 and 2 are of level 0, 1 and 3 of level 1
    assert list(cost.y) == [2.5, 3.5]
    line = drawn[1]
    assert [list(t.x) for t in line.data] == [[0, 2], [1, 3]]
    ideal = drawn[5]
    assert list(ideal.data[1].y) == [0, 0.5, 1, 1.5]
    assert "<img" not in json.dumps([t.hovertext for t in line.data])


def test_claims_and_tables_are_text(site: Site) -> None:
    found = findings(steps=2)
    shown = claims_html(found)
    assert "<img" not in shown
    assert "<script" not in shown
    assert shown.count("<li") == 4
    assert [shown.count(f">{word}<") for word in ("undecided", "尚无定论", "不成立")] == [1, 1, 1]
    lines = table(found).splitlines()
    assert lines[0].split()[:3] == ["Count", "Level", "Cost"]
    assert len({line.index("1.5") + 3 for line in lines if "1.5" in line}) == 1


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "—"), (True, "yes"), (0.123456, "0.1235"), (12345.6, "12346"), (3, "3"), (float("nan"), "—")],
)
def test_cells(value: Any, shown: str) -> None:
    assert cell(value) == shown


def test_the_page_s_studies_compute_on_the_engine_s_thread(site: Site) -> None:
    from llmlab.lab.settings import Settings
    from tests.ui.tiny_count import TinyCount

    job = site.engine.study(make_study("tiny-count", steps=2), Settings(model=site.model), "somebody")
    assert job.ended.wait(PATIENCE)
    assert TinyCount.threads[-1] == "engine"
    assert site.engine.latest("somebody", StudyRun) is job
    assert site.engine.latest("somebody") is None

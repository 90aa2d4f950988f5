"""The page tells one story: controls, panel and account speak of the same run, and nothing moves under the reader."""

from __future__ import annotations

import re
from typing import Any

import pytest

from llmlab.measure import trace
from llmlab.runtime.events import Started
from llmlab.runtime.stack import Stack
from llmlab.ui.playground.samples import RUNS, recordings
from tests.held import Gate
from tests.ui.conftest import PANEL, Site
from tests.ui.test_browser import open_trace, settled, until

pytestmark = pytest.mark.browser

BOXES = "[...document.querySelectorAll('#controls .box[id]')].filter((b) => b.offsetParent).map((b) => b.id.slice(4))"


def story(page: Any, events: list[Any]) -> None:
    """Wait until boxes, badge, prompt and account are those of a recorded run."""
    last = [e for e in events if isinstance(e, Started)][-1]
    stack = Stack.from_json(last.stack)
    names = sorted(t.id for t in stack)
    page.wait_for_function(f"names => String([...new Set({BOXES})].sort()) === String(names)", arg=names)
    kind = ("lossless" if stack.lossless() else "lossy") if len(stack) else "plain"
    page.wait_for_selector(f"#stack-badge .badge-{kind}")
    page.wait_for_function("p => document.querySelector('#prompt textarea').value === p", arg=last.settings["prompt"])
    page.wait_for_function("!document.body.classList.contains('account-old')")


def test_a_replay_restores_badge_and_cards(visit: Any, site: Site) -> None:
    """Three at once is lossy with three cards; what comes after it must not keep any of them."""
    page = visit(site.url)
    by_id = {item["id"]: trace.load(RUNS / item["file"]) for item in recordings()}
    for name in ("three", "tree", "three", "lookup"):
        page.click(f"#recorded-{name}")
        story(page, by_id[name])
    open_trace(page, RUNS / next(item["file"] for item in recordings() if item["id"] == "three"))
    story(page, by_id["three"])


def test_a_link_may_go_past_a_slider(visit: Any, site: Site) -> None:
    """Sliders cover what is usual: 512 tokens of 32 768."""
    page = visit(site.link(p="hello hello", n=600))
    page.wait_for_function("window.llmlabReady")
    page.wait_for_function("document.querySelector('#prompt-count').innerText.includes('tokens')")


def test_an_old_account_is_named_while_another_run_is_on(visit: Any, site: Site, passes: Gate) -> None:
    page = visit(site.link(p="hello hello", n=16))
    settled(page)
    assert page.is_visible("#whose .account_of")
    passes.shut(after=4)
    page.click("#run")
    until(page, "d.state == 'running'")
    page.wait_for_selector("#whose .account_old:visible")
    assert recordings()[0]["label"]["en"] in page.inner_text("#whose")
    passes.open()
    until(page, "d.state == 'done'")
    page.wait_for_selector("#whose .account_of:visible")
    assert site.model in page.inner_text("#whose")


def test_a_b_says_which_of_the_two_is_on(visit: Any, site: Site, passes: Gate) -> None:
    page = visit(site.link(p="hello hello hello", n=16, t="prompt-lookup"))
    settled(page)
    passes.shut(after=4)
    page.click("#ab")
    page.wait_for_function(f"document.querySelector('{PANEL} .status').innerText.startsWith('1 of 2: baseline')")
    passes.shut(after=30)
    page.wait_for_function(f"document.querySelector('{PANEL} .status').innerText.startsWith('2 of 2: with techniques')")
    passes.open()
    until(page, "d.state == 'done'")
    assert "of 2" not in page.inner_text(f"{PANEL} .status")
    page.click("#run")
    until(page, "d.state == 'done'")
    assert "of 2" not in page.inner_text(f"{PANEL} .status")


SHIFTS = """() => {
    window.shifts = [];
    new PerformanceObserver((list) => {
        for (const e of list.getEntries()) {
            const moved = e.sources.map((s) => s.node?.className ?? '');
            window.shifts.push([e.startTime, e.value, moved]);
        }
    }).observe({ type: 'layout-shift', buffered: true });
}"""
WORST = """() => {  // the largest session window, as in Core Web Vitals: gaps under 1 s, 5 s at most
    let [worst, sum, first, last] = [0, 0, -1e9, -1e9];
    for (const [t, value] of window.shifts) {
        if (t - last > 1000 || t - first > 5000) [sum, first] = [0, t];
        [sum, last] = [sum + value, t];
        worst = Math.max(worst, sum);
    }
    return worst;
}"""


@pytest.mark.parametrize(("width", "button"), [(1280, "run"), (1280, "ab"), (390, "run"), (390, "ab")])
def test_nothing_moves_over_load_run_and_end(visit: Any, site: Site, passes: Gate, width: int, button: str) -> None:
    page = visit(site.link(p="hello hello hello", n=48, t="prompt-lookup"), width=width, height=800)
    settled(page)
    page.evaluate(SHIFTS)
    page.wait_for_timeout(600)
    high = page.locator(PANEL).bounding_box()["height"]
    page.evaluate("window.shifts.length = 0")
    passes.shut()
    page.click(f"#{button}")
    until(page, "d.state == 'running'")
    page.wait_for_timeout(700)
    assert page.locator(PANEL).bounding_box()["height"] > 0.85 * high, "no lane has begun: a model would load now"
    passes.shut(after=9)
    page.wait_for_timeout(700)
    passes.open()
    until(page, "d.state == 'done'")
    page.wait_for_selector("#whose .account_of:visible")
    page.wait_for_timeout(700)
    assert page.evaluate(WORST) < 0.1, page.evaluate("window.shifts")


def charts_in_view(page: Any) -> bool:
    return page.evaluate(
        """() => ['tokens', 'ms', 'memory'].every((name) => {
            const box = document.querySelector(`[data-chart=${name}] canvas`).getBoundingClientRect();
            return box.top >= 0 && box.height > 100 && box.bottom <= innerHeight;
        })"""
    )


@pytest.mark.parametrize("button", ["run", "ab"])
def test_charts_are_in_view_when_a_run_starts(visit: Any, site: Site, passes: Gate, button: str) -> None:
    page = visit(site.link(p="hello hello hello", n=24, t="prompt-lookup"), height=800)
    settled(page)
    assert not charts_in_view(page)
    passes.shut(after=6)
    page.click(f"#{button}")
    until(page, "d.state == 'running' && +d.passes > 0")
    for _ in range(40):
        if charts_in_view(page):
            break
        page.wait_for_timeout(100)
    assert charts_in_view(page)
    box = page.locator("#stop").bounding_box()
    assert box
    assert 0 <= box["y"] < 800, "Stop stays within reach"


def test_whoever_has_scrolled_is_left_where_they_are(visit: Any, site: Site, passes: Gate) -> None:
    page = visit(site.link(p="hello hello hello", n=24), height=800)
    settled(page)
    page.mouse.move(800, 400)
    page.mouse.wheel(0, 130)
    page.wait_for_function("scrollY > 100")
    before = page.evaluate("scrollY")
    passes.shut(after=6)
    page.keyboard.press("Control+Enter")
    until(page, "d.state == 'running' && +d.passes > 0")
    page.wait_for_timeout(600)
    assert page.evaluate("scrollY") == before


def test_the_models_on_this_machine_say_so(visit: Any, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmlab.models.loading.sources import locate

    monkeypatch.setattr(locate, "downloaded", lambda entry: entry.title == "GPT-2")
    page = visit(site.url)
    page.click("#model input")
    listed = page.locator("[role=option]").all_inner_texts()
    assert [t for t in listed if "here" in t] == [t for t in listed if "GPT-2" in t] != []


def test_the_prompt_is_counted_against_the_context(visit: Any, site: Site) -> None:
    page = visit(site.link(p="hi", n=24))
    settled(page)
    told = "#prompt-count"
    page.fill("#prompt textarea", "hello there")
    # 11 letters, two of which are one token, and the template's three.
    page.wait_for_selector(f"{told}:has-text('13 of 512 tokens')")
    page.fill("#prompt textarea", "x" * 495)
    page.wait_for_selector(f"{told} .refusal:has-text('room for 14 new tokens, not for 24')")
    page.fill("#prompt textarea", "x" * 600)
    page.wait_for_selector(f"{told} .refusal:has-text('603 of 512 tokens')")
    windowed = visit(site.link(p="x" * 600, n=24, t="streaming-llm"))
    windowed.wait_for_selector(f"{told} .hint:has-text('603 of 512 tokens')")
    windowed.click("#advanced button")
    # A field that has just been unfolded is given its value once more.
    windowed.wait_for_function("m => document.querySelector('#own :is(input, textarea)')?.value === m", arg=site.model)
    windowed.wait_for_timeout(500)
    windowed.fill("#own :is(input, textarea)", "somebody/nowhere")
    windowed.wait_for_selector(f"{told}:has-text('about 150 tokens')")
    page.click("#examples > button")
    page.click("#examples [id^=example-] >> nth=0")
    page.wait_for_function("() => document.querySelector('#prompt textarea').value.length != 600")
    page.wait_for_function(f"!document.querySelector('{told}').innerText.includes('603')")
    page = visit(site.link(p="hi", n=24), locale="zh-CN")
    page.wait_for_selector(f"{told}:has-text('/ 512 个词元')")


def test_one_cause_is_told_once(visit: Any, site: Site) -> None:
    """Early exit keeps drafts and eviction out: the two that are on are named above, the others by their families."""
    page = visit(f"{site.url}?m=smollm2-135m&p=hi&t=prompt-lookup,early-exit,h2o")
    page.wait_for_selector("#stack-badge .refusal")
    page.evaluate("document.querySelectorAll('.fold[aria-expanded=false]').forEach((b) => b.click())")
    page.click("#run")
    page.wait_for_selector("#refusal [role=alert]")
    told = page.locator(".refusal:visible, .reason:visible p").all_inner_texts()
    assert len(told) == len(set(told)), told
    above = " ".join(page.locator("#stack-badge .refusal, #refusal .refusal").all_inner_texts())
    assert "Prompt lookup needs" in above
    assert "H2O, heavy hitters needs" in above
    assert "Hash exit" not in above, "it is off"
    below = page.inner_text("#reason-LayerPlan")
    assert below.count("Prompt lookup needs") == 1, below
    assert "Hash exit, SkipDecode or SkipLayer" in below


def test_a_greyed_choice_cannot_be_chosen_by_keyboard(visit: Any, site: Site) -> None:
    page = visit(f"{site.url}?m=smollm2-135m&p=hi&t=early-exit")
    page.click('[data-fold="CachePolicy"]')
    page.wait_for_selector("#CachePolicy input[value=h2o]:disabled")
    page.focus('[data-fold="CachePolicy"]')
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.value"))
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Space")
        page.keyboard.press("Enter")
    assert "h2o" not in reached
    assert not page.is_checked("#CachePolicy input[value=h2o]")
    page = visit(f"{site.url}?m=gpt2&p=hi")
    page.click('[data-fold="WeightTransform"]')
    box = "#WeightTransform input[name=wanda]"
    page.wait_for_selector(f"{box}:disabled")
    page.click("#WeightTransform label:has(input[name=wanda])", force=True)
    page.evaluate(f"document.querySelector('{box}').focus()")
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    assert not page.is_checked(box)


def test_a_choice_that_is_greyed_under_the_focus_keeps_it(visit: Any, site: Site) -> None:
    page = visit(f"{site.url}?m=smollm2-135m&p=hi&t=h2o")
    page.wait_for_selector("#LayerPlan input[value=early-exit][aria-disabled]", state="attached")
    page.click('[data-fold="LayerPlan"]')
    page.evaluate("document.querySelector('#CachePolicy input[value=off]').click()")
    page.wait_for_selector("#LayerPlan input[value=early-exit]:enabled")
    page.focus("#LayerPlan input[value=early-exit]")
    page.evaluate("document.querySelector('#CachePolicy input[value=h2o]').click()")
    page.wait_for_selector("#LayerPlan input[value=early-exit][aria-disabled]")
    assert page.evaluate("document.activeElement.value") == "early-exit"
    page.keyboard.press("Space")
    assert not page.is_checked("#LayerPlan input[value=early-exit]")


def test_the_main_knob_is_in_view_wherever_its_switch_is(visit: Any, site: Site) -> None:
    page = visit(f"{site.url}?m=smollm2-135m&p=hi&t=streaming-llm,prompt-lookup")
    knobs = ("#knob-streaming-llm-budget", "#knob-prompt-lookup-length")
    for name in knobs:
        page.wait_for_selector(name)
    assert page.get_attribute('[data-fold="CachePolicy"]', "aria-expanded") == "false"
    page.click('[data-fold="Drafter"]')
    page.locator("[data-search]").first.fill("wanda")
    for name in knobs:
        assert page.is_visible(name)


def test_the_estimate_knows_of_a_window(visit: Any, site: Site) -> None:
    """Keys and values of 1 500 tokens, or of the 128 rows that stay and those that gather before an eviction."""
    shown = []
    for more in ("", "&t=streaming-llm"):
        page = visit(f"{site.url}?m=smollm2-135m&p=hi&n=1500{more}")
        page.wait_for_selector("#fit .hint:has-text('KV cache')")
        settled(page)
        found = re.search(r"KV cache ([\d.]+) MB", page.inner_text("#fit"))
        assert found
        shown.append(float(found[1]))
    assert shown[1] < 0.2 * shown[0]

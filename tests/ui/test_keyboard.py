"""Every function of the page by the keyboard alone: what Tab reaches, in which order, seen, and operated by keys."""

from __future__ import annotations

from typing import Any

import pytest

from tests.held import Gate
from tests.ui.conftest import PANEL, Site
from tests.ui.test_browser import settled, until

pytestmark = pytest.mark.browser

HERE = """() => {
    const e = document.activeElement;
    if (!e || e === document.body) return null;
    const name = (n) => n.id || n.dataset?.view || n.dataset?.fold || "";
    const owners = [];
    for (let n = e; n; n = n.parentElement) if (name(n)) owners.push(name(n));
    // What is drawn around a focused control: on itself, or on what holds a control that draws nothing itself.
    let seen = false;
    for (let n = e, i = 0; n && i < 3; n = n.parentElement, i++) {
        const s = getComputedStyle(n);
        seen ||= s.outlineStyle !== "none" && parseFloat(s.outlineWidth) > 0;
    }
    const text = e.getAttribute("aria-label") || e.innerText || e.value || e.className;
    return { owners, text: String(text).trim().slice(0, 40), tag: e.tagName, seen };
}"""


def walk(page: Any, most: int = 220) -> list[dict[str, Any]]:
    """What Tab comes to, from the top of the page to its end."""
    page.locator("h1").click()
    found: list[dict[str, Any]] = []
    nowhere = 0
    for _ in range(most):
        page.keyboard.press("Tab")
        here = page.evaluate(HERE)
        # A long open list of Gradio's takes the focus and closes: the next Tab goes on behind it.
        nowhere = 0 if here else nowhere + 1
        if nowhere > 1 or (len(found) > 5 and here == found[0]):
            break
        found += [here] if here else []
    return found


def order(stops: list[dict[str, Any]]) -> list[str]:
    """Everything that Tab came into, by name, in the order of the first time."""
    return list(dict.fromkeys(name for stop in stops for name in stop["owners"]))


def tab_to(page: Any, css: str, most: int = 220) -> None:
    """Press Tab until the focus is on, or in, what the selector names."""
    for _ in range(most):
        if page.evaluate("css => Boolean(document.activeElement?.closest(css))", css):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {css}")


def test_tab_reaches_everything_in_order_and_is_seen(visit: Any, site: Site) -> None:
    page = visit(site.link(p="hello", t="prompt-lookup"))
    settled(page)
    page.wait_for_selector("#box-prompt-lookup")
    stops = walk(page)
    owners = order(stops)
    expected = (
        "playground studies language copy-link model weights architectures search Drafter knob-prompt-lookup-length "
        "CachePolicy WeightTransform LayerPlan Acceptor AttentionPattern advanced prompt run ab stop examples live "
        "recorded recorded-lookup recorded-tree open-trace after"
    )
    missing = [name for name in expected.split() if name not in owners]
    assert missing == [], stops
    assert owners.index("prompt") < owners.index("run") < owners.index("ab") < owners.index("stop")
    assert owners.index("stop") < owners.index("live") < owners.index("recorded-lookup") < owners.index("after")
    assert [s for s in stops if not s["seen"]] == []
    texts = [s["text"] for s in stops if "live" in s["owners"]]
    assert {"Play", "Passes shown"} <= {*texts}, texts


def test_a_run_by_keys_alone(visit: Any, site: Site, passes: Gate) -> None:
    page = visit(site.link(n=24))
    settled(page)
    page.locator("h1").click()
    tab_to(page, "#Drafter input[value=prompt-lookup]")
    page.keyboard.press("Space")
    page.wait_for_selector("#controls .box[id]:visible")
    page.locator("h1").click()
    tab_to(page, "#examples")
    page.keyboard.press("Enter")
    tab_to(page, "#examples .chips button")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#prompt textarea').value.length > 20")
    page.locator("h1").click()
    tab_to(page, "#prompt textarea")
    page.keyboard.press("Control+A")
    page.keyboard.type("hello hello hello")
    passes.shut(after=8)
    tab_to(page, "#run")
    page.keyboard.press("Enter")
    until(page, "d.state == 'running' && +d.passes > 0")
    tab_to(page, "#stop")
    page.keyboard.press("Space")
    until(page, "d.state == 'done'")
    passes.open()
    page.locator("h1").click()
    tab_to(page, "#ab")
    page.keyboard.press("Enter")
    d = until(page, "d.state == 'done' && +d.tokensStack == 24")
    assert d["tokensBaseline"] == "24"
    tab_to(page, f"{PANEL} button.back")
    page.keyboard.press("Enter")
    until(page, "+d.cursor == +d.passes - 1")
    page.wait_for_selector("#whose .account_of:visible")
    tab_to(page, "#after [role=tab]")
    for _ in range(8):
        if page.is_visible("#export-trace"):
            break
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
    tab_to(page, "#export-trace")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.path()


def test_recorded_runs_folds_studies_and_copy_by_keys(visit: Any, site: Site) -> None:
    page = visit(site.link(p="hello"))
    settled(page)
    page.locator("h1").click()
    tab_to(page, "#recorded-tree")
    page.keyboard.press("Enter")
    page.wait_for_function("location.search.includes('multi-draft')")
    page.locator("h1").click()
    tab_to(page, '[data-fold="CachePolicy"]')
    page.keyboard.press("Enter")
    assert page.get_attribute('[data-fold="CachePolicy"]', "aria-expanded") == "true"
    page.locator("h1").click()
    tab_to(page, "#copy-link")
    page.keyboard.press("Enter")
    page.wait_for_selector("#copy-link:has-text('Link copied')")
    page.locator("h1").click()
    tab_to(page, '[data-view="studies"]')
    page.keyboard.press("Enter")
    page.wait_for_selector("#study-run:visible")
    stops = order(walk(page))
    expected = "bench-sweep study-model study-weights study-run study-stop study-card study-reproduce"
    assert [name for name in expected.split() if name not in stops] == [], stops


def test_the_language_is_switched_with_what_the_controls_show(visit: Any, site: Site) -> None:
    page = visit(site.link(p="first"))
    settled(page)
    counted = page.inner_text("#prompt-count")
    page.fill("#prompt textarea", "second words")
    # Gradio's client complains of a request that the switch cuts off, so the count of these words must have come.
    page.wait_for_function("counted => document.querySelector('#prompt-count').innerText !== counted", arg=counted)
    page.locator("h1").click()
    tab_to(page, "#language")
    page.keyboard.press("Enter")
    page.wait_for_selector("#run:has-text('运行')")
    page.wait_for_selector(f'{PANEL}[data-state="recorded"]')
    page.wait_for_selector("#story:has-text('基线')")
    page.wait_for_function("document.querySelector('#prompt textarea').value === 'second words'")
    assert "录制的运行" in page.inner_text(PANEL)
    assert page.get_attribute("html", "lang") == "zh-CN"
    settled(page)
    page.click("#language")
    page.wait_for_selector("#run:has-text('Run')")
    page.wait_for_selector("#story:has-text('baseline')")

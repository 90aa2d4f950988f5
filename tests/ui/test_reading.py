"""What stands on the page can be read: enough contrast everywhere, and whole words in one font."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.held import Gate
from tests.ui.conftest import Site
from tests.ui.test_browser import settled, until

pytestmark = pytest.mark.browser

CONTRAST = Path(__file__).with_name("contrast.js").read_text(encoding="utf-8").partition("\n")[2].strip()
LEAST = 4.5
UNFOLD = """() => {
    for (const b of document.querySelectorAll(".fold[aria-expanded=false], button.label-wrap:not(.open)")) b.click();
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(visit: Any, site: Site, passes: Gate, scheme: str) -> None:
    page = visit(f"{site.link(p='hello hello hello', n=24, t='prompt-lookup')}&__theme={scheme}", color_scheme=scheme)

    def faint(what: str) -> list[list[str]]:
        page.wait_for_timeout(400)
        return [[what, *found] for found in page.evaluate(f"({CONTRAST})({LEAST})")]

    settled(page)
    found = faint("a recorded run")
    for name in ("tree", "exit"):
        page.click(f"#recorded-{name}")
        page.wait_for_function(f"location.search.includes('{'multi-draft' if name == 'tree' else 'early-exit'}')")
        found += faint(name)
    page.evaluate(UNFOLD)
    found += faint("everything unfolded")
    bad = site.link(p="hello hello hello", n=24, t="prompt-lookup", w="foo")
    page = visit(f"{bad}&__theme={scheme}", color_scheme=scheme)
    settled(page)
    page.fill("#prompt textarea", "x" * 600)
    page.wait_for_selector("#prompt-count .refusal")
    found += faint("a bad link and a long prompt")
    page.fill("#prompt textarea", "hello hello hello")
    passes.shut(after=6)
    page.click("#ab")
    until(page, "d.state == 'running' && +d.passes > 0")
    found += faint("a run")
    passes.open()
    until(page, "d.state == 'done'")
    page.wait_for_selector("#whose .account_of:visible")
    for tab in ("What happened", "Charts", "Passes", "Quality", "Reproduce", "Export"):
        page.get_by_role("tab", name=tab).click()
        found += faint(tab)
    page.click("[data-view=studies]")
    found += faint("studies")
    assert found == []


@pytest.mark.parametrize("lang", ["en-US", "zh-CN"])
def test_no_word_is_pieced_together_from_two_fonts(visit: Any, site: Site, lang: str) -> None:
    """A font file without some letters leaves them to another font, in the middle of a word."""
    page = visit(site.url, locale=lang)
    page.wait_for_selector("#story strong")
    tools = page.context.new_cdp_session(page)
    for method in ("DOM.enable", "CSS.enable"):
        tools.send(method)
    root = tools.send("DOM.getDocument")["root"]["nodeId"]
    latin = r"/^[\x20-\x7e]*[A-Za-z]{3}[\x20-\x7e]*$/"
    page.evaluate(
        f"for (const e of document.querySelectorAll('button, b, strong, h1, h3, span, p, li')) "
        f"if (!e.children.length && e.offsetParent && {latin}.test(e.textContent)) e.dataset.word = '1'"
    )
    nodes = tools.send("DOM.querySelectorAll", {"nodeId": root, "selector": "[data-word]"})["nodeIds"]
    assert len(nodes) > 20
    for node in nodes:
        fonts = tools.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]
        assert len(fonts) <= 1, (fonts, tools.send("DOM.getOuterHTML", {"nodeId": node})["outerHTML"][:200])

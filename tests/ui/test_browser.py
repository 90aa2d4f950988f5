"""The page in Chromium, as its visitors use it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmlab.measure import trace
from llmlab.runtime.events import Committed, Drafted, Event, Exited, Finished, Prefilled, Started
from llmlab.ui.playground.samples import RUNS, recordings
from tests.held import PATIENCE, Gate
from tests.ui.conftest import PANEL, Site

pytestmark = pytest.mark.browser


def state(page: Any) -> dict[str, str]:
    return page.eval_on_selector(PANEL, "e => ({...e.dataset})")


def until(page: Any, condition: str) -> dict[str, str]:
    """Wait until `condition` holds of d, the panel's data attributes."""
    holds = f"(() => {{ const d = document.querySelector('{PANEL}').dataset; return {condition}; }})()"
    page.wait_for_function(holds, polling=100)
    return state(page)


def open_trace(page: Any, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.click("#open-trace")
    chooser.value.set_files(str(path))


def settled(page: Any) -> None:
    """Wait until the page has taken its link in: it then writes the link anew, without what is as by default."""
    page.wait_for_function("window.llmlabReady")


def test_the_first_visit_has_a_recorded_run_that_replays(visit: Any, site: Site) -> None:
    page = visit(site.url)
    first = state(page)
    assert int(first["passes"]) > 3
    assert first["cursor"] == first["passes"]
    assert page.locator("#recorded button").count() >= 3
    page.locator("h1").click()
    page.keyboard.press("Home")
    until(page, "d.cursor == '0'")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    until(page, "d.cursor == '2'")
    page.keyboard.press("ArrowLeft")
    until(page, "d.cursor == '1'")
    page.keyboard.press("End")
    until(page, "d.cursor == d.passes")
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    until(page, "+d.cursor > 2")
    page.wait_for_selector("#after:has-text('What happened')")
    page.wait_for_selector("#story:has-text('tokens per second')")


def test_every_recorded_run_opens_and_sets_the_controls(visit: Any, site: Site) -> None:
    page = visit(site.url)
    for item in recordings():
        last = [e for e in trace.load(RUNS / item["file"]) if isinstance(e, Started)][-1]
        page.click(f"#recorded-{item['id']}")
        page.wait_for_function(
            "p => document.querySelector('#prompt textarea').value === p", arg=last.settings["prompt"]
        )
        names = [t["id"] for t in last.stack]
        page.wait_for_function("names => names.every(n => location.search.includes(n))", arg=names)
        assert state(page)["state"] == "recorded"


def test_run_streams_tokens_and_leaves_an_account(visit: Any, site: Site) -> None:
    page = visit(site.link(p="hello hello hello", t="prompt-lookup"))
    settled(page)
    page.click("#run")
    d = until(page, "d.state == 'done'")
    assert d["tokensStack"] == "24"
    page.wait_for_selector("#story:has-text('24 tokens')")
    page.get_by_role("tab", name="Charts").click()
    page.wait_for_function(
        """() => {
            const count = what => document.querySelectorAll(`#figures ${what}`).length;
            const shown = count(".js-plotly-plot");
            return shown >= 4 && count('[data-title*="Download plot as a PNG"]') === shown;
        }"""
    )
    page.get_by_role("tab", name="Passes").click()
    page.wait_for_selector("#rounds-table:has-text('Drafted')")
    page.get_by_role("tab", name="Reproduce").click()
    page.wait_for_selector("#command")
    assert "--technique prompt-lookup" in page.inner_text("#command")
    assert "Lab()" in page.inner_text("#python")
    page.get_by_role("tab", name="Export").click()
    with page.expect_download() as download:
        page.click("#export-trace")
    assert trace.load(download.value.path())
    with page.expect_download() as download:
        page.click("#export-record")
    assert json.loads(download.value.path().read_text())["schema"] == "llmlab.run/1"
    with page.expect_download() as download:
        page.click("#export-rounds")
    assert download.value.path().read_text().startswith("round,t,seconds")


def test_a_b_shows_both_and_measures_quality(visit: Any, site: Site) -> None:
    page = visit(site.link(p="hello hello hello", t="prompt-lookup"))
    settled(page)
    page.click("#ab")
    d = until(page, "d.state == 'done'")
    assert d["tokensBaseline"] == d["tokensStack"] == "24"
    page.wait_for_selector("#story:has-text('identical to the baseline')")
    page.wait_for_selector("#story:has-text('Verdict: ')")
    page.get_by_role("tab", name="Quality").click()
    page.wait_for_selector("#quality-table:has-text('KL divergence')")
    page.wait_for_selector("#quality-table:has-text('Nothing to measure')")


def test_stop_keeps_what_there_is(visit: Any, site: Site, passes: Gate) -> None:
    page = visit(site.link(p="hello", n=480))
    settled(page)
    passes.shut(after=8)
    page.click("#run")
    before = int(until(page, "d.state == 'running' && +d.tokensBaseline > 3")["tokensBaseline"])
    page.keyboard.press("Escape")
    d = until(page, "d.state == 'done'")
    assert 3 < before <= int(d["tokensBaseline"]) < 480
    page.wait_for_selector("#story h3")


def test_ctrl_enter_runs_what_has_just_been_typed(visit: Any, site: Site) -> None:
    page = visit(site.link(p="first"))
    settled(page)
    page.fill("#prompt textarea", "second words")
    page.focus("#prompt textarea")
    page.keyboard.press("Control+Enter")
    until(page, "d.state == 'done'")
    assert site.engine.latest is not None
    page.wait_for_function("location.search.includes('second+words')")


def test_a_link_restores_the_state(visit: Any, site: Site) -> None:
    query = {
        "p": "from a link",
        "t": "h2o,magnitude",
        "magnitude.ratio": 0.45,
        "h2o.budget": 64,
        "seed": 7,
        "temp": 0.5,
    }
    page = visit(site.link(**query))
    settled(page)
    assert page.input_value("#prompt textarea") == "from a link"
    page.wait_for_selector("#box-h2o")
    assert page.is_checked('#CachePolicy input[value="h2o"]')
    assert page.input_value("#knob-magnitude-ratio input[type=number]") == "0.45"
    page.click("#copy-link")
    page.wait_for_function("location.search.includes('magnitude.ratio=0.45')")
    for part in ("seed=7", "temp=0.5", "h2o.budget=64", "p=from+a+link"):
        assert part in page.url


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"w": "foo"}, "No weight format is called 'foo'"),
        ({"m": "nope"}, "nope"),
        ({"t": "no-such-thing,h2o", "h2o.budget": "-5"}, "No technique is called .*whole number from"),
        ({"n": "1e99", "run": "gone", "chat": "maybe", "seed": "x", "%": "%zz"}, "run=gone .*n=1e99 .*seed=x"),
        ({"study": "gone"}, "No study is called"),
    ],
)
def test_a_bad_link_opens_with_defaults_and_one_sentence(
    visit: Any, site: Site, query: dict[str, str], says: str
) -> None:
    page = visit(site.link(p="hi", **query))
    settled(page)
    place = "#study-progress" if "study" in query else "#refusal"
    page.wait_for_selector(f"{place} [role=alert]")
    told = page.locator(f"{place} [role=alert]").all_inner_texts()
    assert len(told) == 1
    assert told[0].startswith("This link opened with defaults"), told
    assert re.search(says, told[0]), told
    if "study" in query:
        return
    assert page.input_value("#prompt textarea") == "hi", "what is good of it is kept"
    if "h2o" in query.get("t", ""):
        page.wait_for_selector("#box-h2o")
    page.click("#run")
    until(page, "d.state == 'done' || d.state == 'error'")


def test_an_impossible_switch_is_greyed_with_its_reason(visit: Any, site: Site) -> None:
    page = visit(f"{site.url}?m=smollm2-135m&p=hi&t=prompt-lookup")
    page.wait_for_selector("#reason-LayerPlan", state="attached")
    page.click('[data-fold="LayerPlan"]')
    page.wait_for_selector("#reason-LayerPlan:has-text('Switch one of them off')")
    page.wait_for_selector("#LayerPlan input[value=early-exit]:disabled")
    page.wait_for_selector("#stack-badge:has-text('lossless')")
    page.check('#Drafter input[value="off"]', force=True)
    page.wait_for_selector("#reason-LayerPlan", state="detached")
    page.wait_for_selector("#LayerPlan input[value=early-exit]:enabled")


def test_a_rule_of_acceptance_waits_for_a_drafter(visit: Any, site: Site) -> None:
    page = visit(f"{site.url}?m=smollm2-135m&p=hi&t=h2o")
    page.wait_for_selector("#reason-Acceptor", state="attached")
    page.click('[data-fold="Acceptor"]')
    page.wait_for_selector("#reason-Acceptor:has-text('works beside a technique for guessing the next tokens')")
    page.wait_for_selector("#Acceptor input[value=typical]:disabled")
    page.check('#Drafter input[value="prompt-lookup"]')
    page.wait_for_selector("#Acceptor input[value=typical]:enabled")
    page.check('#Acceptor input[value="typical"]')
    page.wait_for_selector("#stack-badge .badge-lossy")


def test_a_switch_among_several_is_greyed_too(visit: Any, site: Site) -> None:
    page = visit(f"{site.url}?m=gpt2&p=hi")
    page.click('[data-fold="WeightTransform"]')
    page.wait_for_selector("#reason-WeightTransform:has-text('does not offer')")
    page.wait_for_selector("#WeightTransform input[name=layer-drop]:disabled")


def test_families_fold_and_a_search_finds_what_is_folded(visit: Any, site: Site) -> None:
    page = visit(f"{site.url}?m=smollm2-135m&p=hi&t=h2o,wanda")
    settled(page)

    def shown(name: str) -> bool:
        return page.locator(f'#controls label:has(input:is([value="{name}"], [name="{name}"]))').is_visible()

    page.wait_for_selector("#box-h2o")
    assert shown("prompt-lookup"), "the first family is open"
    assert shown("h2o"), "what is on is shown wherever it is"
    assert shown("wanda")
    assert not shown("streaming-llm")
    assert not shown("early-exit")
    page.focus('[data-fold="CachePolicy"]')
    page.keyboard.press("Enter")
    assert shown("streaming-llm")
    assert page.get_attribute('[data-fold="CachePolicy"]', "aria-expanded") == "true"
    page.keyboard.press("Enter")
    assert not shown("streaming-llm")
    search = page.locator("[data-search]").first
    search.fill("hitters heavy")
    assert shown("h2o")
    assert not shown("streaming-llm")
    assert not page.is_visible("#family-Drafter")
    search.fill("early exit")
    assert shown("early-exit")
    search.fill("nothing like it")
    assert page.is_visible("[data-search-none]")
    search.fill("")
    assert shown("prompt-lookup")
    assert not shown("early-exit")


def test_at_most_seven_controls_before_advanced(visit: Any, site: Site) -> None:
    page = visit(f"{site.url}?m=smollm2-135m&p=hi")
    settled(page)
    page.wait_for_selector("#prompt")
    shown = page.evaluate(
        """() => [...document.querySelectorAll('#controls .block, #main > .form .block')]
            .filter(b => b.offsetParent && b.querySelector('input, textarea') && !b.closest('#advanced'))
            .map(b => b.id)"""
    )
    assert 4 <= len(shown) <= 7, shown


def test_a_refusal_loses_nothing(visit: Any, site: Site) -> None:
    page = visit(site.link(p="something", n=24))
    settled(page)
    before = state(page)["passes"]
    page.fill("#prompt textarea", "   ")
    page.click("#run")
    page.wait_for_selector("#refusal [role=alert]:has-text('The prompt is empty')")
    assert state(page)["passes"] == before
    page.fill("#prompt textarea", "x" * 600)
    page.click("#run")
    until(page, "d.state == 'error'")
    page.wait_for_selector(f"{PANEL}:has-text('reads at most 512')")
    assert page.input_value("#prompt textarea") == "x" * 600


def a_tree() -> list[Event]:
    """Two passes with trees of which nodes 0, 2 and 4 are accepted, then none; the second pass left after 3 layers."""
    nodes = [-1, -1, 0, 0, 2]
    texts = [" one", " won", " two", ATTACK, " three"]
    settings = {"prompt": "count", "max_new_tokens": 8}
    return [
        Started(0.0, "tiny", "stack", "cpu", "int4", [], settings, 2, 4, 1000, True, ["co", "unt"]),
        Prefilled(0.1, 1, 1, 100, [1] * 4),
        Drafted(0.2, [1, 2, 3, 4, 5], nodes, 0.01, texts),
        Committed(0.3, [1, 3, 5, 6], [0, 2, 4], 0.1, [5] * 4, 500, 4.0, [" one", " two", " three", " four"]),
        Drafted(0.4, [1, 2, 3, 4, 5], nodes, 0.01, texts),
        Exited(0.5, 3, 4, 0.9),
        Committed(0.5, [7], [], 0.1, [6] * 4, 600, 3.0, [" five"]),
        Finished(0.6, "limit"),
    ]


@pytest.mark.parametrize("lang", ["en-US", "zh-CN"])
def test_a_tree_of_drafts_is_drawn_as_one(visit: Any, site: Site, tmp_path: Any, lang: str) -> None:
    path = tmp_path / "tree.jsonl"
    path.write_text(trace.dumps(a_tree()), encoding="utf-8")
    page = visit(site.url, locale=lang)
    assert not page.is_visible("[data-tree]"), "a run without trees has no place for them"
    open_trace(page, path)
    page.wait_for_selector("[data-tree] svg")
    tree = page.locator("[data-tree]")
    drawn = [tree.locator(f".node.{kind}").count() for kind in ("root", "accepted", "rejected", "own")]
    assert drawn == [1, 0, 5, 1], "the last pass accepted nothing"
    page.locator("h1").click()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("document.querySelectorAll('[data-tree] .node.accepted').length === 3")
    assert tree.locator(".edge.accepted").count() == 3
    assert tree.locator(".node.accepted text").all_text_contents() == ["one", "two", "three"]
    assert tree.locator(".node.own text").text_content() == "four"
    thick, bold = (
        page.eval_on_selector(f"[data-tree] {what}", f"e => parseInt(getComputedStyle(e).{how})")
        for what, how in ((".edge.accepted", "strokeWidth"), (".node.accepted text", "fontWeight"))
    )
    assert thick > 2
    assert bold >= 700
    assert page.locator("[data-tree] [role=img]").get_attribute("aria-label")
    assert page.is_visible("[data-chart=exits]")
    told = page.get_attribute("[data-chart=exits] canvas", "aria-label")
    assert "4" in told
    assert page.evaluate("window.pwned") is None


def test_parents_that_cannot_be_do_no_harm(visit: Any, site: Site, tmp_path: Any) -> None:
    events = a_tree()
    events[2] = Drafted(0.2, [1, 2, 3, 4, 5], [4, 1, 99, -7, 0], 0.01, ["a", "b", "c", "d", "e"])
    events[3] = Committed(0.3, [1, 3, 5, 6], [0, 2, 77], 0.1, [5] * 4, 500, 4.0, ["a", "c", "e", "f"])
    path = tmp_path / "odd.jsonl"
    path.write_text(trace.dumps(events), encoding="utf-8")
    page = visit(site.url)
    open_trace(page, path)
    page.wait_for_selector("[data-tree] svg")
    page.locator("h1").click()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("document.querySelectorAll('[data-tree] .node.accepted').length === 2")


ATTACK = '<img src=x onerror="window.pwned=1"> ${7*7} {{7*7}} <script>window.pwned=2</script> `${window.pwned=3}`'


def harmless(page: Any) -> None:
    """No part of ATTACK has become more than text: no image of it is there, and none has failed to load."""
    assert page.locator("img[src=x]").count() == 0
    page.evaluate("new Promise(seen => { const i = new Image(); i.onerror = seen; i.src = 'data:image/png,'; })")
    assert page.evaluate("window.pwned") is None


def test_hostile_text_is_only_text(visit: Any, site: Site) -> None:
    page = visit(site.link(p=ATTACK, t="prompt-lookup"))
    settled(page)
    page.click("#ab")
    until(page, "d.state == 'done'")
    page.wait_for_selector("#story:has-text('baseline')")
    show = page.locator(f"{PANEL} button:has-text('prompt')").first
    show.click()
    assert "${7*7}" in page.inner_text(PANEL)
    assert "onerror" in page.inner_text(PANEL)
    for tab, shown in (("Passes", "#rounds-table"), ("Reproduce", "#command")):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_selector(shown)
        harmless(page)


def test_a_hostile_trace_is_only_text(visit: Any, site: Site, tmp_path: Any) -> None:
    lines = (RUNS / recordings()[0]["file"]).read_text(encoding="utf-8").splitlines()
    poisoned = []
    for line in lines:
        value = json.loads(line)
        if "text" in value:
            value["text"] = [ATTACK for _ in value["text"]]
        for key in ("model", "device", "reason", "technique", "note"):
            if key in value:
                value[key] = ATTACK
        poisoned.append(json.dumps(value))
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(poisoned), encoding="utf-8")
    page = visit(site.url)
    open_trace(page, bad)
    page.wait_for_function(f"document.querySelector('{PANEL}').innerText.includes('onerror')")
    harmless(page)


def test_a_broken_trace_is_refused_in_a_sentence(visit: Any, site: Site, tmp_path: Any) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"schema": "llmlab.trace/1"}\n{"event": "Star', encoding="utf-8")
    page = visit(site.url)
    before = state(page)["passes"]
    open_trace(page, broken)
    page.wait_for_selector("#refusal [role=alert]:has-text('damaged at line 2')")
    assert state(page)["passes"] == before


def test_two_visitors_at_once(visit: Any, site: Site, passes: Gate) -> None:
    """The second sees its place in the queue, and runs when the first is done."""
    first, second = visit(site.link(p="hello", n=60)), visit(site.link(p="hello", n=8))
    settled(first)
    settled(second)
    passes.shut(after=8)
    first.click("#run")
    until(first, "d.state == 'running'")
    second.click("#run")
    until(second, "d.state == 'queued'")
    second.wait_for_function(f"/1 run .*before/i.test(document.querySelector('{PANEL}').innerText)")
    passes.open()
    for page, tokens in ((first, "60"), (second, "8")):
        assert until(page, "d.state == 'done'")["tokensBaseline"] == tokens


def test_closing_the_tab_stops_the_engine(visit: Any, site: Site, passes: Gate) -> None:
    page = visit(site.link(p="hello", n=480))
    settled(page)
    passes.shut(after=8)
    page.click("#ab")
    until(page, "d.state == 'running'")
    run = next(r for r in reversed(list(site.engine._jobs.values())) if not r.over)
    page.close()
    assert run.ended.wait(PATIENCE), "a shut gate lets only a run through that has been asked to stop"
    assert run.stop.is_set()


def test_chinese(visit: Any, site: Site) -> None:
    page = visit(site.url, locale="zh-CN")
    page.wait_for_selector("#run:has-text('运行')")
    page.wait_for_selector("#story:has-text('基线')")
    page.wait_for_selector("#title:has-text('看清大模型')")
    assert "See how" not in page.inner_text("#title")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(visit: Any, site: Site, scheme: str) -> None:
    page = visit(f"{site.url}?__theme={scheme}", color_scheme=scheme)
    rgb = page.evaluate(
        "getComputedStyle(document.body).backgroundColor + '|' + getComputedStyle(document.querySelector('h1')).color"
    )
    back, ink = ([int(x) for x in re.findall(r"\d+", c)[:3]] for c in rgb.split("|"))
    assert (sum(back) > sum(ink)) == (scheme == "light")


def test_the_phone_shows_everything_without_sideways_scrolling(visit: Any, site: Site) -> None:
    page = visit(site.url, width=390)
    page.wait_for_selector("#story h3")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("#run", "#ab", "#stop", PANEL, "#model"):
        box = page.locator(name).first.bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 391


def test_it_can_be_installed(visit: Any, site: Site) -> None:
    page = visit(site.url)
    href = page.get_attribute('link[rel="manifest"]', "href")
    manifest = page.evaluate("h => fetch(h).then(r => r.json())", href)
    assert manifest["icons"]
    assert page.evaluate("u => fetch(u).then(r => r.ok)", manifest["icons"][0]["src"])

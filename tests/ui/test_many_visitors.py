"""What lets two hundred visitors and several tabs of one browser be there at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr
import httpx
import pytest
import transformers
from gradio.state_holder import SessionState

from llmlab.lab.queue import Engine
from llmlab.ui import prompt_length
from llmlab.ui.page import Page, launch_options
from tests import made
from tests.held import Gate
from tests.stress_browser import MOST_TABS, Script
from tests.ui.conftest import Site


def test_a_visitor_who_arrives_costs_the_page_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio would describe each component anew for everyone, and answer nobody meanwhile."""
    demo = Page(Engine()).build()
    described: list[Any] = []
    whole = gr.components.Component.get_config
    monkeypatch.setattr(gr.components.Component, "get_config", lambda *a: described.append(a) or whole(*a))
    state = SessionState(demo)
    assert described == []
    assert len(state.blocks_config.fns) == len(demo.fns)
    demo.get_config_file()
    assert described, "the page itself is described"


def test_two_hundred_may_wait_beside_the_page_s_short_events() -> None:
    page = Page(Engine())
    demo = page.build()
    streams = [fn for fn in demo.fns.values() if fn.api_name in ("run", "compare", "study")]
    assert len(streams) == 3
    assert all(fn.concurrency_limit >= 200 for fn in streams)
    assert launch_options(page)["max_threads"] > 200
    assert demo._queue.max_size >= 200
    demo.create_limiter()
    assert demo.limiter.total_tokens < 16, "many threads at once keep the page from answering"


def test_the_page_s_short_events_do_not_share_the_stream_of_a_run() -> None:
    """An answer that comes while the stream of those before is being closed is lost, and its control is dead."""
    demo = Page(Engine()).build()
    short = [fn for fn in demo.fns.values() if fn.fn is not None and fn.api_name not in ("run", "compare", "study")]
    assert len(short) > 10
    assert [fn.name for fn in short if fn.queue is not False] == []


def test_a_class_that_counts_its_prompts_reads_one_tokenizer_and_builds_no_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A prompt is counted by its tokenizer and its model's context, while the engine computes in another thread."""
    folder, read = made.folder(tmp_path / "tiny"), []
    whole = prompt_length.read_tokenizer
    monkeypatch.setattr(prompt_length, "read_tokenizer", lambda found: read.append(found) or whole(found))
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_config", lambda *a, **k: pytest.fail("builds a model"))
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda _: prompt_length.length(str(folder), "hello", False), range(20)))
    assert len(read) == 1
    assert len(set(found)) == 1
    assert found[0].context == 512


def test_a_tab_holds_no_connection_of_its_own(site: Site) -> None:
    assert httpx.get(f"{site.url}config").json()["connect_heartbeat"] is False


@pytest.mark.browser
def test_tabs_that_run_leave_room_to_stop_them(browser: Any, site: Site, passes: Gate) -> None:
    """A browser opens six connections to a host: as many tabs as may be open run, and Stop still arrives."""
    passes.shut(after=3)
    context = browser.new_context(locale="en-US")
    context.set_default_timeout(60_000)
    try:
        tabs = [context.new_page() for _ in range(MOST_TABS)]
        for i, tab in enumerate(tabs):
            tab.goto(f"{site.url}?{urlencode({'m': site.model, 'n': 24, 'p': f'tab {i}'})}")
            Script.ready(tab)
            tab.click("#run")
            tab.wait_for_function("['queued', 'running'].includes(window.__llmlab.state.state)")
        for tab in reversed(tabs):
            tab.click("#stop")
            tab.wait_for_function("window.__llmlab.state.state === 'done'")
    finally:
        passes.open()
        context.close()

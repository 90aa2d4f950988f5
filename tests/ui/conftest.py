from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

from llmlab.lab.queue import Engine
from llmlab.lab.study import studies
from llmlab.ui.page import Page, launch_options
from llmlab.ui.playground import handlers
from tests import made
from tests.held import PATIENCE, Gate, HeldLab
from tests.ui.tiny_count import TinyCount

CHROMIUM = shutil.which("chromium")
PANEL = "[data-testid=live-panel]"


@dataclass
class Site:
    """A running page with a tiny model beside the catalogue and a quick study beside the others."""

    url: str
    model: str
    engine: Engine

    def link(self, **parameters: Any) -> str:
        return f"{self.url}?{urlencode({'m': self.model, 'n': 24} | parameters)}"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = made.folder(tmp_path_factory.mktemp("models") / "tiny")
    studies()["tiny-count"] = TinyCount
    engine = Engine(HeldLab())
    page = Page(engine)
    demo = page.build()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    demo.launch(server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, **launch_options(page))
    yield Site(f"http://127.0.0.1:{port}/", str(folder), engine)
    demo.close()
    del studies()["tiny-count"]


@pytest.fixture
def passes(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """The gate that the page's runs pass after each event.

    A run that is held open sends messages all the while; a browser that gets too little of a busy processor would fall
    behind them for ever, so they are rarer than on the page.
    """
    monkeypatch.setattr(handlers, "PERIOD", 0.5)
    gate = site.engine.lab.gate
    yield gate
    gate.open()


@pytest.fixture
def steps() -> Iterator[Gate]:
    """The gate that the counting study passes at each step."""
    yield TinyCount.gate
    TinyCount.gate.open()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        assert not os.environ.get("CI"), "the browser tests may not be skipped here: install chromium"
        pytest.skip("needs Debian's chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        launched = p.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Any, site: Site) -> Iterator[Any]:
    """visit(url, **context options) -> a page; console errors, page errors and foreign requests fail the test."""
    contexts, troubles = [], []

    def open_page(url: str, width: int = 1280, height: int = 900, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **{"locale": "en-US"} | options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE * 1000)
        page = context.new_page()
        page.on("console", lambda m: m.type == "error" and troubles.append(f"console: {m.text}"))
        page.on("pageerror", lambda e: troubles.append(f"page error: {e}"))
        home = urlsplit(site.url).netloc
        page.on(
            "request",
            lambda r: (
                urlsplit(r.url).scheme.startswith("http")
                and urlsplit(r.url).netloc != home
                and troubles.append(f"foreign request: {r.url}")
            ),
        )
        page.goto(url)
        page.wait_for_selector(f'{PANEL}[data-state="recorded"]', state="attached")
        return page

    yield open_page
    found = list(troubles)  # before the pages are closed: that breaks off what they are fetching
    for context in contexts:
        context.close()
    assert found == []

"""A browser whose visitors open, close and reload tabs, run, compare, stop and change techniques by a seeded script."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

PANEL = "[data-testid=live-panel]"
STACKS = ("", "prompt-lookup", "layer-skip", "h2o", "self-speculation", "layer-skip,h2o", "early-exit", "streaming-llm")
MOST_TABS = 5
"""A browser opens six connections to a host, and a tab that runs holds one."""
PATIENCE = 60_000
STOP_WITHIN = 5.0
"""Seconds for a press on Stop to be seen, with everything that a busy browser does in between."""


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    assert chromium, "needs Debian's chromium"
    with sync_playwright() as p:
        launched = p.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield launched
        launched.close()


class Script:
    """Tabs of one browser, which share its connections, and what was asked for in each."""

    def __init__(self, chromium: Any, url: str, model: str, dice: random.Random) -> None:
        self.url, self.model, self.dice = url, model, dice
        self.context = chromium.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
        self.context.set_default_timeout(PATIENCE)
        self.tabs: dict[Any, str] = {}
        self.pressed: dict[Any, str] = {}
        self.done: Counter[str] = Counter()
        self.troubles: list[str] = []

    def run(self, actions: int, seconds: float) -> dict[str, Any]:
        """So many actions, or as many as fit. Then every tab's last run must have come to its end, and be its own."""
        end = time.monotonic() + seconds
        verbs: dict[str, tuple[int, Callable[[], None]]] = {
            "open": (3, self.open),
            "close": (2, self.close),
            "reload": (2, self.reload),
            "change": (3, self.change),
            "run": (5, lambda: self.press("run")),
            "compare": (3, lambda: self.press("ab")),
            "stop": (3, self.stop),
            "wait": (3, self.wait),
        }
        while sum(self.done.values()) < actions and time.monotonic() < end:
            name = self.dice.choices(list(verbs), [weight for weight, _ in verbs.values()])[0]
            verbs[name][1]()
            self.done[name] += 1
        for tab in list(self.tabs):
            self.settled(tab)
        self.context.close()
        assert self.troubles == []
        return {"actions": sum(self.done.values()), **self.done}

    # Actions ------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        if len(self.tabs) >= MOST_TABS:
            self.close()
        tab = self.context.new_page()
        tab.on("pageerror", lambda e: self.troubles.append(f"page error: {e}"))
        self.tabs[tab] = ""
        self.change(tab)

    def any(self) -> Any:
        if not self.tabs:
            self.open()
        return self.dice.choice(list(self.tabs))

    def close(self) -> None:
        tab = self.any()
        del self.tabs[tab]
        self.pressed.pop(tab, None)
        tab.close()

    def reload(self) -> None:
        tab = self.any()
        self.pressed.pop(tab, None)
        tab.reload()
        self.ready(tab)

    def change(self, tab: Any = None) -> None:
        """Another link: another prompt, other techniques."""
        tab = tab or self.any()
        prompt = f"{self.dice.randrange(10**9)} {self.dice.choice(('lake stone', 'to be or not to be', 'a b a b a b'))}"
        link = {"m": self.model, "n": self.dice.choice((8, 24, 64)), "p": prompt, "c": "0"}
        stack = self.dice.choice(STACKS)
        self.tabs[tab] = prompt
        self.pressed.pop(tab, None)
        tab.goto(f"{self.url}?{urlencode(link | ({'t': stack} if stack else {}))}")
        self.ready(tab)

    def press(self, button: str) -> None:
        tab = self.any()
        before = self.told(tab)["run"]
        tab.click(f"#{button}")
        self.pressed[tab] = before or "none"

    def stop(self) -> None:
        tab = self.any()
        begun = time.monotonic()
        tab.click("#stop")
        if tab in self.pressed:
            self.settled(tab)
            taken = time.monotonic() - begun
            assert taken < STOP_WITHIN, f"Stop took {taken:.1f} s"

    def wait(self) -> None:
        self.any().wait_for_timeout(self.dice.choice((50, 200, 800)))

    # Looking ------------------------------------------------------------------------------------------------------

    @staticmethod
    def ready(tab: Any) -> None:
        tab.wait_for_selector(f'{PANEL}[data-state="recorded"]', state="attached")
        tab.wait_for_function("window.llmlabReady")

    @staticmethod
    def told(tab: Any) -> dict[str, Any]:
        """The panel's run, state and prompts."""
        script = """() => {
            const { events, state } = window.__llmlab;
            const prompts = events.filter(e => e.event === "Started").map(e => [].concat(e.prompt || []).join(""));
            return { run: state.run, state: state.state, note: state.note, lost: state.lost, prompts };
        }"""
        value: dict[str, Any] = tab.evaluate(script)
        return value

    def settled(self, tab: Any) -> None:
        """Wait until what was pressed last in a tab has come to its end; it must be of the tab's own prompt."""
        before = self.pressed.pop(tab, None)
        if before is None:
            return
        tab.wait_for_function(
            """before => {
                const s = window.__llmlab.state;
                return s.run !== before && ["done", "error"].includes(s.state);
            }""",
            arg=before,
            polling=50,
        )
        told = self.told(tab)
        assert not told["lost"], told
        assert all(self.tabs[tab] in p for p in told["prompts"]), (self.tabs[tab], told)


def may_be_left_out() -> bool:
    """Whether there is no browser here, on a machine that need not have one."""
    return shutil.which("chromium") is None and not os.environ.get("CI")

"""Fifty pupils press Run at once, and two in five leave in the middle."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

LEAVE = 0.4
"""The share of visitors who leave in the middle of what they asked for."""
PATIENCE = 120.0


@dataclass
class Visitor:
    """One who presses Run: the prompt, and after how many messages the visitor leaves (None: stays to the end)."""

    name: str
    prompt: str
    leaves: int | None
    tokens: list[int]
    told: str = ""
    state: str = ""
    seconds: float = 0.0
    first: float | None = None
    waited: bool = False


class Crowd:
    """Visitors of the page at `url`, who run the tiny `model` on prompts of their own."""

    def __init__(self, url: str, model: str, dice: random.Random, count: int, new_tokens: int = 48) -> None:
        self.url, self.model, self.dice, self.new_tokens = url, model, dice, new_tokens
        leaving = set(dice.sample(range(count), round(LEAVE * count)))
        self.visitors = [
            Visitor(f"v{dice.randrange(1 << 40)}", self._prompt(i), dice.randint(1, 4) if i in leaving else None, [])
            for i in range(count)
        ]

    def _prompt(self, i: int) -> str:
        words = ["lake", "stone", "winter", "letter", "garden", "number", "river", "clock"]
        return f"{i} " + " ".join(self.dice.choice(words) for _ in range(8))

    def run(self) -> dict[str, Any]:
        """All of them at once, then one more. Raises AssertionError for a text that is lost, or somebody else's."""
        in_its_own_loop(self._all_at_once())
        stayed = [v for v in self.visitors if v.leaves is None]
        want = self._expected([v.prompt for v in stayed])
        for visitor, (text, tokens) in zip(stayed, want, strict=True):
            assert visitor.state == "done", f"{visitor.name} was lost: {visitor.state}"
            assert visitor.told == text, f"{visitor.name} asked for {text!r} and was told of {visitor.told!r}"
            assert visitor.tokens == tokens, f"{visitor.name} got another text"
        fresh = Visitor("fresh", "a fresh start", None, [])
        in_its_own_loop(self._alone(fresh))
        assert fresh.first is not None, "nobody is served after the crowd"
        assert fresh.first < 5, f"after the crowd, the first token took {fresh.first:.1f} s"
        return {
            "served": len(stayed),
            "left": len(self.visitors) - len(stayed),
            "waited": sum(v.waited for v in stayed),
            "median_seconds": round(statistics.median(v.seconds for v in stayed), 1),
            "longest_seconds": round(max(v.seconds for v in stayed), 1),
            "fresh_seconds": round(fresh.first, 2),
        }

    async def _all_at_once(self) -> None:
        async with self._client() as client:
            call = await self._call(client)
            await asyncio.gather(*(self._visit(client, call, v) for v in self.visitors))

    async def _alone(self, visitor: Visitor) -> None:
        async with self._client() as client:
            await self._visit(client, await self._call(client), visitor)

    @staticmethod
    def _client() -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        return httpx.AsyncClient(trust_env=False, timeout=PATIENCE, limits=limits)

    async def _call(self, client: httpx.AsyncClient) -> tuple[int, list[Any], dict[str, int]]:
        """What a press on Run sends: the function's number, the controls as they are drawn, and where which one is."""
        config = (await client.get(f"{self.url}config")).json()
        (run,) = [d for d in config["dependencies"] if d.get("api_name") == "run"]
        drawn = {c["id"]: c["props"] for c in config["components"]}
        props = [drawn[i] for i in run["inputs"]]
        return run["id"], [p.get("value") for p in props], _places(props)

    async def _visit(self, client: httpx.AsyncClient, call: tuple[int, list[Any], dict[str, int]], v: Visitor) -> None:
        number, drawn, places = call
        data = list(drawn)
        asked = {"own": self.model, "prompt": v.prompt, "max_new_tokens": self.new_tokens, "chat": False}
        for name, value in asked.items():
            if name in places:
                data[places[name]] = value
        begun = time.monotonic()
        sent = {"data": data, "fn_index": number, "session_hash": v.name}
        joined = await client.post(f"{self.url}gradio_api/queue/join", json=sent)
        assert joined.status_code == 200, joined.text
        got, seen, last = 0, -1, None
        async with client.stream("GET", f"{self.url}gradio_api/queue/data", params={"session_hash": v.name}) as stream:
            async for line in stream.aiter_lines():
                message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if message.get("msg") == "process_completed":
                    break
                if message.get("msg") != "process_generating":
                    continue
                last = _newest(last, message["output"]["data"])
                if last["seq"] > seen:
                    seen = last["seq"]
                    self._take(v, last, time.monotonic() - begun)
                got += 1
                if v.leaves is not None and got >= v.leaves:
                    return
        v.seconds = time.monotonic() - begun

    @staticmethod
    def _take(v: Visitor, message: dict[str, Any], at: float) -> None:
        v.state = message["state"]
        v.waited |= message["state"] == "queued" and bool(message["note"])
        for e in json.loads(message["ev"]):
            if e["event"] == "Started":
                v.told = "".join(e["prompt"])
            if e["event"] == "Committed":
                v.tokens += e["tokens"]
                v.first = at if v.first is None else v.first

    def _expected(self, prompts: list[str]) -> list[tuple[str, list[int]]]:
        """(prompt as the model reads it, tokens) of each prompt, run here and alone."""
        from llmlab.lab.experiment import Lab
        from llmlab.lab.settings import Settings
        from llmlab.runtime.events import Committed, Started

        lab, found = Lab(), []
        for prompt in prompts:
            settings = Settings(self.model, prompt, max_new_tokens=self.new_tokens, chat=False)
            events = list(lab.run(lab.prepare(settings)))
            told = "".join(next(e.prompt for e in events if isinstance(e, Started)))
            found.append((told, [t for e in events if isinstance(e, Committed) for t in e.tokens]))
        return found


def in_its_own_loop(work: Coroutine[Any, Any, None]) -> None:
    """In another thread, for a browser that is driven from this one has a loop running here."""
    with ThreadPoolExecutor(1) as other:
        other.submit(asyncio.run, work).result()


def _newest(last: Any, sent: list[Any]) -> Any:
    """The message that a stream has brought: whole the first time, afterwards what has changed in it."""
    from gradio_client.utils import apply_diff

    return sent[0] if last is None else apply_diff(last, sent[0])


def _places(props: list[dict[str, Any]]) -> dict[str, int]:
    """Where a press on Run sends which control, by their names in a run's settings."""
    from llmlab.lab.queue import Engine
    from llmlab.ui.page import Page

    page = Page(Engine())
    page.build()
    names = list(page.form.fields)
    assert len(names) == len(props)
    return {name: i for i, name in enumerate(names)}

"""Many visitors at once and a browser that does whatever it likes, against a page in a process of its own.

`python -m tests.stress --seconds 60`, or `--minutes 20 --seed 7` by hand: fifty visitors press Run in the same moment
and two in five leave in the middle, then a seeded script of 200 actions in a browser, again and again. At the end no
run is lost, none has mixed with another, the queue is empty, memory is what it was, and the page has always answered.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SLOWEST = 2.0
"""Seconds within which the page must answer whoever asks for it."""
PAUSE = 0.25
"""Seconds between two questions to the page."""
GROWTH = 300e6
"""Bytes by which the server's memory may differ between two quiet moments."""


# The server -------------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A page over a tiny model in another process, which tells how it stands when asked on its standard input."""

    url: str
    process: subprocess.Popen[str]
    answers: list[float] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """`open` (jobs that are not over), `bytes` (resident), `threads`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("state\n")
        self.process.stdin.flush()
        value: dict[str, Any] = json.loads(self.process.stdout.readline())
        return value

    def drained(self, patience: float = 30.0) -> dict[str, Any]:
        """The state once no job is open. Raises AssertionError where that does not come."""
        end = time.monotonic() + patience
        while (state := self.state())["open"]:
            assert time.monotonic() < end, f"the queue does not drain: {state}"
            time.sleep(0.1)
        return state


def serve() -> None:
    """What the other process does: serve, print the address, and answer "state" until its standard input closes."""
    import psutil

    from llmlab.cli.surroundings import without_proxies
    from llmlab.lab.queue import Engine
    from llmlab.ui.page import Page, launch_options

    engine = Engine()
    page = Page(engine)
    demo = page.build()
    with without_proxies():
        demo.launch(server_name="127.0.0.1", server_port=free_port(), prevent_thread_lock=True, **launch_options(page))
    print(demo.local_url, flush=True)
    for _ in sys.stdin:
        jobs = [f"{j.id} {j.state} {j.note}" for j in list(engine._jobs.values()) if not j.over]
        value = {"open": jobs, "bytes": psutil.Process().memory_info().rss, "threads": threading.active_count()}
        print(json.dumps(value), flush=True)
    page.close()


def free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@contextmanager
def serving() -> Iterator[Server]:
    """The server, asked for its page four times a second while the block lasts."""
    command = [sys.executable, "-m", "tests.stress", "--serve"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, stderr=sys.stderr
    ) as process:
        assert process.stdout is not None
        server = Server(process.stdout.readline().strip(), process)
        over = threading.Event()
        asking = threading.Thread(target=_ask, args=(server, over), daemon=True)
        asking.start()
        try:
            yield server
        finally:
            over.set()
            asking.join(30)
            assert process.stdin is not None
            process.stdin.close()


def _ask(server: Server, over: threading.Event) -> None:
    import httpx

    with httpx.Client(trust_env=False, timeout=60) as client:
        while True:
            asleep = time.monotonic()
            if over.wait(PAUSE):
                return
            begun = time.monotonic()
            late = begun - asleep - PAUSE  # by which a busy machine keeps everybody waiting, this thread too
            try:
                good = client.get(f"{server.url}gradio_api/startup-events").status_code == 200
            except httpx.HTTPError:
                good = False
            server.answers.append(time.monotonic() - begun - late if good else 60.0)


# All of it --------------------------------------------------------------------------------------------------------


@dataclass
class Round:
    """What one pass of both parts came to."""

    crowd: dict[str, Any]
    browser: dict[str, Any]
    bytes: int
    slowest: float


def stress(seconds: float, seed: int, visitors: int = 50, actions: int = 200) -> list[Round]:
    """Rounds of a crowd and a browser until `seconds` have passed, one at least. Raises AssertionError."""
    shortest = min(seconds / 2, 60.0)
    from tests import made
    from tests.stress_browser import Script, browser
    from tests.stress_crowd import Crowd

    end, rounds = time.monotonic() + seconds, []
    with tempfile.TemporaryDirectory() as folder, serving() as server, browser() as chromium:
        model = str(made.folder(Path(folder) / "tiny"))
        Crowd(server.url, model, random.Random(seed), 4).run()  # what happens only once per process
        begun = server.drained()
        while True:
            dice = random.Random(f"{seed} {len(rounds)}")
            server.answers.clear()
            crowd = Crowd(server.url, model, dice, visitors).run()
            server.drained()
            script = Script(chromium, server.url, model, dice).run(actions, max(shortest, end - time.monotonic()))
            state = server.drained()
            rounds.append(Round(crowd, script, state["bytes"], max(server.answers)))
            say(rounds[-1])
            assert rounds[-1].slowest < SLOWEST, f"the page took {rounds[-1].slowest:.1f} s to answer"
            assert state["bytes"] - begun["bytes"] < GROWTH, (begun, state)
            if time.monotonic() > end:
                return rounds


def say(told: Round) -> None:
    print(f"{told.bytes / 1e6:.0f} MB, slowest answer {told.slowest:.2f} s; {told.crowd}; {told.browser}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.serve:
        serve()
        return
    rounds = stress(a.minutes * 60 or a.seconds, a.seed)
    print(f"{len(rounds)} rounds without a fault")


if __name__ == "__main__":
    main()

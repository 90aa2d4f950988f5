"""What the page costs the engine: the same run from the command line and through the page, in turn.

    python -m benchmarks.page_cost [--pairs 7] [--weights dense-fp32] [--tokens 256]

The page's visitor is a client that only receives the stream, so that no browser takes part of the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import socket
import statistics
import subprocess
import sys
import time
from typing import Any
from urllib.request import Request, urlopen

PROMPT = "Tell me a long story about a lighthouse keeper and her dog."


def from_command_line(weights: str, tokens: int) -> float:
    """Tokens per second of one run in a fresh process."""
    command = [sys.executable, "-m", "llmlab", "run", "--prompt", PROMPT, "--weights", weights]
    command += ["--max-new-tokens", str(tokens), "--json", "-"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(json.loads(out)["metrics"]["decode_tokens_per_second"])


def through_the_page(url: str, values: list[Any]) -> tuple[float, float]:
    """Tokens per second by the engine's own clock, and messages per second while tokens came.

    Reads the stream as bytes and looks at it afterwards: a heavier client would take its own part of the processor.
    """
    with urlopen(f"{url}config") as answer:
        run = next(d["id"] for d in json.load(answer)["dependencies"] if d["api_name"] == "run")
    session = secrets.token_hex(6)
    body = json.dumps({"data": values, "fn_index": run, "session_hash": session}).encode()
    with urlopen(Request(f"{url}gradio_api/queue/join", body, {"Content-Type": "application/json"})):
        pass
    lines = []
    with urlopen(f"{url}gradio_api/queue/data?session_hash={session}") as stream:
        for line in stream:
            lines.append((time.perf_counter(), line))
            if b"process_completed" in line:
                break
    commits, read, live = [], 0.0, []
    for t, line in lines:
        # Each message carries its events as one JSON string, which is found whatever way Gradio wraps it.
        for text in re.findall(r'(\[\[\\"[A-Z!].*?\]\])"', line.decode()):
            events = json.loads(json.loads(f'"{text}"'))
            read = max([read, *(e[1] for e in events if e[0] == "P")])
            fresh = [e for e in events if e[0] == "C" and (not commits or e[1] > commits[-1][1])]
            commits += fresh
            live += [t] if fresh else []
    speed = sum(len(e[2]) for e in commits) / (commits[-1][1] - read)
    return speed, (len(live) - 1) / (live[-1] - live[0])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pairs", type=int, default=7)
    p.add_argument("--weights", default="dense-fp32")
    p.add_argument("--tokens", type=int, default=256)
    a = p.parse_args()

    from llmlab.lab.queue import Engine
    from llmlab.ui.page import Page

    page = Page(Engine())
    page.build()
    changed = {"prompt": PROMPT, "weights": a.weights, "max_new_tokens": a.tokens}
    values = [changed.get(n, c.value) for n, c in page.form.fields.items()]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = subprocess.Popen([sys.executable, "app.py", "--port", str(port), "--no-browser"], env=os.environ)
    try:
        for _ in range(240):
            time.sleep(0.5)
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
        url = f"http://127.0.0.1:{port}/"
        through_the_page(url, values)  # loads the model
        ratios, beats = [], []
        for i in range(a.pairs):
            plain = from_command_line(a.weights, a.tokens)
            paged, beat = through_the_page(url, values)
            ratios.append(paged / plain)
            beats.append(beat)
            print(
                f"pair {i + 1}: {plain:.1f} and {paged:.1f} tokens/s, ratio {ratios[-1]:.3f}, {beat:.1f} messages/s",
                flush=True,
            )
        print(f"median ratio {statistics.median(ratios):.3f}, {statistics.median(beats):.1f} messages/s")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()

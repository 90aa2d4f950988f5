"""Start the page: python app.py [--host 127.0.0.1] [--port 7860] [--allow-host NAME] [--no-browser]."""

from __future__ import annotations

import os

from llmlab.cli import interruption

if __name__ == "__main__":
    interruption.leave_early()

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it asks another host for its version
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from llmlab.cli import page
from llmlab.cli.surroundings import without_proxies


def launch(address: page.Address, browser: bool) -> None:
    """Serve the page until Ctrl-C."""
    with without_proxies():  # Gradio makes a client when it is imported, and asks the page whether it answers
        from llmlab.lab.queue import Engine
        from llmlab.ui.page import Page, serve

        lab = Page(Engine())
        url, told = serve(lab, address.host, address.free_ports(), address.names, browser)
    print(f"llmlab is at {url} (Ctrl+C ends it)", flush=True)
    if told:
        print(told, flush=True)
    try:
        interruption.wait()
    finally:
        lab.close()


if __name__ == "__main__":
    interruption.leave(page.main(launch))

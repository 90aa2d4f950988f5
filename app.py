"""Start the page: python app.py [--host 127.0.0.1] [--port 7860] [--no-browser]."""

from __future__ import annotations

import os
import sys

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it asks another host for its version
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def launch(host: str, port: int, browser: bool) -> None:
    """Serve the page until Ctrl-C."""
    from llmlab.lab.queue import Engine
    from llmlab.ui.page import Page, launch_options

    page = Page(Engine())
    demo = page.build()
    print(f"llmlab is at http://{host}:{port} (Ctrl+C ends it)", flush=True)
    demo.launch(server_name=host, server_port=port, inbrowser=browser, **launch_options(page))


def main() -> int:
    from llmlab.cli import page

    return page.main(launch)


if __name__ == "__main__":
    sys.exit(main())

"""Start the page: python app.py [--host 127.0.0.1] [--port 7860] [--no-browser]."""

from __future__ import annotations

import argparse
import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it asks another host for its version
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def main() -> None:
    p = argparse.ArgumentParser(description="llmlab: see how efficient LLM inference works.")
    p.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
    p.add_argument("--port", type=int, default=int(os.environ.get("GRADIO_SERVER_PORT", "7860")))
    p.add_argument("--no-browser", action="store_true", help="do not open a browser window")
    a = p.parse_args()

    from llmlab.lab.queue import Engine
    from llmlab.ui.page import Page, launch_options

    page = Page(Engine())
    demo = page.build()
    print(f"llmlab is at http://{a.host}:{a.port} (Ctrl+C ends it)", flush=True)
    browser = not a.no_browser and not os.environ.get("SPACE_ID")
    demo.launch(server_name=a.host, server_port=a.port, inbrowser=browser, **launch_options(page))


if __name__ == "__main__":
    main()

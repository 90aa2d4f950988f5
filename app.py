"""Start the page: python app.py [--host 127.0.0.1] [--port 7860] [--no-browser]."""

from __future__ import annotations

import os
import sys

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it asks another host for its version
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def main() -> int:
    from llmlab.cli import page

    return page.main()


if __name__ == "__main__":
    sys.exit(main())

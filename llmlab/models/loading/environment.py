"""What environment variables decide: where downloads are kept, whether the network and unlisted models may be used."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder for what the lab itself downloads; models from the Hub stay in the Hub's own cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LLMLAB_CACHE") or Path(base) / "llmlab")


def offline() -> bool:
    """Whether the network must not be tried: LLMLAB_OFFLINE or HF_HUB_OFFLINE is set."""
    return any(
        os.environ.get(n, "").lower() in ("1", "true", "yes", "on") for n in ("LLMLAB_OFFLINE", "HF_HUB_OFFLINE")
    )


def restricted() -> bool:
    """Whether only the catalogue may be used: on a public Space, unless its owner allows any model."""
    return bool(os.environ.get("SPACE_ID")) and os.environ.get("LLMLAB_ALLOW_ANY_MODEL") != "1"

"""Where the files lie that ship with the lab: texts, recorded runs, trained weights."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).resolve().parent.parent / "assets"

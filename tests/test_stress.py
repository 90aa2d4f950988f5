"""A minute of `tests.stress`: fifty visitors at once, then a browser that does whatever it likes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.stress_browser import may_be_left_out


@pytest.mark.browser
@pytest.mark.skipif(may_be_left_out(), reason="needs Debian's chromium")
def test_a_minute_of_many_visitors() -> None:
    command = [sys.executable, "-m", "tests.stress", "--seconds", "60", "--seed", "1"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=280)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-4000:]
    assert "without a fault" in ran.stdout
    assert "'served': 30, 'left': 20" in ran.stdout

"""Every work of the survey's decoding section that runs on a language model is run by something here."""

from __future__ import annotations

import json

import pytest

from llmlab.assets import ASSETS
from llmlab.lab.study import studies
from llmlab.runtime.technique import registry

ROWS = json.loads((ASSETS / "survey.json").read_text(encoding="utf-8"))
RUNNABLE = [
    r["id"]
    for r in ROWS
    if r["section"].startswith("Decoding Algorithm") and r["bench"] in ("playground", "classifier", "serving")
]


@pytest.mark.parametrize("row", RUNNABLE)
def test_a_work_of_the_decoding_section_is_run_by_a_technique_or_a_study(row: str) -> None:
    by = [id for known in (registry(), studies()) for id, cls in known.items() if row in cls.covers]
    assert by


def test_the_section_has_the_works_that_it_has() -> None:
    assert len(RUNNABLE) == 25

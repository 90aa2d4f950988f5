"""What a study found, as text for a terminal. Takes the JSON of schema llmlab.study/1."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

WIDEST = 40
"""Characters of a cell in the terminal's table."""
NARROWEST = 10
"""Characters that a heading of the terminal's table may take at least before it is broken."""


def cell(value: Any) -> str:
    """A value as a reader wants it: four digits, yes or no, a dash for nothing."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "—"
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def cells(found: Mapping[str, Any]) -> list[list[str]]:
    """The rows in the order of the columns; a row that lacks a column has a dash there."""
    return [[cell(row.get(name)) for name in found["columns"]] for row in found["rows"]]


def table(found: Mapping[str, Any]) -> str:
    """The rows for a terminal: headings over several lines where they are long, numbers that end below each other."""
    body = [[c.replace("\n", " ")[:WIDEST] for c in line] for line in cells(found)]
    values = [max([len(line[i]) for line in body], default=0) for i in range(len(found["columns"]))]
    heads = [textwrap.wrap(h, max(w, NARROWEST)) for h, w in zip(found["columns"].values(), values, strict=True)]
    widths = [max(w, *map(len, h)) for w, h in zip(values, heads, strict=True)]
    tall = max(map(len, heads))
    lines = [[h[i - tall + len(h)] if i >= tall - len(h) else "" for h in heads] for i in range(tall)] + body
    numbers = [any(isinstance(row.get(name), int | float) for row in found["rows"]) for name in found["columns"]]
    return "\n".join(
        "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numbers, strict=True)).rstrip()
        for line in lines
    )


BEFORE = {True: "confirmed", False: "refuted", None: "untestable"}
"""The verdict of a claim that was written before "undecided" was one."""


def verdict_of(claim: Mapping[str, Any]) -> str:
    """One of confirmed, refuted, undecided, untestable."""
    told: str = claim.get("verdict") or BEFORE[claim["holds"]]
    return told


def verdicts(found: Mapping[str, Any]) -> list[str]:
    """One line per claim: confirmed, refuted, undecided or not testable here, and the evidence."""
    words = {"untestable": "not testable here"}
    told = [(c, verdict_of(c)) for c in found["claims"]]
    return [f"{c['source']}: {c['claim']}\n  {words.get(v, v)}: {c['evidence']}" for c, v in told]

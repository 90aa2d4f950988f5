"""Tables of the page: columns as wide as they need, so that no heading is broken inside a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

NARROWEST, WIDEST = 70, 320
"""Pixels of a column."""


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """The update that shows these rows in a Dataframe, and the Dataframe itself where it was hidden."""
    widths = [_width(heading, [row[i] for row in rows]) for i, heading in enumerate(headings)]
    value = {"headers": list(headings), "data": [list(row) for row in rows]}
    return gr.update(value=value, column_widths=widths, visible=True)


def _width(heading: str, values: Sequence[Any]) -> int:
    """Pixels for the longest value and for the longest word of the heading, within reason."""
    longest = max([len(str(v)) for v in values] + [len(w) for w in heading.split()], default=0)
    return min(WIDEST, max(NARROWEST, 28 + 9 * longest))

"""A study's figures, from its findings (schema llmlab.study/1): its own charts, and who answered in a cascade."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

from llmlab.errors import Refused
from llmlab.lab.findings import cell
from llmlab.ui.figures.base import BLUE, GREEN, INK, ORANGE, RED, empty, right_axis, titled
from llmlab.ui.i18n import word

Row = Mapping[str, Any]

GROUPS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", ORANGE, "#8c6bb1", "#888888", "#1b9e77")
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star", "pentagon", "hexagon", "triangle-down")
"""Colours and shapes of a chart's groups, together different for a hundred of them."""


@dataclass(frozen=True)
class Kind:
    """How a chart of one kind is drawn: as bars, or as points in Plotly's `mode`."""

    mode: str = "markers"
    bars: bool = False
    zero: bool = False
    """Whether the axis of y begins at zero: not where points are to be told apart."""
    front: bool = False


KINDS = {
    "line": Kind(mode="lines+markers", zero=True),
    "bar": Kind(bars=True, zero=True),
    "points": Kind(),
    "front": Kind(front=True),
}


def study_figures(found: Mapping[str, Any], bench: str, lang: str) -> list[go.Figure]:
    """The study's charts that have something to show; before them, for a cascade, who answered at what cost."""
    first = [cascade(found, lang)] if bench == "cascade" else []
    return [f for f in (*first, *(chart(found, c, lang) for c in found["charts"])) if f is not None]


def chart(found: Mapping[str, Any], spec: Mapping[str, Any], lang: str) -> go.Figure | None:
    """One chart; None where no row has both of its columns. Raises Refused for a kind that the page cannot draw."""
    if spec["kind"] not in KINDS:
        asked = f"is of the kind {str(spec['kind'])[:20]!r}, which is not drawn here"
        raise Refused(f"The chart {spec['title']!r}", asked, f"Choose one of {', '.join(KINDS)}")
    kind, names = KINDS[spec["kind"]], found["columns"]
    rows = [r for r in found["rows"] if _finite(r.get(spec["x"])) and _finite(r.get(spec["y"]))]
    if not rows:
        return None
    figure = empty(escape(spec["title"]), escape(names[spec["x"]]), escape(names[spec["y"]]))
    by = spec["group"]
    groups = list(dict.fromkeys(r.get(by) for r in rows)) if by else [None]
    for i, group in enumerate(groups):
        mine = [r for r in rows if not by or r.get(by) == group]
        label = escape(cell(group) if by else names[spec["y"]])
        _add_group(figure, found, spec, kind, mine, label, i)
    if kind.front:
        _add_front(figure, [(r[spec["x"]], r[spec["y"]]) for r in rows], lang)
    if not kind.zero:
        figure.update_yaxes(rangemode="normal")
    _legend_below(figure)
    figure.update_layout(hovermode="closest", barmode="group", showlegend=len(figure.data) > 1)
    return figure


def _add_group(
    figure: go.Figure,
    found: Mapping[str, Any],
    spec: Mapping[str, Any],
    kind: Kind,
    rows: Sequence[Row],
    label: str,
    i: int,
) -> None:
    """The rows of the i-th group, and beside them the curve of what a formula says they should be."""
    x, y, ideal = spec["x"], spec["y"], spec["ideal"]
    if not isinstance(rows[0][x], str) and not kind.bars:
        rows = sorted(rows, key=lambda r: r[x])
    colour, symbol = GROUPS[i % len(GROUPS)], SYMBOLS[(i + i // len(GROUPS)) % len(SYMBOLS)]
    at = {"x": [r[x] for r in rows], "y": [r[y] for r in rows], "name": label}
    pointer = {"hovertext": [_row_html(found, r) for r in rows], "hoverinfo": "text"}
    if kind.bars:
        figure.add_bar(**at, **pointer, marker_color=colour)
    else:
        marker = {"color": colour, "symbol": symbol, "size": 9}
        figure.add_scatter(**at, **pointer, mode=kind.mode, marker=marker, line={"color": colour, "width": 2})
    formula = [r for r in rows if ideal and _finite(r.get(ideal))]
    if formula:
        figure.add_scatter(
            x=[r[x] for r in formula],
            y=[r[ideal] for r in formula],
            name=f"{label}: {escape(found['columns'][ideal])}",
            mode="lines",
            line={"color": colour, "dash": "dash", "width": 1.5},
        )


def _add_front(figure: go.Figure, points: Sequence[tuple[float, float]], lang: str) -> None:
    edge = front(points)
    figure.add_scatter(
        x=[p[0] for p in edge],
        y=[p[1] for p in edge],
        name=word("front", lang),
        mode="lines",
        line={"color": INK, "dash": "dot", "shape": "hv", "width": 1.5},
        hoverinfo="skip",
    )


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (cost, quality) that no other point beats: none costs as little or less and is better or as good."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


def cascade(found: Mapping[str, Any], lang: str) -> go.Figure | None:
    """Which level answered, rightly or wrongly, and at what mean cost; None for rows without level and cost.

    A row is one query, or as many as its `count` says.
    """
    rows = [r for r in found["rows"] if r.get("level") is not None and _finite(r.get("cost"))]
    if not rows:
        return None
    figure = titled("cascade_title", "cascade_level", "cascade_count", lang)
    mean = _mean_cost(rows)
    levels = sorted(mean, key=mean.__getitem__)  # who is asked later costs more, because those before are paid too
    names = [escape(cell(v)) for v in levels]
    known = any(r.get("correct") is not None for r in rows)
    kinds = (("right", True, GREEN), ("wrong", False, RED)) if known else (("answered", None, BLUE),)
    for key, correct, colour in kinds:
        these = [r for r in rows if not known or r.get("correct") == correct]
        counts = [sum(r.get("count") or 1 for r in these if r["level"] == v) for v in levels]
        figure.add_bar(x=names, y=counts, name=word(key, lang), marker_color=colour, opacity=0.7)
    figure.add_scatter(
        x=names,
        y=[mean[v] for v in levels],
        name=word("cascade_cost", lang),
        mode="markers+lines",
        marker={"color": ORANGE, "size": 10, "symbol": "diamond"},
        yaxis="y2",
    )
    figure.update_xaxes(type="category")
    right_axis(figure, "cascade_cost", lang)
    return figure


def _mean_cost(rows: Sequence[Row]) -> dict[Any, float]:
    """The mean cost of a query by the level that answered it."""
    paid: dict[Any, list[tuple[int, float]]] = {}
    for r in rows:
        paid.setdefault(r["level"], []).append((r.get("count") or 1, r["cost"]))
    return {v: sum(n * cost for n, cost in costs) / sum(n for n, _ in costs) for v, costs in paid.items()}


def _finite(value: Any) -> bool:
    """Whether a cell can be a point's coordinate."""
    return isinstance(value, str) or (isinstance(value, int | float) and math.isfinite(value))


def _row_html(found: Mapping[str, Any], row: Row) -> str:
    """A row as the pointer shows it."""
    parts = [f"{escape(name)}: {escape(cell(row[key]))}" for key, name in found["columns"].items() if key in row]
    return "<br>".join(parts[:12])


def _legend_below(figure: go.Figure) -> None:
    """Room below for as many lines of legend as there are names, so that they do not press the plot flat."""
    lines = -(-sum(len(t.name) + 8 for t in figure.data) // 60)
    figure.update_layout(height=330 + 20 * lines, margin={"l": 60, "r": 20, "t": 50, "b": 70 + 20 * lines})
    figure.update_layout(legend={"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom"})

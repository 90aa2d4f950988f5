"""Figures in Plotly: a finished run's, one function each, with the baseline as a grey ghost; and a study's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from llmlab.lab.findings import cell
from llmlab.measure.trace import lanes, ledger, rounds
from llmlab.runtime.events import Committed, Event, Prefilled, Started
from llmlab.ui.i18n import word

BLUE, GREY, GREEN, RED = "#2f6fde", "#9aa0a6", "#1a9850", "#d73027"
COLOUR = {"baseline": GREY, "stack": BLUE}
GROUPS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#e08214", "#8c6bb1", "#888888", "#1b9e77")
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star", "pentagon", "hexagon", "triangle-down")
"""Colours and shapes of a study's groups, together different for a hundred of them."""


def _figure(title: str, x: str, y: str, lang: str) -> go.Figure:
    """An empty figure titled by the catalogue's words."""
    return _empty(word(title, lang), word(x, lang), word(y, lang))


def _empty(title: str, x: str, y: str) -> go.Figure:
    """An empty figure whose colours read on a light and on a dark page."""
    figure = go.Figure()
    figure.update_layout(
        title={"text": title, "font": {"size": 15}},
        xaxis_title=x,
        yaxis_title=y,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#7d8590"},
        margin={"l": 55, "r": 20, "t": 50, "b": 45},
        height=330,
        legend={"orientation": "h", "y": -0.25},
        hovermode="x unified",
        barmode="stack",
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,.2)", zeroline=False)
    figure.update_yaxes(gridcolor="rgba(128,128,128,.2)", rangemode="tozero")
    return figure


def _right(figure: go.Figure, title: str, lang: str) -> None:
    """A second axis on the right for what has another unit."""
    axis = {"title": word(title, lang), "overlaying": "y", "side": "right", "showgrid": False, "rangemode": "tozero"}
    figure.update_layout(yaxis2=axis)


def _name(lane: str, lang: str) -> str:
    return word(lane, lang) if lane in COLOUR else lane[:40]


def tokens(runs: dict[str, list[Event]], lang: str) -> go.Figure:
    """Tokens written against time: the slope is the speed."""
    figure = _figure("c_tokens", "x_seconds", "y_tokens", lang)
    for lane, events in runs.items():
        count, x, y = 0, [], []
        for e in events:
            if isinstance(e, Committed):
                count += len(e.tokens)
                x.append(e.t)
                y.append(count)
        figure.add_scatter(
            x=x, y=y, name=_name(lane, lang), mode="lines", line={"color": COLOUR.get(lane, BLUE), "width": 2}
        )
    return figure


def passes(runs: dict[str, list[Event]], lang: str) -> go.Figure:
    """Milliseconds of each pass, and the drafts it accepted and rejected."""
    figure = _figure("c_passes", "x_pass", "y_ms", lang)
    for lane, events in runs.items():
        table = rounds(events)
        n = [r[0] for r in table]
        colour = COLOUR.get(lane, BLUE)
        figure.add_scatter(
            x=n,
            y=[r[2] * 1000 for r in table],
            name=_name(lane, lang),
            mode="lines",
            line={"color": colour, "width": 1.5},
        )
        if any(r[3] for r in table):
            accepted, rejected = [r[4] for r in table], [r[3] - r[4] for r in table]
            figure.add_bar(x=n, y=accepted, name=word("accepted", lang), marker_color=GREEN, yaxis="y2", opacity=0.55)
            figure.add_bar(x=n, y=rejected, name=word("rejected", lang), marker_color=RED, yaxis="y2", opacity=0.4)
            _right(figure, "y_tokens", lang)
    return figure


def memory(runs: dict[str, list[Event]], lang: str) -> go.Figure:
    """Megabytes of weights, left, and of keys and values, right, over time."""
    figure = _figure("c_memory", "x_seconds", "y_mb", lang)
    for lane, events in runs.items():
        started = next(e for e in events if isinstance(e, Started))
        held = [e for e in events if isinstance(e, Prefilled | Committed)]
        if not held:
            continue
        x, colour = [e.t for e in held], COLOUR.get(lane, BLUE)
        label = _name(lane, lang)
        figure.add_scatter(
            x=[x[0], x[-1]],
            y=[started.weight_bytes / 1e6] * 2,
            name=f"{label}: {word('weights', lang)}",
            mode="lines",
            line={"color": colour, "dash": "dot"},
        )
        figure.add_scatter(
            x=x,
            y=[e.kv_bytes / 1e6 for e in held],
            name=f"{label}: {word('kv', lang)}",
            mode="lines",
            line={"color": colour, "width": 2},
            yaxis="y2",
        )
    _right(figure, "y_kv", lang)
    return figure


def layers(runs: dict[str, list[Event]], lang: str) -> go.Figure:
    """Layers that each pass ran, and the rows of keys and values that each layer held at the end."""
    figure = _figure("c_layers", "x_pass", "y_layers", lang)
    for lane, events in runs.items():
        commits = [e for e in events if isinstance(e, Committed)]
        if not commits:
            continue
        colour, label = COLOUR.get(lane, BLUE), _name(lane, lang)
        figure.add_scatter(
            x=list(range(1, len(commits) + 1)),
            y=[e.layers_run for e in commits],
            name=f"{label}: {word('y_layers', lang)}",
            mode="lines",
            line={"color": colour, "width": 2},
        )
        figure.add_scatter(
            x=list(range(1, len(commits) + 1)),
            y=[max(e.kv_rows, default=0) for e in commits],
            name=f"{label}: {word('y_rows', lang)}",
            mode="lines",
            line={"color": colour, "dash": "dot"},
            yaxis="y2",
        )
    _right(figure, "y_rows", lang)
    return figure


def position(runs: dict[str, list[Event]], lang: str) -> go.Figure | None:
    """How many of the tokens drafted at each position were accepted; None where nothing was drafted."""
    figure = _figure("c_position", "x_position", "y_share", lang)
    for lane, events in runs.items():
        counts = [d for d in ledger(events).get("accepted_by_depth", ()) if d[1]]
        if counts:
            figure.add_bar(
                x=[d[0] for d in counts],
                y=[d[2] / d[1] for d in counts],
                text=[f"{d[2]}/{d[1]}" for d in counts],
                name=_name(lane, lang),
                marker_color=GREEN,
            )
    figure.update_xaxes(dtick=1)
    figure.update_yaxes(range=[0, 1])
    return figure if figure.data else None


DRAWN = (tokens, passes, memory, layers, position)


def all_of(events: Sequence[Event], lang: str) -> list[Any]:
    """Every figure of a trace, in the page's order; None for one that has nothing to show."""
    runs = lanes(events)
    return [draw(runs, lang) for draw in DRAWN]


# Studies ----------------------------------------------------------------------------------------------------------


def study_figures(found: Mapping[str, Any], bench: str, lang: str) -> list[go.Figure]:
    """The figures of a study's findings (schema llmlab.study/1): its charts, after what its bench always shows."""
    first = [cascade(found, lang)] if bench == "cascade" else []
    return [f for f in (*first, *(chart(found, c, lang) for c in found["charts"])) if f is not None]


def _finite(value: Any) -> bool:
    """Whether a cell can be a point's coordinate."""
    return isinstance(value, str) or (isinstance(value, int | float) and math.isfinite(value))


def _about(found: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """A row as the pointer shows it."""
    parts = [f"{escape(name)}: {escape(cell(row[key]))}" for key, name in found["columns"].items() if key in row]
    return "<br>".join(parts[:12])


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (cost, quality) that no other point beats: none costs as little or less and is better or as good."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


def chart(found: Mapping[str, Any], spec: Mapping[str, Any], lang: str) -> go.Figure | None:
    """A study's chart; None where no row has both of its columns."""
    x, y, by, ideal = spec["x"], spec["y"], spec["group"], spec["ideal"]
    rows = [r for r in found["rows"] if _finite(r.get(x)) and _finite(r.get(y))]
    if not rows:
        return None
    names = found["columns"]
    figure = _empty(escape(spec["title"]), escape(names[x]), escape(names[y]))
    kind = spec["kind"]
    groups = list(dict.fromkeys(r.get(by) for r in rows)) if by else [None]
    for i, group in enumerate(groups):
        mine = [r for r in rows if not by or r.get(by) == group]
        if not isinstance(mine[0][x], str) and kind != "bar":
            mine = sorted(mine, key=lambda r: r[x])
        colour, symbol = GROUPS[i % len(GROUPS)], SYMBOLS[(i + i // len(GROUPS)) % len(SYMBOLS)]
        label = escape(cell(group)) if by else escape(names[y])
        at = {"x": [r[x] for r in mine], "y": [r[y] for r in mine], "name": label}
        told = {"hovertext": [_about(found, r) for r in mine], "hoverinfo": "text"}
        if kind == "bar":
            figure.add_bar(**at, **told, marker_color=colour)
        else:
            marker = {"color": colour, "symbol": symbol, "size": 9}
            mode = "lines+markers" if kind == "line" else "markers"
            figure.add_scatter(**at, **told, mode=mode, marker=marker, line={"color": colour, "width": 2})
        formula = [r for r in mine if ideal and _finite(r.get(ideal))]
        if formula:
            figure.add_scatter(
                x=[r[x] for r in formula],
                y=[r[ideal] for r in formula],
                name=f"{label}: {escape(names[ideal])}",
                mode="lines",
                line={"color": colour, "dash": "dash", "width": 1.5},
            )
    if kind == "front":
        edge = front([(r[x], r[y]) for r in rows])
        figure.add_scatter(
            x=[p[0] for p in edge],
            y=[p[1] for p in edge],
            name=word("front", lang),
            mode="lines",
            line={"color": "#7d8590", "dash": "dot", "shape": "hv", "width": 1.5},
            hoverinfo="skip",
        )
    if kind in ("points", "front"):
        figure.update_yaxes(rangemode="normal")
    _legend(figure)
    figure.update_layout(hovermode="closest", barmode="group", showlegend=len(figure.data) > 1)
    return figure


def _legend(figure: go.Figure) -> None:
    """Room below for as many lines of legend as there are names, so that they do not press the plot flat."""
    lines = -(-sum(len(t.name) + 8 for t in figure.data) // 60)
    figure.update_layout(height=330 + 20 * lines, margin={"l": 60, "r": 20, "t": 50, "b": 70 + 20 * lines})
    figure.update_layout(legend={"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom"})


def cascade(found: Mapping[str, Any], lang: str) -> go.Figure | None:
    """Who answered, rightly or wrongly, and at what mean cost; None for rows without level and cost.

    A row is one query, or as many as its `count` says.
    """
    rows = [r for r in found["rows"] if r.get("level") is not None and _finite(r.get("cost"))]
    if not rows:
        return None
    figure = _figure("cascade_title", "cascade_level", "cascade_count", lang)
    paid: dict[Any, list[tuple[int, float]]] = {}
    for r in rows:
        paid.setdefault(r["level"], []).append((r.get("count") or 1, r["cost"]))
    mean = {v: sum(n * cost for n, cost in costs) / sum(n for n, _ in costs) for v, costs in paid.items()}
    levels = sorted(mean, key=mean.__getitem__)  # who is asked later costs more, because those before are paid too
    shown = [escape(cell(v)) for v in levels]
    known = any(r.get("correct") is not None for r in rows)
    kinds = (("right", True, GREEN), ("wrong", False, RED)) if known else (("answered", None, BLUE),)
    for name, correct, colour in kinds:
        shown_here = [r for r in rows if not known or r.get("correct") == correct]
        counts = [sum(r.get("count") or 1 for r in shown_here if r["level"] == v) for v in levels]
        figure.add_bar(x=shown, y=counts, name=word(name, lang), marker_color=colour, opacity=0.7)
    figure.add_scatter(
        x=shown,
        y=[mean[v] for v in levels],
        name=word("cascade_cost", lang),
        mode="markers+lines",
        marker={"color": "#e08214", "size": 10, "symbol": "diamond"},
        yaxis="y2",
    )
    figure.update_xaxes(type="category")
    _right(figure, "cascade_cost", lang)
    return figure

"""The finished run's figures, in Plotly: one function each, with the baseline as a grey ghost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from llmlab.events import Committed, Event, Prefilled, Started
from llmlab.trace import lanes, rounds
from llmlab.ui.words import word

BLUE, GREY, GREEN, RED = "#2f6fde", "#9aa0a6", "#1a9850", "#d73027"
COLOUR = {"baseline": GREY, "stack": BLUE}


def _figure(title: str, x: str, y: str, lang: str) -> go.Figure:
    """An empty figure whose colours read on a light and on a dark page."""
    figure = go.Figure()
    figure.update_layout(
        title={"text": word(title, lang), "font": {"size": 15}},
        xaxis_title=word(x, lang),
        yaxis_title=word(y, lang),
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


def all_of(events: Sequence[Event], lang: str) -> list[Any]:
    """Every figure of a trace, in the page's order."""
    runs = lanes(events)
    return [draw(runs, lang) for draw in (tokens, passes, memory, layers)]

"""The figures of a finished run, one function each, with the baseline as a grey ghost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from llmlab.measure.trace import lanes, ledger, rounds
from llmlab.runtime.events import Committed, Event, Prefilled, Started
from llmlab.ui.figures.base import BLUE, GREEN, GREY, RED, right_axis, titled
from llmlab.ui.i18n import word

Runs = dict[str, list[Event]]
"""A trace's events by lane: "baseline", "stack", or what a stranger's trace calls them."""
COLOUR = {"baseline": GREY, "stack": BLUE}


def _name(lane: str, lang: str) -> str:
    return word(lane, lang) if lane in COLOUR else lane[:40]


def _line(figure: go.Figure, lane: str, name: str, x: Sequence[float], y: Sequence[float], **more: Any) -> None:
    """A line in the lane's colour; `dash` and `yaxis` set it apart from the lane's other line."""
    line = {"color": COLOUR.get(lane, BLUE), "width": 2, "dash": more.pop("dash", "solid")}
    figure.add_scatter(x=x, y=y, name=name, mode="lines", line=line, **more)


def tokens(runs: Runs, lang: str) -> go.Figure:
    """Tokens generated against time: the slope is the speed."""
    figure = titled("c_tokens", "x_seconds", "y_tokens", lang)
    for lane, events in runs.items():
        count, x, y = 0, [], []
        for e in events:
            if isinstance(e, Committed):
                count += len(e.tokens)
                x.append(e.t)
                y.append(count)
        _line(figure, lane, _name(lane, lang), x, y)
    return figure


def passes(runs: Runs, lang: str) -> go.Figure:
    """Milliseconds of each pass, and the drafted tokens that it accepted and rejected."""
    figure = titled("c_passes", "x_pass", "y_ms", lang)
    for lane, events in runs.items():
        table = rounds(events)
        n = [r[0] for r in table]
        _line(figure, lane, _name(lane, lang), n, [r[2] * 1000 for r in table])
        if any(r[3] for r in table):
            accepted, rejected = [r[4] for r in table], [r[3] - r[4] for r in table]
            figure.add_bar(x=n, y=accepted, name=word("accepted", lang), marker_color=GREEN, yaxis="y2", opacity=0.55)
            figure.add_bar(x=n, y=rejected, name=word("rejected", lang), marker_color=RED, yaxis="y2", opacity=0.4)
            right_axis(figure, "y_tokens", lang)
    return figure


SHADES = {"weights": "#93a4bf", "copies": "#c3cddd", "parts": "#b08bd6", "kv": BLUE, "activations": "#e0a458"}
PATTERNS = {"weights": "", "copies": "/", "parts": "x", "kv": ".", "activations": "\\"}
"""Of the parts of memory; patterns tell them apart where colours do not."""


def memory(runs: Runs, lang: str) -> go.Figure:
    """Megabytes by part, stacked, over time: of the techniques' lane, with the baseline's total as a line."""
    figure = titled("c_memory", "x_seconds", "y_mb", lang)
    shown = next((lane for lane in runs if lane != "baseline"), "baseline")
    for lane, events in runs.items():
        started = next(e for e in events if isinstance(e, Started))
        held = [e for e in events if isinstance(e, Prefilled | Committed)]
        if not held:
            continue
        x, label = [e.t for e in held], _name(lane, lang)
        if lane != shown:
            total = [(started.weight_bytes + e.kv_bytes + e.activation_bytes) / 1e6 for e in held]
            _line(figure, lane, label, x, total, dash="dot")
            continue
        own = started.weight_bytes - started.copies_bytes - started.auxiliary_bytes
        still = {"weights": own, "copies": started.copies_bytes, "parts": started.auxiliary_bytes}
        parts = {name: [n / 1e6] * len(held) for name, n in still.items()}
        parts["kv"] = [e.kv_bytes / 1e6 for e in held]
        parts["activations"] = [e.activation_bytes / 1e6 for e in held]
        for name, y in parts.items():
            if any(y):
                look = {"fillcolor": SHADES[name], "line": {"width": 0.5, "color": SHADES[name]}}
                pattern = {"shape": PATTERNS[name], "fillmode": "overlay"}
                title = f"{label}: {word(f'm_{name}', lang)}"
                figure.add_scatter(x=x, y=y, name=title, stackgroup=lane, fillpattern=pattern, mode="lines", **look)
    return figure


def layers(runs: Runs, lang: str) -> go.Figure:
    """Layers that each pass's newest token waited for, and layer-rows computed per new token, left; the KV entries of
    the fullest layer, right."""
    figure = titled("c_layers", "x_pass", "y_layers", lang)
    for lane, events in runs.items():
        commits = [e for e in events if isinstance(e, Committed)]
        if not commits:
            continue
        x, label = list(range(1, len(commits) + 1)), _name(lane, lang)
        rows = [max(e.kv_rows, default=0) for e in commits]
        _line(figure, lane, f"{label}: {word('y_layers', lang)}", x, [e.layers_run for e in commits])
        if any(e.layer_rows for e in commits):
            computed = [e.layer_rows / max(len(e.tokens), 1) for e in commits]
            _line(figure, lane, f"{label}: {word('y_computed', lang)}", x, computed, dash="dash")
        _line(figure, lane, f"{label}: {word('y_rows', lang)}", x, rows, dash="dot", yaxis="y2")
    right_axis(figure, "y_rows", lang)
    return figure


def position(runs: Runs, lang: str) -> go.Figure | None:
    """In which share of the drafts the token at each position was accepted; None where nothing was drafted."""
    figure = titled("c_position", "x_position", "y_share", lang)
    for lane, events in runs.items():
        figures = ledger(events)
        shares = figures["acceptance_by_position"]
        if shares:
            figure.add_bar(
                x=list(range(1, len(shares) + 1)),
                y=shares,
                text=[f"{kept}/{figures['drafts']}" for _, _, kept in figures["accepted_by_depth"]],
                name=_name(lane, lang),
                marker_color=GREEN,
            )
    figure.update_xaxes(dtick=1)
    figure.update_yaxes(range=[0, 1])
    return figure if figure.data else None


DRAWN = (tokens, passes, memory, layers, position)
"""In the page's order."""


def all_of(events: Sequence[Event], lang: str) -> list[go.Figure | None]:
    """Every figure of a trace, as DRAWN; None for one that has nothing to show."""
    runs = lanes(events)
    return [draw(runs, lang) for draw in DRAWN]

"""What every Plotly figure of the page shares: colours that read on light and dark, axes, an empty figure."""

from __future__ import annotations

import plotly.graph_objects as go

from llmlab.ui.i18n import word

BLUE, GREY, GREEN, RED, ORANGE = "#2f6fde", "#9aa0a6", "#1a9850", "#d73027", "#e08214"
INK = "#7d8590"
GRID = "rgba(128,128,128,.2)"


def empty(title: str, x: str, y: str) -> go.Figure:
    """A figure without data whose colours read on a light and on a dark page."""
    figure = go.Figure()
    figure.update_layout(
        title={"text": title, "font": {"size": 15}},
        xaxis_title=x,
        yaxis_title=y,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK},
        margin={"l": 55, "r": 20, "t": 50, "b": 45},
        height=330,
        legend={"orientation": "h", "y": -0.25},
        hovermode="x unified",
        barmode="stack",
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False)
    figure.update_yaxes(gridcolor=GRID, rangemode="tozero")
    return figure


def titled(title: str, x: str, y: str, lang: str) -> go.Figure:
    """An empty figure whose title and axes are keys of the catalogue of words."""
    return empty(word(title, lang), word(x, lang), word(y, lang))


def right_axis(figure: go.Figure, title: str, lang: str) -> None:
    """A second axis on the right (`yaxis="y2"`) for what has another unit."""
    axis = {"title": word(title, lang), "overlaying": "y", "side": "right", "showgrid": False, "rangemode": "tozero"}
    figure.update_layout(yaxis2=axis)

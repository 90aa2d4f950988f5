"""The report as a page: ratios as bars, one group per case."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_page(value: dict[str, Any], where: Path) -> None:
    """The ratios as bars, one group per case, in a page that needs no network."""
    import plotly.graph_objects as go

    rows = value["cases"]
    names = list(dict.fromkeys(n for r in rows.values() for n in r["ratios"]))
    figure = go.Figure()
    for name in names:
        at = [c for c, r in rows.items() if name in r["ratios"]]
        ratios = [rows[c]["ratios"][name] for c in at]
        spread = [rows[c].get("spread", {}).get(name, [x, x]) for c, x in zip(at, ratios, strict=True)]
        low = [max(0.0, x - s[0]) for x, s in zip(ratios, spread, strict=True)]
        high = [max(0.0, s[1] - x) for x, s in zip(ratios, spread, strict=True)]
        error = {"type": "data", "symmetric": False, "array": high, "arrayminus": low}
        figure.add_bar(name=name, x=at, y=ratios, error_y=error)
    figure.add_hline(y=1)
    about = value["machine"]
    title = f"Times as fast as each peer: {value['model']}, {about['processor']}, {about['threads']} threads"
    figure.update_layout(barmode="group", title=title, yaxis={"type": "log", "title": "above 1: llmlab is faster"})
    figure.write_html(where, include_plotlyjs=True)

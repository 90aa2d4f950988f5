"""Which architectures run, and by which engine: the list beside the choice of a model."""

from __future__ import annotations

from html import escape

from llmlab.models.loading.architectures import Architecture, architectures, judged_with
from llmlab.ui.i18n import both_words


def architectures_html() -> str:
    """Three lists: what our decoder runs, what transformers runs for us, and what is refused, with the reason."""
    by_engine: dict[str, list[Architecture]] = {}
    for a in architectures():
        by_engine.setdefault(a.engine, []).append(a)
    ours, theirs = (", ".join(escape(a.kind) for a in by_engine.get(e, [])) for e in ("decoder", "transformers"))
    refused = "".join(f"<dt>{escape(a.kind)}</dt><dd>{escape(_why(a))}</dd>" for a in by_engine.get("none", []))
    counts = {e: len(by_engine.get(e, [])) for e in ("decoder", "transformers", "none")}
    return (
        f'<div class="card"><p>{both_words("models_run_info", version=judged_with())}</p><dl>'
        f"<dt>{both_words('models_decoder', count=counts['decoder'])}</dt><dd>{ours}</dd>"
        f"<dt>{both_words('models_transformers', count=counts['transformers'])}</dt><dd>{theirs}</dd></dl>"
        f"<p><strong>{both_words('models_none', count=counts['none'])}</strong></p><dl>{refused}</dl></div>"
    )


def _why(a: Architecture) -> str:
    """A refusal's reason without its subject, which stands before it, and without the way out, which is the same."""
    return a.why.removeprefix(f"The architecture {a.kind} ").removesuffix(" Choose another model.")

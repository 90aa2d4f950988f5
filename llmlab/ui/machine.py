"""The machine in words, and whether a model fits its free memory."""

from __future__ import annotations

from llmlab.errors import Refused
from llmlab.measure.hardware import free_memory, hardware
from llmlab.models.loading import catalog, environment, fit
from llmlab.models.loading.fit import gigabytes
from llmlab.models.loading.sources import locate
from llmlab.ui.gradio_events import refusal_html
from llmlab.ui.i18n import both, both_words, catalogue, word


def hardware_line(lang: str) -> str:
    """The machine in a few words, with what is free on it now."""
    h = hardware()
    sizes = {"free": gigabytes(free_memory(h.device)), "total": gigabytes(h.total)}
    if h.device == "cpu":
        return word("hardware_cpu", lang, cores=h.cores, **sizes)
    return word("hardware_gpu", lang, name=h.name, **sizes)


def fit_html(entry: catalog.Entry, weights: str, rows: int) -> str:
    """Whether a catalogue model fits now, with `rows` KV entries a layer: a bar, or the refusal with its way out."""
    h = hardware()
    free = free_memory(h.device)
    try:
        f = fit.require_fit(entry.size, weights, rows, free, entry.title, entry.formats, catalog.open_sizes())
    except Refused as e:
        return refusal_html(str(e))
    shares = {"w": 100 * f.weights / max(free, 1), "kv": 100 * f.kv / max(free, 1)}
    bar = "".join(f'<i class="{name}" style="width:{max(share, 0.5):.1f}%"></i>' for name, share in shares.items())
    sizes = {"weights": gigabytes(f.weights), "kv": gigabytes(f.kv), "free": gigabytes(free)}
    fits = both_words("fits", title=entry.title, **sizes)
    about = both(*(_about(entry, lang) for lang in catalogue()))
    return f'<div class="bar">{bar}</div><p class="hint">{fits}<br>{about}</p>'


def _about(entry: catalog.Entry, lang: str) -> str:
    """Licence, size and drafters of a model, and what getting it takes."""
    parts = [word("fits_about", lang, licence=entry.licence, parameters=f"{entry.parameters / 1e6:.0f}")]
    if entry.drafts:
        parts.append(word("drafts", lang, names=", ".join(entry.drafts)))
    if entry.gated:
        parts.append(word("gated", lang))
    if not locate.downloaded(entry):
        size = f" ({gigabytes(entry.mirror.nbytes)})" if entry.mirror else ""
        parts.append(word("missing", lang) if environment.offline() else word("not_here", lang, size=size))
    return " · ".join(parts)

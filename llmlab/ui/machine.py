"""The machine in words, and whether a model fits its free memory."""

from __future__ import annotations

from collections.abc import Mapping

from llmlab.errors import Refused
from llmlab.measure.hardware import free_memory, hardware
from llmlab.models.loading import catalog, environment, fit
from llmlab.models.loading.fit import size_text
from llmlab.models.loading.sources import locate
from llmlab.ui.gradio_events import refusal_html
from llmlab.ui.i18n import both, catalogue, word


def hardware_line(lang: str) -> str:
    """The machine in a few words, with what is free on it now."""
    h = hardware()
    sizes = {"free": size_text(free_memory(h.device)), "total": size_text(h.total)}
    if h.device == "cpu":
        return word("hardware_cpu", lang, cores=h.cores, **sizes)
    return word("hardware_gpu", lang, name=h.name, **sizes)


def fit_html(entry: catalog.Entry, weights: str, rows: int, copies: bool = True) -> str:
    """Whether a catalogue model fits now, with `rows` KV entries a layer: a bar, or the refusal with its way out.

    The parts are those that a run reports, by the same names. `copies`: whether they are wanted.
    """
    h = hardware()
    free = free_memory(h.device)
    copies = copies and entry.runs_on == "decoder"
    others = catalog.open_sizes()
    try:
        f = fit.require_fit(entry.size, weights, rows, free, entry.title, entry.formats, others, copies, h.device)
    except Refused as e:
        return refusal_html(str(e))
    shares = {"w": f.weights + f.copies, "kv": f.kv + f.activations}
    wide = {name: max(100 * part / max(free, 1), 0.5) for name, part in shares.items()}
    bar = "".join(f'<i class="{name}" style="width:{share:.1f}%"></i>' for name, share in wide.items())
    fits = both(*(_fits(entry, f, lang) for lang in catalogue()))
    about = both(*(_about(entry, lang) for lang in catalogue()))
    return f'<div class="bar">{bar}</div><p class="hint">{fits}<br>{about}</p>'


def _fits(entry: catalog.Entry, f: fit.Fit, lang: str) -> str:
    total = size_text(sum(f.parts.values()))
    return word("fits", lang, title=entry.title, total=total, parts=parts_text(f.parts, lang), free=size_text(f.free))


def parts_text(parts: Mapping[str, int], lang: str) -> str:
    """Bytes by part as "weights 96 MB + KV cache 6.0 MB"; parts of nothing are left out."""
    return " + ".join(f"{word(f'm_{name}', lang)} {size_text(n)}" for name, n in parts.items() if n)


def _about(entry: catalog.Entry, lang: str) -> str:
    """Licence, size and drafters of a model, and what getting it takes."""
    parts = [word("fits_about", lang, licence=entry.licence, parameters=f"{entry.parameters / 1e6:.0f}")]
    if entry.drafts:
        parts.append(word("drafts", lang, names=", ".join(entry.drafts)))
    if entry.gated:
        parts.append(word("gated", lang))
    if not locate.downloaded(entry):
        size = f" ({size_text(entry.mirror.nbytes)})" if entry.mirror else ""
        parts.append(word("missing", lang) if environment.offline() else word("not_here", lang, size=size))
    return " · ".join(parts)

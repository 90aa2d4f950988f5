"""What the page says about a technique: its claim, its badge and its card, all from the technique's own class."""

from __future__ import annotations

from html import escape

from llmlab.stack import Stack
from llmlab.technique import LABELS, Technique, card
from llmlab.ui.words import word

CLAIMS_ZH = {
    "prompt-lookup": "照抄前文中相同词语之后的内容作为猜测。",
    "draft-model": "由更便宜的模型先猜，模型一次验证多个词元。",
    "self-speculation": "跳过部分层来猜，再用全部层验证。",
    "streaming-llm": "只保留开头几个词元和最近的窗口，忘掉中间。",
    "h2o": "保留获得注意力最多的词元和最近的词元。",
    "magnitude": "把最小的权重置零。",
    "wanda": "把“大小×输入”最小的权重置零。",
    "neuron-drop": "去掉整个神经元：矩阵变小，节省是真实的。",
    "layer-drop": "去掉整层：权重、时间和 KV 内存一起减少。",
    "early-exit": "模型已有把握时在中间层停下。",
}
"""Claims in Chinese by technique id; a technique without one shows its English claim."""


def claim(technique: type[Technique], lang: str) -> str:
    return CLAIMS_ZH.get(technique._id(), technique.claim) if lang == "zh-CN" else technique.claim


def badge(kind: str, lang: str) -> str:
    """A small label; `kind` is "lossless", "lossy", "plain" or "simulated"."""
    return f'<span class="badge badge-{kind}">{escape(word(kind, lang))}</span>'


def stack_badge(stack: Stack, lang: str) -> str:
    """The badges of a whole stack, computed from its members and their knobs."""
    if not len(stack):
        return badge("plain", lang)
    badges = [badge("lossless" if stack.lossless() else "lossy", lang)]
    if stack.simulated():
        badges.append(badge("simulated", lang))
    return " ".join(badges)


def summary(technique: type[Technique], lang: str) -> str:
    """Badges and claim on one line."""
    badges = badge("lossless" if technique.exact else "lossy", lang)
    if technique.speed == "simulated":
        badges += " " + badge("simulated", lang)
    return f'<p class="claim">{badges} {escape(claim(technique, lang))}</p>'


def body(technique: type[Technique]) -> str:
    """The card's four paragraphs and the papers it covers, as escaped HTML."""
    parts = card(technique)
    rows = "".join(f"<dt>{label}</dt><dd>{escape(parts.get(label, ''))}</dd>" for label in LABELS)
    sources = [_source(c) for c in technique.covers]
    return f'<dl class="card">{rows}<dt>Source</dt><dd>{", ".join(sources)}</dd></dl>'


def _source(cover: str) -> str:
    if cover.startswith("https://"):
        short = cover.removeprefix("https://").removeprefix("arxiv.org/abs/")
        label = f"arXiv {short}" if "arxiv.org" in cover else short
        return f'<a href="{escape(cover)}" target="_blank" rel="noopener">{escape(label)}</a>'
    return _survey().get(cover, escape(cover))


def _survey() -> dict[str, str]:
    global _ROWS
    if _ROWS is None:
        import json

        from llmlab.tools import ASSETS

        rows = json.loads((ASSETS / "survey.json").read_text(encoding="utf-8"))
        _ROWS = {}
        for r in rows:
            label = escape(f"{r['title']} ({r['year']})" if r.get("year") else r["title"])
            if r.get("arxiv"):
                at = f"https://arxiv.org/abs/{escape(r['arxiv'])}"
                label = f'<a href="{at}" target="_blank" rel="noopener">{label}</a>'
            _ROWS[r["id"]] = label
    return _ROWS


_ROWS: dict[str, str] | None = None

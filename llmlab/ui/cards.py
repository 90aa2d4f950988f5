"""What the page says about a technique: its claim, its badge and its card, all from the technique's own class."""

from __future__ import annotations

import json
import re
from functools import cache
from html import escape

from llmlab.stack import Stack
from llmlab.technique import LABELS, Technique, card, registry
from llmlab.tools import ASSETS
from llmlab.ui.words import both, both_words

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


def badge(kind: str) -> str:
    """A small label in both languages; `kind` is "lossless", "lossy", "plain" or "simulated"."""
    return f'<span class="badge badge-{kind}">{both_words(kind)}</span>'


def stack_badge(stack: Stack) -> str:
    """The badges of a whole stack, computed from its members and their knobs."""
    badges = [badge(("lossless" if stack.lossless() else "lossy") if len(stack) else "plain")]
    if stack.simulated():
        badges.append(badge("simulated"))
    return f'<p class="hint">{both_words("stack_is")} {" ".join(badges)}</p>'


def summary(technique: type[Technique]) -> str:
    """Badges and claim on one line."""
    badges = badge("lossless" if technique.exact else "lossy")
    if technique.speed == "simulated":
        badges += " " + badge("simulated")
    claim = both(technique.claim, CLAIMS_ZH.get(technique._id(), technique.claim))
    return f'<p class="claim">{badges} {claim}</p>'


def switch_rules() -> str:
    """CSS that greys a technique's switch where its family carries the class no-<id>."""
    return "".join(
        f'.no-{name} label:has(input[value="{name}"]) {{ opacity: .4; pointer-events: none; }}\n' for name in registry()
    )


def body(technique: type[Technique]) -> str:
    """The card's four paragraphs and the papers it covers, as escaped HTML."""
    parts = card(technique)
    texts = {label: re.sub(r"`(.+?)`", r"<code>\1</code>", escape(parts.get(label, ""))) for label in LABELS}
    rows = "".join(f"<dt>{label}</dt><dd>{text}</dd>" for label, text in texts.items())
    sources = [_source(c) for c in technique.covers]
    return f'<dl class="card">{rows}<dt>Source</dt><dd>{", ".join(sources)}</dd></dl>'


def _source(cover: str) -> str:
    if cover.startswith("https://"):
        short = cover.removeprefix("https://").removeprefix("arxiv.org/abs/")
        label = f"arXiv {short}" if "arxiv.org" in cover else short
        return f'<a href="{escape(cover)}" target="_blank" rel="noopener">{escape(label)}</a>'
    return _survey().get(cover, escape(cover))


@cache
def _survey() -> dict[str, str]:
    """Each row of the survey as a link, by id."""
    found = {}
    for r in json.loads((ASSETS / "survey.json").read_text(encoding="utf-8")):
        label = escape(f"{r['title']} ({r['year']})" if r.get("year") else r["title"])
        if r.get("arxiv"):
            at = f"https://arxiv.org/abs/{escape(r['arxiv'])}"
            label = f'<a href="{at}" target="_blank" rel="noopener">{label}</a>'
        found[r["id"]] = label
    return found

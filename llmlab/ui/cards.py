"""What the page says about a technique: its claim, its badge and its card, all from the technique's own class."""

from __future__ import annotations

import json
import re
from functools import cache
from html import escape

from llmlab.assets import ASSETS
from llmlab.lab.study import Study
from llmlab.runtime.configurable import LABELS, Configurable, card, title
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import Technique, registry
from llmlab.ui.i18n import both, both_words, catalogue, word

LANGUAGES = tuple(catalogue())

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
    "typical": "只要模型认为猜测合乎情理就接受，不必是它的首选。",
    "blockwise-acceptance": "猜测在模型的前 k 个之内，或数值相近，也算数。",
    "lenience": "猜测与模型首选的概率相差不大时，就让它算数。",
    "bild": "小模型的词元照用，除非大模型觉得太意外。",
    "draft-heads": "训练好的小头从一个隐藏状态一次猜出几个词元。",
    "eagle": "一个训练好的小层，根据模型自己的隐藏状态来猜。",
    "jacobi": "猜出一整块词元，让模型一次全部改正。",
    "layer-skip": "提前退出来打草稿，再只用剩下的层验证。",
    "lookahead": "从超前的错误猜测中收集短语，轮到时再试用。",
    "multi-draft": "把几个草稿者的猜测合成一棵树，一次验证。",
    "suffix-matching": "照抄相同词语之后最常出现的内容，匹配越长抄得越远。",
    "hash-exit": "每个词都有事先固定的退出层。",
    "skip-decode": "越靠后的词元运行的层越少，只看位置。",
    "skip-layer": "每层前的小路由器让词元绕过该层。",
    "token-drop": "让提示中没人注意的词在进入深层之前离开。",
}
"""Claims in Chinese by technique id; a technique without one shows its English claim."""


STUDIES_ZH = {
    "answer-cache": "保留重新回答代价最高的答案，并选择由谁给出新答案。",
    "cascade-bert": "一串完整且经过校准的小模型，与一个深模型的各个出口相比。",
    "exit-rules": "一句话提前离开冻结模型的七种方式，同一任务，同一代价轴。",
    "frugal-gpt": "在预算内学习问谁、按什么顺序问、相信谁。",
    "idle-speculation": "只在批次空出的行里猜测，投机就不应降低吞吐量。",
    "mot-cascade": "当弱模型的推理链与程序结论一致时，就相信它。",
    "reasoning": "直接回答、推理链与程序：什么对，什么出错，代价多少。",
    "tabi": "经过校准的各级、删减的词和加权的答案，并测量时间。",
    "token-drop": "让词在最后一层之前离开冻结模型的五种方式，以及留下的词。",
    "sweep": "调节一种技术的主要参数，在未曾用过的提示词上画出质量与代价。",
}
"""The same for studies."""


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


def study_head(study: type[Study]) -> str:
    """A study's title and claim."""
    badges = badge("simulated") + " " if study.speed == "simulated" else ""
    claim = both(study.claim, STUDIES_ZH.get(study._id(), study.claim))
    return f'<h2>{escape(title(study))}</h2><p class="claim">{badges}{claim}</p>'


def search_box() -> str:
    """Where a visitor looks for a technique; page.js does the looking, in `search_index`."""
    en, zh = word("search", "en"), word("search", "zh-CN")
    field = '<input type="search" autocomplete="off" maxlength="60" data-search aria-label="{0}" placeholder="{0}">'
    none = f'<p class="hint" hidden data-search-none>{both_words("search_none")}</p>'
    return "".join(f'<span class="{c}">{field.format(escape(t))}</span>' for c, t in (("en", en), ("zh", zh))) + none


def search_index() -> dict[str, dict[str, str]]:
    """Per technique its family and the words by which it is found: name, claims and papers, in lower case."""
    found = {}
    for name, t in registry().items():
        papers = " ".join(re.sub(r"<[^>]*>", "", _source(c)) for c in t.covers)
        words = [name, title(t), t.claim, CLAIMS_ZH.get(name, ""), papers, *(word(t.role, lang) for lang in LANGUAGES)]
        found[name] = {"door": t.role, "words": " ".join(words).lower()}
    return found


def fold(door: str, count: int, open_: bool) -> str:
    """The button that folds and unfolds a family of techniques."""
    told = f'{both_words(door)} <span class="count">{count}</span>'
    return f'<button type="button" class="fold" data-fold="{door}" aria-expanded="{str(open_).lower()}">{told}</button>'


def switch_rules() -> str:
    """CSS that greys a technique's switch where its family carries the class no-<id>.

    Gradio gives the id of a choice to a radio button as its value and to a checkbox as its name.
    """
    return "".join(
        f'.no-{n} label:has(input:is([value="{n}"], [name="{n}"])) {{ opacity: .4; pointer-events: none; }}\n'
        for n in registry()
    )


def body(technique: type[Configurable]) -> str:
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

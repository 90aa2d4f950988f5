"""What else the study shows of dropped tokens: the time to an answer, how alike words grow, which words stay."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import torch.nn.functional as F

from llmlab.lab.study import Cell, Claim
from llmlab.runtime.clock import Clock
from llmlab.studies.support.classification.classify import encoded
from llmlab.studies.support.classification.sentences import make
from llmlab.studies.support.token_drop.bench import Bench
from llmlab.studies.support.token_drop.outcomes import DropSetting, outcome

LONG = (110, 150)
"""Words of the long texts that are timed."""
LAPS = 3


def timed(b: Bench, settings: Sequence[DropSetting], count: int) -> list[dict[str, Any]]:
    """The time to the answer of single texts, each setting in turn; ratios to all tokens are of the same lap."""
    t = b.t
    short = [t.ids["test"][i] for i in range(min(count, len(t.ids["test"])))]
    made = make(3, 1, 1, max(1, count // 2), t.data.seed, LONG).test
    long = encoded(b.subject.tokenizer, [s.text for s in made])
    clock = Clock(t.model.device)
    rows = []
    for name, texts in (("short", short), ("long", long)):
        seconds: dict[int, list[float]] = {i: [] for i in range(len(settings))}
        for i, ids in enumerate(texts):
            b.subject.progress(f"Timing {name} texts", i, len(texts))
            for lap in range(LAPS + 1):
                for w, setting in enumerate(settings):
                    start = clock()
                    outcome(t, setting, [ids])
                    if lap:  # the first warms up
                        seconds[w].append(clock() - start)
        for w, setting in enumerate(settings):
            ratio = [plain / own for plain, own in zip(seconds[0], seconds[w], strict=True)]
            rows.append(
                {
                    "method": setting.name,
                    "setting": setting.value,
                    "texts": name,
                    "tokens": statistics.fmean(map(len, texts)),
                    "ms": 1000 * statistics.median(seconds[w]),
                    "speedup": statistics.median(ratio),
                }
            )
    return rows


def faster(times: Sequence[dict[str, Any]]) -> Iterator[Claim]:
    for name in dict.fromkeys(r["method"] for r in times if r["method"] != "All tokens"):
        told = {r["texts"]: r for r in times if r["method"] == name}
        yield Claim(
            name,
            "Fewer words are less time, measured, on long texts at least.",
            told["long"]["speedup"] > 1,
            "; ".join(
                f"{k} texts of {r['tokens']:.0f} tokens: {r['ms']:.0f} ms to the answer, {r['speedup']:.2f}x as fast"
                for k, r in told.items()
            ),
        )


def likeness(b: Bench) -> Iterator[dict[str, Any]]:
    """Mean cosine between two words of a sentence, the first one left out, by layer."""
    f = b.found
    for l in range(1, len(f.h)):
        found = []
        for x, y in f.spans:
            h = F.normalize(f.h[l, x + 1 : y], dim=-1)
            n = y - x - 1
            found.append(float(((h @ h.t()).sum() - n) / (n * (n - 1))))
        yield {"method": "All tokens", "layer": l, "cosine": statistics.fmean(found)}


def survivors(b: Bench, setting: DropSetting, example: int) -> Iterator[dict[str, Cell]]:
    """Which words of one sentence are still there after each place, the others as dots."""
    t, ids = b.t, b.t.ids["test"][example]
    words = [b.subject.tokenizer.decode([i]) for i in ids]
    for layer, (kept,) in sorted(outcome(t, setting, [ids]).kept.items()):
        here = set(kept.tolist())
        shown = [w if i in here else "·" for i, w in enumerate(words)]
        yield {"method": setting.name, "setting": setting.value, "layer": layer, "words": "".join(shown)}

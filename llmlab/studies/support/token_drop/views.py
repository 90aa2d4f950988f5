"""What else the study shows of dropped tokens: the time to an answer, how alike words grow, which words stay."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.lab.study import Cell, Claim
from llmlab.measure.statistics import Estimate, mean
from llmlab.runtime.clock import Clock
from llmlab.studies.support.classification.classify import encoded
from llmlab.studies.support.classification.sentences import make
from llmlab.studies.support.token_drop.bench import Bench
from llmlab.studies.support.token_drop.outcomes import DropSetting, outcome

LONG = (110, 150)
"""Words of the long texts that are timed."""
LAPS = 3


def timed(b: Bench, settings: Sequence[DropSetting], count: int) -> list[dict[str, Any]]:
    """The time to the answer of single texts, each setting in turn; ratios to all tokens are of the same lap.

    A text's ratio is the median of its laps; the mean over texts has their error.
    """
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
            ratio = torch.tensor(seconds[0], dtype=torch.double) / torch.tensor(seconds[w], dtype=torch.double)
            by_text = mean(ratio.view(-1, LAPS).median(1).values)
            rows.append(
                {
                    "method": setting.name,
                    "setting": setting.value,
                    "texts": name,
                    "count": len(texts),
                    "tokens": statistics.fmean(map(len, texts)),
                    "ms": 1000 * statistics.median(seconds[w]),
                    "speedup": by_text.value,
                    "speedup_error": by_text.error if len(texts) > 1 else None,
                }
            )
    return rows


def faster(times: Sequence[dict[str, Any]]) -> Iterator[Claim]:
    for name in dict.fromkeys(r["method"] for r in times if r["method"] != "All tokens"):
        told = {r["texts"]: _faster(r) for r in times if r["method"] == name}
        estimate, _ = told["long"]
        yield Claim(
            name,
            "Fewer words are less time, measured, on long texts at least.",
            estimate.above(1.0),
            "; ".join(words for _, words in told.values()),
        )


def _faster(r: dict[str, Any]) -> tuple[Estimate, str]:
    """A row of `timed` as an estimate of how many times as fast a method is, and in words."""
    error = r["speedup_error"]
    found = Estimate(r["speedup"], math.inf if error is None else error, r["count"] - 1)
    by = f"{r['speedup']:.2f} times" if error is None else f"{r['speedup']:.2f} ± {error:.2f} times"
    size = f"{r['count']} {r['texts']} texts of {r['tokens']:.0f} tokens"
    return found, f"{size}: {r['ms']:.0f} ms to the answer, {by} as fast"


def likeness(b: Bench) -> Tensor:
    """(L - 1, sentences): mean cosine between two words of a sentence, the first one left out, from layer 1 on."""
    f = b.found
    found = torch.empty(len(f.h) - 1, len(f.spans), dtype=torch.double)
    for l in range(1, len(f.h)):
        for i, (x, y) in enumerate(f.spans):
            h = F.normalize(f.h[l, x + 1 : y], dim=-1)
            n = y - x - 1
            found[l - 1, i] = ((h @ h.t()).sum() - n) / (n * (n - 1))
    return found


def survivors(b: Bench, setting: DropSetting, example: int) -> Iterator[dict[str, Cell]]:
    """Which words of one sentence are still there after each place, the others as dots."""
    t, ids = b.t, b.t.ids["test"][example]
    words = [b.subject.tokenizer.decode([i]) for i in ids]
    for layer, (kept,) in sorted(outcome(t, setting, [ids]).kept.items()):
        here = set(kept.tolist())
        shown = [w if i in here else "·" for i, w in enumerate(words)]
        yield {"method": setting.name, "setting": setting.value, "layer": layer, "words": "".join(shown)}

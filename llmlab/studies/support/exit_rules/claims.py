"""What the papers claim, and what the test sentences say to it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmlab.lab.study import Claim
from llmlab.measure.statistics import bootstrap, every, mean, paired
from llmlab.studies.support.classification.classify import Exits, run_exits
from llmlab.studies.support.classification.curves import Curve, led
from llmlab.studies.support.exit_rules.methods import ExitMethod, deebert
from llmlab.studies.support.exit_rules.tried import Tried
from llmlab.techniques.early_exit import rules

NOISY = 150
"""Sentences that are read again with wrong words in them."""
SEEN = ("local", "past", "past and future")


SURER = 0.9
"""Share of the layers that counts as all of them: the first ones know next to nothing."""
FASTER = 1.1
"""Times fewer layers that count as a speed-up."""
LARGE = 0.02
"""The difference between shares that Past-Future's margin must exceed to be a large one."""


def most_leave_early(f: Tried) -> list[Claim]:
    source, claim = "BranchyNet, arXiv 1709.01686", "Most samples leave at a side branch, with little or no loss."
    return [_spares(f, source, claim, lambda exits: (exits.layers < f.t.layers).double(), 0.5, "leave at a branch")]


def forty_percent(f: Tried) -> list[Claim]:
    source, claim = "DeeBERT, arXiv 2004.12993", "Up to about 40 % of the time is saved with little loss."
    return [_spares(f, source, claim, lambda exits: 1 - exits.layers / f.t.layers, 0.4, "of the layers saved")]


def _spares(f: Tried, source: str, claim: str, worth: Callable[[Exits], Tensor], least: float, words: str) -> Claim:
    """Whether a setting that calibration sentences chose spares at least so much at the loss allowed."""
    setting = f.best(worth, least)
    found = mean(worth(f.exits[setting]))
    holds = every(found.above(least), f.gain(setting).above(-f.loss))
    return Claim(source, claim, holds, f"{found.value:.0%} ± {found.error:.0%} {words}; {f.told(setting)}")


def uncertainty_and_students(f: Tried) -> list[Claim]:
    taught = (f.t.probes(f.t.x["test"]).argmax(-1) == f.full)[:-1].double()
    student = (f.method.p["test"].argmax(-1) == f.full)[:-1].double()
    gain = paired(student.mean(0), taught.mean(0))
    layers = f.exits[f.nearest].layers.double() / f.t.layers
    most = f.t.layers / min(cost for cost, _ in f.curve().points())
    return [
        _surer(f.method.p["test"], f.t.y["test"]),
        Claim(
            "FastBERT, arXiv 2004.02178",
            "Branches taught by the last classifier, without labels, follow it well.",
            gain.above(-f.loss),
            f"they agree with it {gain.points()} more often than branches taught by labels, on average over the "
            f"layers; well is at most {100 * f.loss:g} points less often",
        ),
        Claim(
            "FastBERT, arXiv 2004.02178",
            "A speed-up from 1x to 12x depending on the speed threshold, with little loss at low speeds.",
            every(mean(layers).below(1 / FASTER), f.gain(f.nearest).above(-f.loss)),
            f"{1 / float(layers.mean()):.1f}x fewer layers at the chosen speed, {most:.1f}x at the highest speed "
            f"tried; {f.told(f.nearest)}",
        ),
    ]


def _surer(p: Tensor, y: Tensor) -> Claim:
    """Whether the surer half of the sentences is at least as accurate as the rest, p (l, n, C) by p (l, n, C)."""
    right = (p.argmax(-1) == y).double()
    sure = torch.zeros_like(right)
    sure.scatter_(1, rules.entropy(p).argsort(1)[:, : p.shape[1] // 2], 1.0)

    def halves(at: Tensor) -> tuple[Tensor, Tensor]:
        """(l,) each: the accuracy of the surer half and of the rest."""
        a, b = ((right * m)[:, at].sum(1) / m[:, at].sum(1).clamp_min(1) for m in (sure, 1 - sure))
        return a, b

    def layers(at: Tensor) -> float:
        one, other = halves(at)
        return float((one >= other).double().mean())

    found = bootstrap(layers, len(y))
    one, other = (float(x.mean()) for x in halves(torch.arange(len(y))))
    return Claim(
        "FastBERT, arXiv 2004.02178, section 3.3",
        "The lower the uncertainty, the higher the accuracy, at every layer.",
        found.above(SURER),
        f"at {found.value:.0%} ± {found.error:.0%} of {len(p)} layers the surer half is at least as accurate, against "
        f"{SURER:.0%}; {one:.1%} against {other:.1%} on average",
    )


def _above(source: str, claim: str, one: Curve, other: Curve, words: str) -> Claim:
    """Whether one curve of accuracy against layers lies above another, over the depths that both reach."""
    ahead = led(one, other)
    if ahead is None:
        return Claim(source, claim, None, "the two have no depth in common", testable=False)
    return Claim(source, claim, ahead.above(), f"{ahead.points()} {words}")


def patience(f: Tried) -> list[Claim]:
    source, other = "PABEE, arXiv 2006.04152", deebert(f.t)
    setting = f.most_accurate(list(f.exits))
    claims = [
        Claim(
            source,
            "Some patience is more accurate than all layers: models overthink.",
            f.gain(setting).above(),
            f"patience {setting}, best on calibration sentences, is {f.gain(setting).points()} from "
            f"all layers after {f.exits[setting].mean():.1f} layers on average",
        ),
        _above(
            source,
            "Patience beats entropy at the same number of layers.",
            f.curve(),
            other.curve("test", f.t.y["test"]),
            "on average over the numbers of layers that both reach",
        ),
    ]
    if f.noise:
        claims.append(_robust(f, other))
    return claims


def _robust(f: Tried, other: ExitMethod) -> Claim:
    """Both rules on clean and on noisy copies of some test sentences, each at its own chosen threshold."""
    t, n = f.t, min(NOISY, len(f.t.y["test"]))
    rng = torch.Generator().manual_seed(t.data.seed)
    noisy = []
    for ids in t.ids["test"][:n]:
        wrong = torch.rand(len(ids), generator=rng) < f.noise
        wrong[len(ids) - t.asked :] = False
        random = torch.randint(0, t.shape.vocab, (len(ids),), generator=rng)
        noisy.append(torch.where(wrong, random, torch.tensor(ids)).tolist())
    answers = t.probes(t.see(noisy))
    y = t.y["test"][:n]
    falls = []
    for found in (f, Tried(t, other, f.full, f.loss)):
        exits = run_exits(dict(found.method.tried)[found.nearest], answers, found.method.depths)
        falls.append((exits.labels == y).double() - (found.exits[found.nearest].labels[:n] == y).double())
    gap = paired(*falls)
    return Claim(
        "PABEE, arXiv 2006.04152",
        "Patience is more robust to disturbed input than entropy.",
        gap.above(),
        f"with {f.noise:.0%} wrong words accuracy falls by {-100 * float(falls[0].mean()):.1f} points under "
        f"patience and by {-100 * float(falls[1].mean()):.1f} under entropy, ± {100 * gap.error:.1f}, on {n} sentences",
    )


def memory(f: Tried) -> list[Claim]:
    return [
        _above(
            "MPEE, aclanthology 2022.coling-1.414",
            "Classifiers that recycle what earlier ones said are better than ones that forget, at equal depth.",
            f.curve(),
            deebert(f.t).curve("test", f.t.y["test"]),
            "against DeeBERT on average over the depths that both reach",
        )
    ]


def early_margin(f: Tried) -> list[Claim]:
    y, p, L = f.t.y["test"], f.method.p, f.t.layers
    early = max(1, L // 4)
    local = (f.t.probes(f.t.x["test"]).argmax(-1) == y).double()
    past, both = ((p[k].argmax(-1) == y).double() for k in ("past", "test"))
    gain = paired(both[:early].mean(0), local[:early].mean(0))
    shown = ", ".join(
        f"{name} {float(a[:early].mean()):.1%}" for name, a in zip(SEEN, (local, past, both), strict=True)
    )
    wrong = p["error"]
    return [
        Claim(
            "Past-Future, aclanthology 2021.naacl-main.162",
            "Seeing the past and an imitated future gives a large margin at very early exits.",
            gain.above(LARGE),
            f"over the first {early} layers: {shown} ({gain.points()}, large from {100 * LARGE:g} on); the imitated "
            f"states are wrong by {float(wrong[0]):.2f} of their variance from the first layer and by "
            f"{float(wrong[L // 2]):.2f} from the middle",
        )
    ]


CLAIMS: dict[str, Callable[[Tried], list[Claim]]] = {
    "branchynet": most_leave_early,
    "deebert": forty_percent,
    "fastbert": uncertainty_and_students,
    "pabee": patience,
    "mpee": memory,
    "past-future-exit": early_margin,
}

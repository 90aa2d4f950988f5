"""What the papers claim, and what the test sentences say to it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from llmlab.lab.study import Claim
from llmlab.measure.statistics import at_most_lost, paired_difference, points
from llmlab.studies.support.classification.classify import run_exits
from llmlab.studies.support.classification.curves import lead
from llmlab.studies.support.exit_rules.methods import ExitMethod, deebert
from llmlab.studies.support.exit_rules.tried import Tried
from llmlab.techniques.early_exit import rules

NOISY = 150
"""Sentences that are read again with wrong words in them."""
SEEN = ("local", "past", "past and future")
ROBUST = "Patience is more robust to disturbed input than entropy."


def most_leave_early(f: Tried) -> list[Claim]:
    source, claim = "BranchyNet, arXiv 1709.01686", "Most samples leave at a side branch, with little or no loss."
    found = f.best(lambda exits: float((exits.layers < f.t.layers).double().mean()) > 0.5)
    if found is None:
        return [Claim(source, claim, False, "under no thresholds that were tried do most sentences leave early")]
    exits, gain, error, told = found
    early = float((exits.layers < f.t.layers).double().mean())
    return [Claim(source, claim, at_most_lost(gain, error, f.loss), f"{early:.0%} leave at a branch; {told}")]


def forty_percent(f: Tried) -> list[Claim]:
    source, claim = "DeeBERT, arXiv 2004.12993", "Up to about 40 % of the time is saved with little loss."
    found = f.best(lambda exits: exits.mean() <= 0.6 * f.t.layers)
    if found is None:
        return [Claim(source, claim, False, "no threshold that was tried saves 40 % of the layers")]
    exits, gain, error, told = found
    saved = 1 - exits.mean() / f.t.layers
    return [Claim(source, claim, at_most_lost(gain, error, f.loss), f"{saved:.0%} of the layers saved; {told}")]


def uncertainty_and_students(f: Tried) -> list[Claim]:
    p, y = f.method.p["test"], f.t.y["test"]
    right = (p.argmax(-1) == y).double()
    unsure = rules.entropy(p)
    half = p.shape[1] // 2
    order = unsure.argsort(1)
    sure, rest = (right.gather(1, part).mean(1) for part in (order[:, :half], order[:, half:]))
    layers = int((sure >= rest).sum())
    taught = (f.t.probes(f.t.x["test"]).argmax(-1) == f.full)[:-1].double()
    student = (p.argmax(-1) == f.full)[:-1].double()
    gain, error = paired_difference(student.mean(0), taught.mean(0))
    gain_full, error_full = f.against_full()
    fast = f.t.layers / f.chosen.mean()
    return [
        Claim(
            "FastBERT, arXiv 2004.02178, section 3.3",
            "The lower the uncertainty, the higher the accuracy, at every layer.",
            layers >= 0.9 * len(right),
            f"at {layers} of {len(right)} layers the surer half is at least as accurate; "
            f"{float(sure.mean()):.1%} against {float(rest.mean()):.1%} on average",
        ),
        Claim(
            "FastBERT, arXiv 2004.02178",
            "Branches taught by the last classifier, without labels, follow it well.",
            gain > -error,
            f"they agree with it {points(gain, error)} more often than branches taught by "
            "labels, on average over the layers",
        ),
        Claim(
            "FastBERT, arXiv 2004.02178",
            "A speed-up from 1x to 12x depending on the speed threshold, with little loss at low speeds.",
            at_most_lost(gain_full, error_full, f.loss) if fast > 1.1 else False,
            f"{fast:.1f}x fewer layers at the chosen speed, {f.t.layers / min(c for c, _ in f.curve()):.1f}x at the "
            f"highest speed tried; {f.told()}",
        ),
    ]


def patience(f: Tried) -> list[Claim]:
    y = {part: f.t.y[part] for part in ("calibration", "test")}
    tried = f.method.curve("calibration", y["calibration"])
    best = max(range(len(tried)), key=lambda i: (tried[i][1], -tried[i][0]))
    setting = f.method.tried[best][0]
    gain, error = paired_difference((f.exits[setting].labels == y["test"]).double(), f.right)
    other = deebert(f.t)
    ahead = lead(f.curve(), other.curve("test", y["test"]))
    claims = [
        Claim(
            "PABEE, arXiv 2006.04152",
            "Some patience is more accurate than all layers: models overthink.",
            None if abs(gain) < error else gain > 0,
            f"patience {setting}, best on calibration sentences, is {points(gain, error)} from "
            f"all layers after {f.exits[setting].mean():.1f} layers on average",
        ),
        Claim(
            "PABEE, arXiv 2006.04152",
            "Patience beats entropy at the same number of layers.",
            None if ahead is None else ahead > 0,
            "the two have no number of layers in common"
            if ahead is None
            else f"{100 * ahead:+.1f} points on average over the numbers of layers that both reach",
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
        rule = dict(found.method.tried).get(found.setting)
        if rule is None:
            return Claim("PABEE, arXiv 2006.04152", ROBUST, None, "no threshold was good enough to compare")
        exits = run_exits(rule, answers, found.method.depths)
        falls.append((exits.labels == y).double() - (found.exits[found.setting].labels[:n] == y).double())
    gap, error = paired_difference(*falls)
    return Claim(
        "PABEE, arXiv 2006.04152",
        ROBUST,
        None if abs(gap) < error else gap > 0,
        f"with {f.noise:.0%} wrong words accuracy falls by {-100 * float(falls[0].mean()):.1f} points under "
        f"patience and by {-100 * float(falls[1].mean()):.1f} under entropy, ± {100 * error:.1f}, on {n} sentences",
    )


def memory(f: Tried) -> list[Claim]:
    own, forgetful = f.curve(), deebert(f.t).curve("test", f.t.y["test"])
    ahead = lead(own, forgetful)
    return [
        Claim(
            "MPEE, aclanthology 2022.coling-1.414",
            "Classifiers that recycle what earlier ones said are better than ones that forget, at equal depth.",
            None if ahead is None else ahead > 0,
            "the two have no depth in common"
            if ahead is None
            else f"{100 * ahead:+.1f} points against DeeBERT on average over the depths that both reach",
        )
    ]


def early_margin(f: Tried) -> list[Claim]:
    y, p, L = f.t.y["test"], f.method.p, f.t.layers
    early = max(1, L // 4)
    local = (f.t.probes(f.t.x["test"]).argmax(-1) == y).double()
    past, both = ((p[k].argmax(-1) == y).double() for k in ("past", "test"))
    gain, error = paired_difference(both[:early].mean(0), local[:early].mean(0))
    shown = ", ".join(
        f"{name} {float(a[:early].mean()):.1%}" for name, a in zip(SEEN, (local, past, both), strict=True)
    )
    wrong = p["error"]
    return [
        Claim(
            "Past-Future, aclanthology 2021.naacl-main.162",
            "Seeing the past and an imitated future gives a large margin at very early exits.",
            None if abs(gain) < error else gain > 0.02,
            f"over the first {early} layers: {shown} ({points(gain, error)}); the imitated "
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

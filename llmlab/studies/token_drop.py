from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab import selectors
from llmlab.classify import Data, Task, batch_of, encoded, flops, lead, leave, paired, task
from llmlab.dropping import AtLeast, Dropping, Fate, Selector, Top, places
from llmlab.exits import Entropy
from llmlab.meter import Clock
from llmlab.saliency import Saliency, saliency
from llmlab.selectors import Contribution, Policy
from llmlab.sentences import make
from llmlab.study import Cell, Chart, Claim, Findings, Study, Subject
from llmlab.technique import knob

TIMES = 6
"""How often words may be dropped, evenly from an early layer to the last."""
ASKED = 32
"""Training sentences whose loss is differentiated."""
LEARNED = 24
"""Of them, those that predictors learn from; the others test them."""
AT_ONCE = 16
"""Sentences read in one pass."""
LONG = (110, 150)
"""Words of the long texts that are timed."""
LAPS = 3
PRICE = 1.0
"""What a policy pays for keeping every word in every layer, in nats."""


Plan = Mapping[int, Selector]


@dataclass
class Way:
    """One setting: which selector stands after which layer, and what becomes of the words that leave."""

    name: str
    setting: str
    plan: Plan
    fate: Fate = "discard"

    def depth(self) -> Dropping:
        return Dropping(self.plan, self.fate)


@dataclass
class Outcome:
    """A way on n sentences: scaled states (L, n, E) of their last tokens, and the tokens of each layer, (n, L)."""

    x: Tensor
    counts: list[list[int]]
    kept: dict[int, list[Tensor]] = field(default_factory=dict)

    def cost(self, t: Task, layers: Sequence[int] | None = None) -> Tensor:
        """(n,) FLOPs, through all layers or so many of each sentence."""
        depth = layers if layers is not None else [t.layers] * len(self.counts)
        return torch.tensor([flops(t.shape, c[:l]) for c, l in zip(self.counts, depth, strict=True)])


@torch.inference_mode()
def outcome(t: Task, way: Way, sequences: Sequence[Sequence[int]]) -> Outcome:
    states, counts, kept = [], [], {}
    for a in range(0, len(sequences), AT_ONCE):
        depth = way.depth()
        t.model.forward(batch_of(t.model, sequences[a : a + AT_ONCE]), depth, 0)
        states.append(torch.stack(depth.states).cpu())
        counts += [list(c) for c in zip(*depth.counts, strict=True)]
        for layer, who in depth.kept.items():
            kept.setdefault(layer, []).extend(who)
    return Outcome(t.scale.apply_(torch.cat(states, 1)), counts, kept)


class Bench:
    """What the papers' parts share: the task, where words may leave, and a pass forth and back over a few sentences."""

    def __init__(self, subject: Subject, t: Task) -> None:
        self.subject, self.t = subject, t
        self.places = places(t.layers, max(1, t.layers // 10), min(TIMES, t.layers - 1))
        self.rewards: list[float] = []
        """TR-BERT's mean reward, round by round."""
        self.agreement = 0.0
        """How well AdapLeR's predictors rank the words of sentences that they have not seen."""

    @cached_property
    def found(self) -> Saliency:
        t, y = self.t, self.t.y["train"][:ASKED]
        W, b = t.probes.W[-1], t.probes.b[-1]
        mean, deviation = t.scale.mean[-1], t.scale.deviation[-1]

        def loss(h: Tensor) -> Tensor:
            return F.cross_entropy((h.cpu() - mean) / deviation @ W + b, y, reduction="sum")

        def told(done: int, total: int) -> None:
            self.subject.progress("Going back through the layers", done, total)

        f = saliency(t.model, t.ids["train"][:ASKED], loss, told)
        return Saliency(f.h.cpu(), f.contribution.cpu(), f.gate.cpu(), f.received.cpu(), f.spans)

    def right(self, x: Tensor, part: str) -> Tensor:
        """(n,) 1 where the last layer's classifier is right of states x (L, n, E)."""
        return (self.t.probes(x)[-1].argmax(-1) == self.t.y[part]).double()


def power_bert(b: Bench) -> Iterator[Way]:
    """The learned schedule, and at the same cost an even one, and chance under the learned one."""
    worth = selectors.worth_by_rank(b.found, b.places)
    L = b.t.layers
    for share in (0.8, 0.65, 0.5, 0.35):
        masses = selectors.retention(worth, b.places, L, share)
        told = " ".join(f"{m:.0%}" for m in masses)
        plan = {p: Top(m, of_whole=True) for p, m in zip(b.places, masses, strict=True)}
        yield Way("PoWER-BERT", told, plan)
        if share in (0.65, 0.35):
            chance = {p: Top(m, "random", True, b.t.data.seed) for p, m in zip(b.places, masses, strict=True)}
            yield Way("Chance, same schedule", told, chance)
    for keep in (0.85, 0.75, 0.6):
        yield Way("Attention, even schedule", f"{keep:.0%} each time", dict.fromkeys(b.places, Top(keep)))


def tr_bert(b: Bench) -> Iterator[Way]:
    """Policies at two layers: from attention by imitation, then by REINFORCE on rollouts over training sentences."""
    t, L = b.t, b.t.layers
    at = sorted({max(1, round(L / 12)), max(1, L // 2)})
    f, seed = b.found, t.data.seed
    nets = [selectors.imitated(f.h[p], f.received[p - 1], f.spans, seed) for p in at]
    before = [Policy(copy.deepcopy(net)) for net in nets]
    dice = torch.Generator().manual_seed(seed)
    sentences, samples, rounds = 12, 3, 10
    full = [flops(t.shape, [len(ids)] * L) for ids in t.ids["train"]]

    def act(step: int) -> tuple[list[selectors.Choices], Tensor]:
        picked = torch.randint(0, len(full), (sentences,), generator=dice).tolist()
        again = picked * samples
        plan = {p: Policy(net, dice=dice) for p, net in zip(at, nets, strict=True)}
        depth = Dropping(plan, "pass", remember=True)
        with torch.inference_mode():
            t.model.forward(batch_of(t.model, [t.ids["train"][i] for i in again]), depth, 0)
        x = t.scale.apply_(torch.stack(depth.states).cpu())
        said = t.probes.logits(x)[-1].log_softmax(-1).gather(1, t.y["train"][again][:, None])[:, 0]
        counts = zip(*depth.counts, strict=True)
        cost = [flops(t.shape, c) / full[i] for c, i in zip(counts, again, strict=True)]
        reward = said - PRICE * torch.tensor(cost)
        return [depth.looks[p] for p in at], reward.view(samples, sentences).t()

    curve = selectors.reinforced(nets, act, rounds, lambda d, n: b.subject.progress("Rewarding the policy", d, n))
    b.rewards = curve
    for bar in (0.3, 0.5, 0.7):
        yield Way("TR-BERT", f"{bar:g}", {p: Policy(net, bar) for p, net in zip(at, nets, strict=True)}, "pass")
    yield Way("TR-BERT, only imitated", "0.5", dict(zip(at, before, strict=True)), "pass")
    for keep in (0.7, 0.5):
        told = f"{keep:.0%} at layers {' and '.join(map(str, at))}"
        yield Way("Attention at the same layers", told, dict.fromkeys(at, Top(keep)), "pass")
        yield Way("Chance at the same layers", told, dict.fromkeys(at, Top(keep, "random", seed=seed)), "pass")


def adapler(b: Bench) -> Iterator[Way]:
    f, seed = b.found, b.t.data.seed
    spans = f.spans[:LEARNED]
    nets = {p: selectors.predictor(f.h[p], f.contribution[p], spans, seed) for p in b.places}
    agreement = []
    for p, net in nets.items():
        for x, y in f.spans[LEARNED:]:
            with torch.no_grad():
                guess = net(f.h[p][x + 1 : y])
            agreement.append(selectors.rank_correlation(guess, f.contribution[p][x + 1 : y]))
    b.agreement = statistics.fmean(agreement)
    for eta in (0.2, 0.4, 0.6, 0.8):
        yield Way("AdapLeR", f"{eta:g}", {p: Contribution(net, eta) for p, net in nets.items()})
    for keep in (0.9, 0.8, 0.65):
        plan = {p: Contribution(net, share=keep) for p, net in nets.items()}
        yield Way("Contribution, fixed share", f"{keep:.0%} each time", plan)


def magic_pyramid(b: Bench) -> Iterator[Way]:
    for bar in (0.0, 0.4, 0.6, 0.8):
        yield Way("Magic Pyramid", f"{bar:g}", dict.fromkeys(b.places, AtLeast(bar)) if bar else {})


def fused(b: Bench) -> Iterator[Way]:
    """Where the paper drops: after 4, 7 and 10 of 12 layers, by the attention of the last token."""
    at = sorted({max(1, b.t.layers * k // 12) for k in (4, 7, 10)})
    for keep in (0.7, 0.4):
        for fate, name in (("fuse", "MPEE, fused"), ("discard", "MPEE, discarded")):
            yield Way(name, f"{keep:.0%} each time", dict.fromkeys(at, Top(keep, "last")), fate)  # type: ignore[arg-type]


WORKS: dict[str, Callable[[Bench], Iterator[Way]]] = {
    "power-bert": power_bert,
    "tr-bert": tr_bert,
    "adapler": adapler,
    "magic-pyramid": magic_pyramid,
    "mpee": fused,
}
UNSURE = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
"""Entropies at which Magic Pyramid's sentences leave, as shares of the highest; 0: never."""


@dataclass(frozen=True)
class TokenDrop(Study):
    """Dropped tokens for sentences.

    Idea: The deeper the layer, the fewer words a classifier still needs. Let the others leave on the way, and see which
    words stay, what it costs in accuracy and what it saves in time.
    Rule: After some layers a word leaves when little attention is paid to it, under a schedule learned from the loss's
    slope (PoWER-BERT); when a policy rewarded by log p(label) − price·cost deselects it, to wait for the last layer
    (TR-BERT); when its predicted share of gradient × input is below η / T (AdapLeR); when it draws less than a share of
    the mean attention, and the sentence itself may leave by entropy (Magic Pyramid). MPEE's words melt into one.
    Watch: The words that survive, layer by layer; accuracy against FLOPs; and the time to the answer, measured on short
    and on long texts: making attention weights costs time that few words do not win back.
    Differs: The papers fine-tune an encoder, and again after dropping; here all but the small parts is frozen and
    attention is causal, so that early words cannot know what follows. First and last token always stay. PoWER-BERT's
    schedule takes one step along the slope at full length. TR-BERT's rewards are few. AdapLeR's η is tried, not
    learned, and its predictors stand at six layers. Magic Pyramid's bars are tried too.
    """

    covers = ("power-bert", "tr-bert", "adapler", "magic-pyramid")
    bench = "classification"
    claim = "Five ways to let words leave a frozen model before its last layer, and the words that stay."

    work: str = knob("power-bert", choices=("all", *WORKS), help="whose selection; all takes several minutes")
    classes: int = knob(3, 2, 4, "labels of the made sentences: bad, good, neither, both")
    train: int = knob(600, 60, 4000, "sentences that classifiers learn from")
    calibration: int = knob(100, 20, 2000, "sentences that settings are chosen on")
    test: int = knob(200, 20, 2000, "sentences that everything is measured on")
    loss: float = knob(0.01, 0.0, 0.2, "accuracy that a chosen setting may cost, as a share")
    timed: int = knob(6, 1, 64, "short texts, and half as many long ones, that are timed")
    data: str = knob("made", choices=("made", "*"), help="made, or a CSV file with the columns text and label")

    def run(self, subject: Subject) -> Findings:
        sizes = (self.train, self.calibration, self.test, subject.settings.seed)
        t = task(subject, Data(self.data, self.classes, *sizes))
        b = Bench(subject, t)
        works = tuple(WORKS) if self.work == "all" else (self.work,)
        subject.progress("Training classifiers", 0, 0)
        whole = Outcome(t.x["test"], [[len(ids)] * t.layers for ids in t.ids["test"]])
        right = b.right(t.x["test"], "test")
        base = float(b.right(t.x["calibration"], "calibration").mean())
        rows: list[dict[str, Any]] = [self._row(t, Way("All tokens", "", {}), whole, right, right, True)]
        claims: list[Claim] = []
        chosen: list[Way] = []
        for name in works:
            r = Results(right, float(whole.cost(t).mean()))
            best: tuple[float, Way] | None = None
            for way in WORKS[name](b):
                subject.progress(f"{way.name} {way.setting}", len(r.ways), 0)
                out = outcome(t, way, t.ids["test"])
                row = self._row(t, way, out, b.right(out.x, "test"), right, False)
                r.add(way, out, b.right(out.x, "test"), row)
                own = way.name in OWN.values()
                if not own or not way.plan:
                    continue
                tried = outcome(t, way, t.ids["calibration"])
                cost = float(tried.cost(t).mean())
                good = float(b.right(tried.x, "calibration").mean()) >= base - self.loss - 1e-9
                if good and (best is None or cost < best[0]):
                    best = (cost, way)
            if best:
                chosen.append(best[1])
                next(row for way, row in zip(r.ways, r.rows, strict=True) if way is best[1])["chosen"] = True
            pick = best[1] if best else None
            more, said = CLAIMS[name](self, b, r, pick)
            rows += r.rows + more
            claims += said
        rows += list(_alike(b)) if "power-bert" in works else []
        example = max(range(len(t.ids["test"])), key=lambda i: len(t.ids["test"][i]))
        for way in chosen:
            rows += list(_survivors(b, way, example))
        times = self._times(b, [Way("All tokens", "", {}), *chosen])
        rows += times
        claims += list(_speed(times))
        notes = [
            f"{self.test} test sentences of {float(t.lengths('test').double().mean()):.0f} tokens on average, with the "
            f"question behind them; with all tokens {float(right.mean()):.1%} are answered rightly.",
            f"Words may leave after layers {', '.join(map(str, b.places))} of {t.layers}; classifiers were trained on "
            "sentences that kept all.",
        ]
        return Findings(COLUMNS, rows, CHARTS, claims, notes)

    def _row(self, t: Task, way: Way, out: Outcome, right: Tensor, full: Tensor, chosen: bool) -> dict[str, Any]:
        whole = sum(flops(t.shape, [len(ids)] * t.layers) for ids in t.ids["test"])
        cost = out.cost(t)
        gain, error = paired(right, full)
        return {
            "method": way.name,
            "setting": way.setting,
            "accuracy": float(right.mean()),
            "change": gain,
            "error": error,
            "layer_tokens": statistics.fmean(sum(c) for c in out.counts),
            "gflops": float(cost.mean()) / 1e9,
            "saved": 1 - float(cost.sum()) / whole,
            "chosen": chosen,
        }

    def _times(self, b: Bench, ways: Sequence[Way]) -> list[dict[str, Any]]:
        """The time to the answer of single texts, each way in turn; ratios to all tokens are of the same lap."""
        t = b.t
        short = [t.ids["test"][i] for i in range(min(self.timed, len(t.ids["test"])))]
        made = make(self.classes, 1, 1, max(1, self.timed // 2), t.data.seed, LONG).test
        long = encoded(b.subject.tokenizer, [s.text for s in made])
        clock = Clock(t.model.device)
        rows = []
        for name, texts in (("short", short), ("long", long)):
            seconds: dict[int, list[float]] = {i: [] for i in range(len(ways))}
            for i, ids in enumerate(texts):
                b.subject.progress(f"Timing {name} texts", i, len(texts))
                for lap in range(LAPS + 1):
                    for w, way in enumerate(ways):
                        start = clock()
                        outcome(t, way, [ids]) if way.plan else t.see([ids])
                        if lap:  # the first warms up
                            seconds[w].append(clock() - start)
            for w, way in enumerate(ways):
                ratio = [plain / own for plain, own in zip(seconds[0], seconds[w], strict=True)]
                rows.append(
                    {
                        "method": way.name,
                        "setting": way.setting,
                        "texts": name,
                        "tokens": statistics.fmean(map(len, texts)),
                        "ms": 1000 * statistics.median(seconds[w]),
                        "speedup": statistics.median(ratio),
                    }
                )
        return rows


OWN = {
    "power-bert": "PoWER-BERT",
    "tr-bert": "TR-BERT",
    "adapler": "AdapLeR",
    "magic-pyramid": "Magic Pyramid",
    "mpee": "MPEE, fused",
}


class Results:
    """What a work's ways did on the test sentences."""

    def __init__(self, full: Tensor, whole: float) -> None:
        self.full, self.whole = full, whole
        self.ways: list[Way] = []
        self.outs: list[Outcome] = []
        self.rights: list[Tensor] = []
        self.rows: list[dict[str, Any]] = []

    def add(self, way: Way, out: Outcome, right: Tensor, row: dict[str, Any]) -> None:
        self.ways.append(way)
        self.outs.append(out)
        self.rights.append(right)
        self.rows.append(row)

    def curve(self, name: str) -> list[tuple[float, float]]:
        """(GFLOP, accuracy), all tokens included, where every curve begins."""
        own = [(r["gflops"], r["accuracy"]) for r in self.rows if r["method"] == name]
        return [*own, (self.whole / 1e9, float(self.full.mean()))]

    def told(self, pick: Way | None) -> str:
        if pick is None:
            return "no setting was good enough on calibration sentences"
        row = self.rows[self.ways.index(pick)]
        return (
            f"{pick.setting}: {row['saved']:.0%} of the FLOPs saved, accuracy {100 * row['change']:+.1f} ± "
            f"{100 * row['error']:.1f} points"
        )


Said = tuple[list[dict[str, Any]], list[Claim]]


def _compared(source: str, claim: str, r: Results, one: str, other: str) -> Claim:
    """Whether one curve lies above another at equal FLOPs."""
    gap = lead(r.curve(one), r.curve(other))
    said = "the two have no cost in common"
    if gap is not None:
        said = f"{one} against {other}: {100 * gap:+.1f} points on average over the costs that both reach"
    return Claim(source, claim, None if gap is None else gap > 0, said)


def of_power_bert(study: TokenDrop, b: Bench, r: Results, pick: Way | None) -> Said:
    where = "PoWER-BERT, arXiv 2001.08950"
    row = r.rows[r.ways.index(pick)] if pick else None
    alike = [row["cosine"] for row in _alike(b)]
    return [], [
        Claim(
            f"{where}, section 3",
            "Word vectors grow more alike with depth, so that many can go.",
            alike[-1] > alike[0],
            f"mean cosine between two words of a sentence: {alike[0]:.2f} after layer 1, "
            f"{alike[len(alike) // 2]:.2f} in the middle, {alike[-1]:.2f} before the last",
        ),
        Claim(
            where,
            "Up to 4.5 times less inference time with less than 1 % loss of accuracy.",
            row is not None and row["change"] >= -study.loss and row["saved"] >= 1 - 1 / 4.5,
            r.told(pick) + "; less of a loss than claimed needs no fine-tuning here, more saving would",
        ),
        _compared(
            where,
            "A learned schedule is better than an even one.",
            r,
            "PoWER-BERT",
            "Attention, even schedule",
        ),
        _compared(where, "Attention tells which words matter.", r, "PoWER-BERT", "Chance, same schedule"),
    ]


def of_tr_bert(study: TokenDrop, b: Bench, r: Results, pick: Way | None) -> Said:
    where = "TR-BERT, arXiv 2105.11618"
    curve = b.rewards
    third = max(1, len(curve) // 3)
    first, last = statistics.fmean(curve[:third]), statistics.fmean(curve[-third:])
    row = r.rows[r.ways.index(pick)] if pick else None
    return [], [
        Claim(
            where,
            "Rewards teach the policy which words to keep.",
            last > first,
            f"mean reward {first:.3f} in the first {third} rounds and {last:.3f} in the last",
        ),
        _compared(where, "The policy beats attention.", r, "TR-BERT", "Attention at the same layers"),
        _compared(where, "The policy beats chance.", r, "TR-BERT", "Chance at the same layers"),
        Claim(
            where,
            "2 to 5 times faster with little loss.",
            row is not None and row["saved"] >= 0.5 and row["change"] >= -study.loss,
            r.told(pick),
        ),
    ]


def of_adapler(study: TokenDrop, b: Bench, r: Results, pick: Way | None) -> Said:
    where = "AdapLeR, arXiv 2203.08991"
    agreement = b.agreement
    outs = [o for w, o in zip(r.ways, r.outs, strict=True) if w is pick]
    shares = [sum(c) / (len(c) * c[0]) for o in outs for c in o.counts]
    spread = f"; sentences keep {min(shares):.0%} to {max(shares):.0%} of tokens × layers" if shares else ""
    return [], [
        Claim(
            where,
            "A small net can tell from a state what gradient × input would say.",
            agreement > 0.3,
            f"rank correlation {agreement:.2f} on sentences that it has not seen",
        ),
        _compared(
            where,
            "Letting each input keep as many words as it needs beats a fixed share.",
            r,
            "AdapLeR",
            "Contribution, fixed share",
        ),
        Claim(
            where,
            "Much faster with little loss of accuracy (up to 22 times).",
            pick is not None
            and r.rows[r.ways.index(pick)]["saved"] >= 0.5
            and r.rows[r.ways.index(pick)]["change"] >= -study.loss,
            r.told(pick) + spread,
        ),
    ]


def of_magic_pyramid(study: TokenDrop, b: Bench, r: Results, pick: Way | None) -> Said:
    """Exits on the states that dropping left: the whole surface from the passes that have been made."""
    t, most = b.t, math.log(len(b.t.labels))
    y, lengths = t.y["test"], t.lengths("test")
    halves = {"all": torch.ones(len(y), dtype=torch.bool)}
    middle = lengths.median()
    halves |= {"short": lengths <= middle, "long": lengths > middle}
    rows: list[dict[str, Any]] = []
    points: dict[str, dict[str, list[tuple[float, float]]]] = {k: {"exit": [], "drop": [], "both": []} for k in halves}
    for way, out in zip(r.ways, r.outs, strict=True):
        p = t.probes(out.x)
        for unsure in UNSURE:
            left = leave(Entropy(unsure * most), p, range(1, t.layers + 1))
            cost = out.cost(t, left.layers.tolist())
            right = (left.said == y).double()
            kind = "both" if way.plan and unsure else "drop" if way.plan else "exit"
            for half, at in halves.items():
                points[half][kind].append((float(cost[at].mean()) / 1e9, float(right[at].mean())))
            if unsure:
                name = "Magic Pyramid, exits too" if way.plan else "Exits alone"
                row = study._row(t, Way(name, f"{way.setting} and {unsure:g}", {}), out, right, r.full, False)
                row["gflops"], row["saved"] = float(cost.mean()) / 1e9, 1 - float(cost.mean()) / r.whole
                counts = [sum(c[:l]) for c, l in zip(out.counts, left.layers.tolist(), strict=True)]
                rows.append({**row, "layer_tokens": statistics.fmean(counts)})
    claims = []
    for half in halves:
        gaps = []
        for other in ("exit", "drop"):
            full = [points[half]["exit"][0]]
            alone = _front([*points[half][other], *full])
            gap = lead(_front([*points[half]["both"], *full]), alone)
            gaps.append(gap)
        told = ", ".join(
            f"{100 * g:+.1f} points against {n} alone" if g is not None else f"no cost in common with {n} alone"
            for g, n in zip(gaps, ("exits", "dropping"), strict=True)
        )
        able = [g for g in gaps if g is not None]
        claims.append(
            Claim(
                "Magic Pyramid, arXiv 2111.00230",
                f"Leaving early and dropping words together beat each alone ({half} sentences).",
                all(g > 0 for g in able) if able else None,
                f"at equal FLOPs, best settings of each: {told}",
            )
        )
    return rows, claims


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no cheaper one beats."""
    best, front = -1.0, []
    for cost, accuracy in sorted(points):
        if accuracy > best:
            best = accuracy
            front.append((cost, accuracy))
    return front


def of_fused(study: TokenDrop, b: Bench, r: Results, pick: Way | None) -> Said:
    return [], [
        _compared(
            "MPEE, aclanthology 2022.coling-1.414",
            "Fusing the words that leave is better than discarding them.",
            r,
            "MPEE, fused",
            "MPEE, discarded",
        )
    ]


CLAIMS: dict[str, Callable[[TokenDrop, Bench, Results, Way | None], Said]] = {
    "power-bert": of_power_bert,
    "tr-bert": of_tr_bert,
    "adapler": of_adapler,
    "magic-pyramid": of_magic_pyramid,
    "mpee": of_fused,
}


def _alike(b: Bench) -> Iterator[dict[str, Any]]:
    """Mean cosine between two words of a sentence, the first one left out, by layer."""
    f = b.found
    for l in range(1, len(f.h)):
        found = []
        for x, y in f.spans:
            h = F.normalize(f.h[l, x + 1 : y], dim=-1)
            n = y - x - 1
            found.append(float(((h @ h.t()).sum() - n) / (n * (n - 1))))
        yield {"method": "All tokens", "layer": l, "cosine": statistics.fmean(found)}


def _survivors(b: Bench, way: Way, example: int) -> Iterator[dict[str, Cell]]:
    """Which words of one sentence are still there after each place, the others as dots."""
    t, ids = b.t, b.t.ids["test"][example]
    words = [b.subject.tokenizer.decode([i]) for i in ids]
    for layer, (kept,) in sorted(outcome(t, way, [ids]).kept.items()):
        here = set(kept.tolist())
        shown = [w if i in here else "·" for i, w in enumerate(words)]
        yield {"method": way.name, "setting": way.setting, "layer": layer, "words": "".join(shown)}


def _speed(times: Sequence[dict[str, Any]]) -> Iterator[Claim]:
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


COLUMNS = {
    "method": "Method",
    "setting": "Setting",
    "accuracy": "Accuracy",
    "change": "Against all tokens",
    "error": "Standard error of that",
    "layer_tokens": "Layers × tokens",
    "gflops": "GFLOP per sentence",
    "saved": "FLOPs saved",
    "chosen": "Chosen on calibration sentences",
    "layer": "Layer",
    "cosine": "Cosine between words",
    "words": "Words that stay",
    "texts": "Texts",
    "tokens": "Tokens",
    "ms": "ms to the answer",
    "speedup": "Times as fast",
}
CHARTS = (
    Chart("Accuracy against FLOPs", "gflops", "accuracy", "method", "front"),
    Chart("Accuracy against layers × tokens", "layer_tokens", "accuracy", "method", "front"),
    Chart("How alike a sentence's words are", "layer", "cosine", "method"),
    Chart("Time to the answer", "texts", "ms", "method", "bar"),
)

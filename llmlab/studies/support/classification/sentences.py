"""Labelled sentences to classify: short reviews that we make, whose difficulty is known, or a file of your own.

A made review gives the writer's verdict on one thing (two for "mixed"), wrapped in as many negations as its `depth`,
among facts that say nothing and verdicts of other people, which do not count. The label follows by rule.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmlab.errors import Refused
from llmlab.models.loading.environment import restricted

LABELS = {
    2: ("negative", "positive"),
    3: ("negative", "positive", "neutral"),
    4: ("negative", "positive", "neutral", "mixed"),
}
DEPTHS = (0, 0, 0, 0, 0, 0, 1, 1, 1, 2)
"""How many negations stand around a verdict, in turn: most are plain, as in life."""
HEARSAY = 0.2
"""Of what stands around a verdict, the share that is somebody else's."""
MOST_LABELS = 20
LONGEST_FILE = 32 << 20

GOOD = (
    "wonderful",
    "excellent",
    "lovely",
    "great",
    "superb",
    "delightful",
    "charming",
    "brilliant",
    "impressive",
    "pleasant",
    "splendid",
    "perfect",
)
BAD = (
    "awful",
    "terrible",
    "dreadful",
    "poor",
    "horrible",
    "disappointing",
    "boring",
    "bland",
    "broken",
    "ugly",
    "miserable",
    "useless",
)
THINGS = (
    "soup",
    "service",
    "room",
    "garden",
    "concert",
    "book",
    "lamp",
    "museum",
    "hotel",
    "bread",
    "coffee",
    "film",
    "chair",
    "tour",
    "market",
    "painting",
    "phone",
    "breakfast",
    "ferry",
    "lecture",
    "jacket",
    "bicycle",
    "cake",
    "play",
)
OTHERS = (
    "my neighbour",
    "my sister",
    "the guide",
    "an old friend",
    "the man beside me",
    "our daughter",
    "a critic",
    "my boss",
)
NOT = ("was not", "was never", "was by no means")
DENIALS = (
    "it is not true that",
    "I would deny that",
    "nobody could claim that",
    "it is wrong to say that",
    "I do not believe that",
)
NEUTRAL = (
    "the {} was next to the station",
    "the {} was there before noon",
    "the {} was new to all of us",
    "the {} was paid for in advance",
    "the {} was on the second floor",
    "the {} was shown to us by a student",
)
FACTS = (
    "We came on a Tuesday",
    "It rained a little in the morning",
    "The bus took half an hour",
    "There were about forty people",
    "We had booked it in spring",
    "The doors opened at nine",
    "A dog slept in the corner",
    "The street was being repaired",
    "We sat near the window",
    "Somebody was playing the piano",
    "The map was printed in two languages",
    "They had moved there a year ago",
    "The walls were painted green",
    "We left at half past six",
    "It was the last week of the season",
    "The tickets were sent by post",
)


@dataclass(frozen=True)
class Sentence:
    """A text and the number of its label. `depth`: negations around the verdict; -1 where unknown."""

    text: str
    label: int
    depth: int = -1


@dataclass(frozen=True)
class Labelled:
    """Sentences in three parts that share no text, and the names of their labels."""

    labels: tuple[str, ...]
    train: tuple[Sentence, ...]
    calibration: tuple[Sentence, ...]
    test: tuple[Sentence, ...]


def verdict(rng: random.Random, thing: str, good: bool, depth: int) -> str:
    """A clause that calls a thing good or bad through `depth` negations, each of which turns it round."""
    word = rng.choice(GOOD if good == (depth % 2 == 0) else BAD)
    inner = depth > 0 and (depth == 1 or rng.random() < 0.5)
    clause = f"the {thing} {rng.choice(NOT) if inner else 'was'} {word}"
    for denial in rng.sample(DENIALS, depth - inner):
        clause = f"{denial} {clause}"
    return clause


def _hearsay(rng: random.Random, thing: str) -> str:
    clause = rng.choice(("said that the {} was {}", "found the {} {}", "called the {} {}"))
    return f"{rng.choice(OTHERS)} {clause.format(thing, rng.choice(GOOD + BAD))}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def review(rng: random.Random, label: str, depth: int, words: int) -> str:
    """A review with this label of about so many words, at least what its verdict takes."""
    one, two = rng.sample(THINGS, 2)
    if label == "neutral":
        clauses = [rng.choice(NEUTRAL).format(one)]
    else:
        good = label == "positive" or (label == "mixed" and rng.random() < 0.5)
        clauses = [verdict(rng, one, good, depth)]
        # Two verdicts must not give "mixed" away, so others have two as well, which agree.
        if label == "mixed" or rng.random() < 0.25:
            clauses.append(verdict(rng, two, good != (label == "mixed"), rng.randint(0, depth)))
    joint = rng.choice((", and ", "; ", ", while "))
    parts = [_capital(joint.join(clauses)) + "."]
    length = len(parts[0].split())
    facts = list(FACTS)
    while length < words:
        if rng.random() < HEARSAY:
            more = _capital(_hearsay(rng, one)) + "."
        else:
            if not facts:
                facts = list(FACTS)
            more = facts.pop(rng.randrange(len(facts))) + "."
        parts.insert(rng.randint(0, len(parts)), more)
        length += len(more.split())
    return " ".join(parts)


def _made(rng: random.Random, labels: Sequence[str], shortest: int, longest: int) -> Iterator[Sentence]:
    """Labels in turn, so that each is as frequent as the others, and depths as `DEPTHS` says."""
    seen: set[str] = set()
    i = 0
    while True:
        label, depth = i % len(labels), DEPTHS[i // len(labels) % len(DEPTHS)]
        text = review(rng, labels[label], depth, rng.randint(shortest, longest))
        if text not in seen:
            seen.add(text)
            i += 1
            yield Sentence(text, label, 0 if labels[label] == "neutral" else depth)


def make(
    classes: int, train: int, calibration: int, test: int, seed: int = 0, words: tuple[int, int] = (4, 26)
) -> Labelled:
    """Sentences that we make, the same for the same arguments. `words`: shortest and longest, about."""
    rng = random.Random(seed)
    labels = LABELS[classes]
    made = _made(rng, labels, *words)
    found = [next(made) for _ in range(train + calibration + test)]
    rng.shuffle(found)
    return _parts(labels, found, train, calibration, test)


def read(path: str, train: int, calibration: int, test: int, seed: int = 0) -> Labelled:
    """Sentences from a CSV file with the columns `text` and `label`, dealt into the three parts.

    Parts shrink in proportion where the file is shorter. Refused for a file that cannot be used, and on a public page.
    """
    who = "The file of sentences"
    if restricted():
        raise Refused(who, "is on the machine that runs this public page", "Run the lab on your own machine")
    try:
        if Path(path).stat().st_size > LONGEST_FILE:
            raise Refused(who, "is larger than 32 MB", "Give a part of it")
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = [(r.get("text") or "", r.get("label") or "") for r in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise Refused(
            who, f"cannot be read ({type(e).__name__})", "Give a CSV file with the columns text, label"
        ) from e
    texts = {text.strip(): label.strip() for text, label in rows if text.strip() and label.strip()}
    labels = tuple(sorted(set(texts.values())))
    if not 2 <= len(labels) <= MOST_LABELS or len(texts) < 20 * len(labels):
        raise Refused(
            who,
            f"has {len(texts)} different sentences with {len(labels)} labels",
            f"Give columns text and label, 2 to {MOST_LABELS} labels and 20 sentences for each",
        )
    found = [Sentence(text, labels.index(label)) for text, label in texts.items()]
    random.Random(seed).shuffle(found)
    share = min(1.0, len(found) / (train + calibration + test))
    return _parts(labels, found, *(int(n * share) for n in (train, calibration, test)))


def _parts(labels: tuple[str, ...], found: list[Sentence], train: int, calibration: int, test: int) -> Labelled:
    a, b = train, train + calibration
    return Labelled(labels, tuple(found[:a]), tuple(found[a:b]), tuple(found[b : b + test]))

"""Word problems with known answers, of our own making: one step, two steps, dates and durations.

A template gives the question and the steps of its solution. From these follow the worked solution in words (chain of
thought) and the program (program of thought), both by our own calculator, so that neither can contradict the answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from llmlab.errors import Refused
from llmlab.studies.support.cascades.arithmetic import run, value

KINDS = ("one step", "two steps", "dates")
STYLES = ("direct", "cot", "pot")
"""The answer alone; worked steps in words (arXiv 2201.11903); a program that a calculator runs (2211.12588)."""
NAMES = ("Ada", "Boris", "Chen", "Dora", "Emil", "Fatma", "Goran", "Hana", "Ivan", "Jana", "Kofi", "Lena")
THINGS = ("apples", "coins", "stamps", "pencils", "shells", "cards", "nuts", "beads", "tickets", "stones")
MONTHS = ("January", "March", "May", "July", "August", "October", "December")


@dataclass(frozen=True)
class Template:
    """`steps`: (the sentence, the name of the result, the expression). `ranges`: from and to, inclusive, per letter."""

    kind: str
    question: str
    steps: tuple[tuple[str, str, str], ...]
    ranges: dict[str, tuple[int, int]]


def _one(question: str, step: str, expression: str, **ranges: tuple[int, int]) -> Template:
    return Template("one step", question, ((step, "ans", expression),), ranges)


def _two(question: str, first: tuple[str, str, str], last: tuple[str, str], **ranges: tuple[int, int]) -> Template:
    return Template("two steps", question, (first, (last[0], "ans", last[1])), ranges)


def _date(question: str, *steps: tuple[str, str, str], **ranges: tuple[int, int]) -> Template:
    return Template("dates", question, steps, ranges)


TEMPLATES = (
    _one("{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?",
         "{name} has {a} and buys {b} more", "a + b", a=(3, 40), b=(3, 40)),
    _one("{name} has {a} {things} and gives {b} of them away. How many {things} are left?",
         "{name} has {a} and gives {b} away", "a - b", a=(21, 60), b=(3, 20)),
    _one("{name} buys {a} boxes with {b} {things} in each. How many {things} is that?",
         "There are {a} boxes of {b}", "a * b", a=(3, 9), b=(3, 15)),
    _one("{name} shares {ab} {things} equally among {b} children. How many {things} does each child get?",
         "{ab} are shared among {b}", "ab / b", a=(3, 12), b=(2, 9)),
    _one("{name} collected {a} {things} and {other} collected {b}. How many more {things} does {name} have?",
         "The difference between {a} and {b}", "a - b", a=(30, 60), b=(5, 29)),
    _two("{name} has {a} {things}, finds {b} more and then loses {c}. How many {things} does {name} have now?",
         ("First there are", "found", "a + b"), ("After losing {c}", "found - c"), a=(12, 60), b=(5, 40), c=(2, 16)),
    _two("{name} buys {a} bags with {b} {things} in each and already had {c}. How many {things} is that in all?",
         ("The bags hold", "bags", "a * b"), ("With the {c} from before", "bags + c"), a=(2, 9), b=(3, 12), c=(4, 40)),
    _two("{name} buys {a} bags with {b} {things} in each and gives away {c}. How many {things} are left?",
         ("The bags hold", "bags", "a * b"), ("Without the {c} given away", "bags - c"),
         a=(4, 9), b=(5, 12), c=(2, 19)),
    _two("A ticket costs {a} dollars and a drink costs {b} dollars. What do {c} tickets and one drink cost?",
         ("The tickets cost", "tickets", "c * a"), ("With the drink", "tickets + b"), a=(6, 20), b=(2, 5), c=(2, 9)),
    _two("{name} and {other} have {a} and {b} {things}. They put them together and share them equally between"
         " two. How many {things} does each get?",
         ("Together they have", "together", "a + b"), ("Half of that", "together / 2"), a=(4, 40), b=(4, 40)),
    _date("A course lasts {a} weeks and {b} days. How many days is that?",
          ("The weeks are", "weeks", "a * 7"), ("With the {b} days", "ans", "weeks + b"), a=(2, 12), b=(1, 6)),
    _date("A film lasts {a} hours and {b} minutes. How many minutes is that?",
          ("The hours are", "hours", "a * 60"), ("With the {b} minutes", "ans", "hours + b"), a=(1, 4), b=(5, 55)),
    _date("How many days pass from {month} {a} to {month} {b}?",
          ("The difference between {b} and {a}", "ans", "b - a"), a=(2, 12), b=(14, 31)),
    _date("{name} was born in {a}. How old does {name} turn in {b}?",
          ("The difference between {b} and {a}", "ans", "b - a"), a=(1950, 1999), b=(2001, 2024)),
    _date("A train leaves {a} minutes after nine and arrives {b} minutes after ten. How many minutes is it under way?",
          ("From nine it arrives after", "arrival", "60 + b"), ("Without the first {a}", "ans", "arrival - a"),
          a=(5, 55), b=(1, 59)),
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A question, its answer, the worked solution in words and as a program."""

    question: str
    answer: Fraction
    kind: str
    chain: str
    program: str

    def solution(self, style: str) -> str:
        """The line that an example in the prompt shows."""
        answer = number(self.answer)
        return {"direct": answer, "cot": f"{self.chain} The answer is {answer}.", "pot": self.program}[style]


def made(template: Template, rng: random.Random) -> Problem:
    """One problem of a template, with numbers and names drawn."""
    numbers = {letter: rng.randint(*span) for letter, span in template.ranges.items()}
    if "{ab}" in template.question:
        numbers["ab"] = numbers["a"] * numbers["b"]
    if "share them equally between" in template.question:  # halves must be whole
        numbers["b"] += (numbers["a"] + numbers["b"]) % 2
    name, other = rng.sample(NAMES, 2)
    words = {"name": name, "other": other, "things": rng.choice(THINGS), "month": rng.choice(MONTHS), **numbers}
    known = {letter: Fraction(n) for letter, n in numbers.items()}
    steps, lines = [], []
    for text, result, expression in template.steps:
        known[result] = value(expression, known)
        written = re.sub(r"[a-z]+", lambda m: number(known[m[0]]), expression)
        steps.append(f"{text.format(**words)}: {written} = {number(known[result])}.")
        lines.append(f"{result} = " + re.sub(r"[a-z]+", lambda m: str(numbers.get(m[0], m[0])), expression))
    return Problem(template.question.format(**words), known["ans"], template.kind, " ".join(steps), "; ".join(lines))


def problems(count: int, seed: int, kinds: Sequence[str] = KINDS, without: Sequence[Problem] = ()) -> list[Problem]:
    """`count` different problems, the templates of these kinds in turn; none has the question of one in `without`.

    Raises Refused where there are not so many.
    """
    rng, found = random.Random(seed), dict[str, Problem]()
    seen = {p.question for p in without}
    for tries in range(50 * count):
        if len(found) == count:
            break
        ready = [t for t in TEMPLATES if t.kind in kinds]
        problem = made(ready[tries % len(ready)], rng)
        if problem.question not in seen:
            found.setdefault(problem.question, problem)
    if len(found) < count:
        raise Refused("These problems", f"are fewer than {count}", "Ask for fewer, or for more kinds")
    made_ = list(found.values())
    rng.shuffle(made_)
    return made_


def asked(kind: str, each: int, seed: int = 0, examples: int = 5) -> list[Problem]:
    """`each` problems of a kind, or of every kind for "all"; none is among the examples of its prompt."""
    kinds = KINDS if kind == "all" else (kind,)
    found = [p for k in kinds for p in problems(each, seed, (k,), shots(k, examples, seed))]
    random.Random(seed).shuffle(found)
    return found


def shots(kind: str, count: int, seed: int = 0) -> list[Problem]:
    """Examples of a kind for a prompt, from different templates as long as there are any."""
    rng = random.Random(1_000_003 + seed)
    ready = [t for t in TEMPLATES if t.kind == kind]
    return [made(t, rng) for _ in range(-(-count // len(ready))) for t in rng.sample(ready, len(ready))][:count]


def number(n: Fraction) -> str:
    """As it is written: 12, -3 or 2.5."""
    return str(n.numerator) if n.denominator == 1 else f"{float(n):g}"


# Reading what a model wrote ------------------------------------------------------------------------------------------

NUMBER = r"-?\d[\d,]*(?:\.\d+)?"
EQUATION = re.compile(rf"([\d.,()+*/\-\s]+)=\s*({NUMBER})")
LONGEST = 500
"""Characters of a line that are read."""
VERDICTS = ("right", "wrong arithmetic", "wrong plan", "unreadable", "wrong")
"""`wrong` is the verdict on an answer without steps."""


@dataclass(frozen=True)
class Reading:
    """What an answer says, None where nothing can be read from it, and what became of it."""

    answer: Fraction | None
    verdict: str

    @property
    def right(self) -> bool:
        return self.verdict == "right"


def read(style: str, text: str, truth: Fraction) -> Reading:
    """The first line of what was written, in the light of the truth."""
    line = text.strip().split("\n")[0][:LONGEST]
    if style == "pot":
        try:
            found = run(line).get("ans")
        except Refused:
            found = None
        return _judged(found, truth, "wrong plan")
    if style == "direct":
        stated = re.search(NUMBER, line)
        return _judged(_fraction(stated[0]) if stated else None, truth, "wrong")
    stated = re.search(rf"answer is:?\s*\$?({NUMBER})", line)
    all_ = re.findall(NUMBER, line)
    found = _fraction(stated[1]) if stated else _fraction(all_[-1]) if all_ else None
    return _judged(found, truth, "wrong arithmetic" if corrected(line) == truth else "wrong plan")


def _judged(found: Fraction | None, truth: Fraction, else_: str) -> Reading:
    if found is None:
        return Reading(None, "unreadable")
    return Reading(found, "right" if found == truth else else_)


def corrected(line: str) -> Fraction | None:
    """The result of the last sum in a worked solution, had every sum been done right; None without a sum.

    A wrong result that a later sum goes on with is replaced there too.
    """
    last, slips = None, dict[str, Fraction]()
    for sum_, stated in equations(line):
        text = re.sub(NUMBER, lambda m: f"({slips[m[0]]})" if m[0] in slips else m[0].replace(",", ""), sum_)
        try:
            last = value(text)
        except Refused:
            continue
        if last != _fraction(stated):
            slips[stated] = last
    return last


def equations(line: str) -> Iterator[tuple[str, str]]:
    """The sums in a text and the results that it states: ("3 * 4", "12")."""
    plain = re.sub(r"(?<=[\d)])\s*[x×]\s*(?=[\d($])", " * ", line[:LONGEST]).replace("÷", "/").replace("$", "")
    for run_, stated in EQUATION.findall(plain):
        sum_ = re.split(r"[.,]\s", run_)[-1].strip()  # "…, 3 + 4" begins after the comma
        if re.search(r"\d.*[+*/-]", sum_):
            yield sum_, stated.rstrip(",")


def _fraction(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))

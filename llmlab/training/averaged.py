"""The mean of two trainings of one part.

Trainings that begin at the same weights end where the straight line between them is good as well, and its middle often
does better on new text than either end (model soups, arXiv 2203.05482).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmlab.errors import Refused
from llmlab.models.auxiliary.store import card_of, read, write


def average(one: Path, two: Path, out: Path) -> dict[str, Any]:
    """Write the mean of two parts; what is no weight, such as the shortlist, and the card are those of `one`.

    Returns the mean's card, which names both. Raises Refused for parts of different kinds, models or sizes.
    """
    cards = [card_of(p) for p in (one, two)]
    a, b = read(one), read(two)
    alike = all(cards[0][k] == cards[1][k] for k in ("kind", "shape", "fingerprint"))
    if not alike or {k: v.shape for k, v in a.items()} != {k: v.shape for k, v in b.items()}:
        raise Refused("The two parts", "are not of one kind and model", "Train both with the same command")
    mean = {k: ((v.float() + b[k].float()) / 2).to(v.dtype) if v.is_floating_point() else v for k, v in a.items()}
    told = ("steps", "tokens_of_text", "seconds", "held_out")
    card = cards[0] | {"averaged": [{k: c.get(k) for k in told} for c in cards]}
    card.pop("held_out", None)  # neither's figures are those of the mean
    write(out, mean, card)
    return card

"""What a stack costs in quality, by hand, and what is measured where a rule of acceptance decides."""

from __future__ import annotations

import math

import pytest
import torch

from llmlab.measure import quality
from llmlab.models.decoder import Decoder
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make
from tests import tiny
from tests.laws import laws


def test_agreement_and_divergence_by_hand() -> None:
    """KL of (0.6, 0.4) from (0.4, 0.6) is 0.6 ln 1.5 + 0.4 ln ⅔; the second question is answered alike."""
    p = torch.tensor([[0.6, 0.4], [0.9, 0.1]]).log()
    q = torch.tensor([[0.4, 0.6], [0.9, 0.1]]).log()
    agreement, kl = quality.choices(p, q, [0, 0])
    assert agreement == 0.5
    assert kl == pytest.approx((0.6 * math.log(1.5) + 0.4 * math.log(2 / 3)) / 2)
    assert quality.choices(p, None, [0, 1]) == (0.5, None)
    assert quality.choices(p, None, [0, 0]) == (1.0, None)


def test_first_difference() -> None:
    assert quality.first_difference([1, 2, 3], [1, 2, 3]) is None
    assert quality.first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert quality.first_difference([1, 2, 3], [1, 2]) == 2


def test_a_lossy_rule_of_acceptance_is_judged_on_its_own_text(llama: Decoder) -> None:
    """Its text differs, although the probabilities of a given text are those of the unmodified model."""
    prompt = tiny.prompts(1, 24)[0]
    stack = Stack([make("draft-model", model="llama", confidence=0.0), make("lenience", lenience=0.0)])
    plain = laws.text(llama, prompt, 24, Stack())
    text = laws.text(llama, prompt, 24, stack)
    assert text != plain
    found = quality.compare(llama, llama, stack, prompt, plain, text)
    assert found["kl_mean"] is None
    best = quality.score(llama, Stack(), [*prompt, *text], len(prompt)).argmax(-1).tolist()
    assert found["top1_agreement"] == pytest.approx(sum(a == b for a, b in zip(best, text, strict=True)) / 24)
    assert found["top1_agreement"] < 1
    exact = quality.compare(llama, llama, stack.without("Acceptor"), prompt, plain, plain)
    assert (exact["identical"], exact["top1_agreement"], exact["kl_mean"]) == (True, 1, 0)

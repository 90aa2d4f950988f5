"""The roofline against figures computed by hand."""

from __future__ import annotations

import pytest

from llmlab.measure import roofline
from llmlab.measure.roofline import Machine, flops_per_token, least_seconds
from llmlab.models.formats.linear import nbytes
from tests import tiny


def test_the_roofline_is_the_higher_of_its_two_roofs() -> None:
    machine = Machine(bytes_per_second=100.0, flops_per_second=1000.0)
    assert machine.seconds(200, 500) == 2.0
    assert machine.seconds(10, 5000) == 5.0


def test_a_token_s_operations_are_twice_its_weights_and_its_attention() -> None:
    model = tiny.decoder("llama-plain")
    s = model.shape
    weights = sum(
        m.dense().numel()
        for block in model.layers
        for m in (block.linears()["qkv"], block.linears()["out"], block.linears()["gate_up"], block.linears()["down"])
    )
    head = s.vocab * s.width
    assert flops_per_token(s, s.layers, 0) == 2 * (weights + head)
    more = flops_per_token(s, s.layers, 10) - flops_per_token(s, s.layers, 0)
    assert more == s.layers * 10 * 4 * s.heads * s.head_size


def test_a_pass_reads_the_weights_and_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "machine", lambda device: Machine(1.0, 1e30))
    tied, untied = tiny.decoder("llama-plain"), tiny.decoder("llama")
    assert least_seconds(tied, 0) == tied.nbytes
    assert least_seconds(untied, 0) == untied.nbytes - nbytes(untied.embedding.embed)
    s = tied.shape
    assert least_seconds(tied, 7) - least_seconds(tied, 0) == 7 * s.layers * 2 * s.kv_heads * s.head_size * 4


def test_this_machine_has_rates() -> None:
    rates = roofline.machine("cpu")
    assert 1e8 < rates.bytes_per_second < 1e13
    assert 1e8 < rates.flops_per_second < 1e15

"""Counting a model beside an engine that computes: PyTorch is the same for every other thread."""

from __future__ import annotations

import threading

import torch
from torch import nn
from transformers import LlamaConfig, Qwen2Config

from llmlab.models.empty import empty_model
from llmlab.models.loading import fit
from tests import tiny


def test_many_count_at_once_and_other_threads_notice_nothing() -> None:
    configs = [kind(**tiny.SIZES, dtype="bfloat16") for kind in (LlamaConfig, Qwen2Config)]
    counted, begin = list[int](), threading.Barrier(5)

    def count(config: object) -> None:
        begin.wait()
        counted.extend(fit.size_of(config).parameters for _ in range(8))

    threads = [threading.Thread(target=count, args=(configs[i % 2],)) for i in range(4)]
    for t in threads:
        t.start()
    begin.wait()
    seen = set()
    while any(t.is_alive() for t in threads) or not seen:
        made = nn.Linear(2, 2).weight
        seen.add((made.device.type, made.dtype, torch.ones(1).device.type, torch.ones(1).dtype))
    assert seen == {("cpu", torch.float32, "cpu", torch.float32)}
    assert len(set(counted)) == 2
    assert len(counted) == 32


def test_an_empty_model_holds_nothing_and_leaves_the_config_as_it_was() -> None:
    config = LlamaConfig(**tiny.SIZES, dtype="bfloat16")
    model = empty_model(config)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert config.dtype == torch.bfloat16

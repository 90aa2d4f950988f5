"""A config that is damaged in any way gets one sentence; code that a model names is not needed where transformers has
the model, and never run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from llmlab.errors import Refused
from llmlab.lab.model_cache import ModelCache
from tests import made
from tests.laws import laws


def changed(folder: Path, **changes: Any) -> None:
    value = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(value))


DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "blank": (b" \n", "is empty"),
    "a list": (b"[]", "holds a list"),
    "a text": (b'"llama"', "holds a str"),
    "null": (b"null", "holds a NoneType"),
    "cut short": (b'{"model_type": "lla', "no JSON"),
    "not UTF-8": ('{"model_type": "llama", "a": "ü"}'.encode("latin-1"), "no text in UTF-8"),
    "UTF-16": ('{"model_type": "llama"}'.encode("utf-16"), "no text in UTF-8"),
    "a byte order mark": (b'\xef\xbb\xbf{"model_type": "llama"}', "byte order mark"),
    "too deep": (b"[" * 100_000, "no JSON"),
    "too long a number": (b'{"model_type": "llama", "vocab_size": ' + b"9" * 5000 + b"}", "no JSON"),
    "no model": (b"{}", "unknown or damaged"),
    "a model that is a list": (b'{"model_type": ["llama"]}', "unknown or damaged"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_config_gets_its_sentence(tmp_path: Path, name: str) -> None:
    text, says = DAMAGED[name]
    folder = made.folder(tmp_path / "model")
    (folder / "config.json").write_bytes(text)
    with pytest.raises(Refused, match=says) as e:
        ModelCache().load(str(folder), "dense-fp32", "cpu")
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 300


NUMBERS: list[dict[str, Any]] = [
    {"hidden_size": 10**30},
    {"hidden_size": -64},
    {"hidden_size": "64"},
    {"hidden_size": None},
    {"num_hidden_layers": 0},
    {"num_attention_heads": 0},
    {"num_key_value_heads": 0},
    {"num_key_value_heads": -2},
    {"head_dim": 0},
    {"head_dim": 10**20},
    {"intermediate_size": 10**25},
    {"vocab_size": 10**18},
    {"max_position_embeddings": 10**40},
    {"max_position_embeddings": 0},
    {"rms_norm_eps": float("inf")},
    {"rms_norm_eps": float("nan")},
    {"rms_norm_eps": "tiny"},
    {"rope_parameters": 7},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 10**400}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": "big"}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 0}},
]


@pytest.mark.parametrize("changes", NUMBERS, ids=lambda c: "-".join(f"{k}={v}"[:50] for k, v in c.items()))
def test_numbers_that_cannot_be_get_one_sentence(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = made.folder(tmp_path / "model")
    changed(folder, **changes)
    with pytest.raises(Refused) as e:
        ModelCache().load(str(folder), "dense-fp32", "cpu")
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 300


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "code",
    [
        {"AutoModelForCausalLM": "modeling_x.X"},
        {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"},
        {"AutoConfig": "someone/else--configuration_x.X", "AutoModel": "someone/else--modeling_x.X"},
        {"AutoTokenizer": ["tokenization_x.X", None]},
    ],
)
def test_own_code_is_not_needed_where_transformers_has_the_model(
    tmp_path: Path, kind: str, code: dict[str, Any]
) -> None:
    folder = made.folder(tmp_path / "model", kind)
    want = AutoModelForCausalLM.from_pretrained(folder).eval()(torch.tensor([[5, 6, 7]])).logits[0]
    changed(folder, auto_map=code)
    for name in ("modeling_x", "configuration_x", "tokenization_x"):
        (folder / f"{name}.py").write_text("raise SystemExit('the code of a stranger ran')")
    model = ModelCache().load(str(folder), "dense-fp32", "cpu").model
    assert torch.allclose(laws.logits(model, [5, 6, 7], [3]), want, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["evil", "bert_generation_x", "", None])
def test_own_code_is_refused_where_transformers_has_no_such_model(tmp_path: Path, kind: str | None) -> None:
    folder = made.folder(tmp_path / "model")
    assert kind not in CONFIG_MAPPING
    changed(folder, model_type=kind, auto_map={"AutoConfig": "a.A", "AutoModelForCausalLM": "a.B"})
    (folder / "a.py").write_text("raise SystemExit('the code of a stranger ran')")
    with pytest.raises(Refused, match="needs its own code"):
        ModelCache().load(str(folder), "dense-fp32", "cpu")


def test_own_code_for_a_model_that_does_not_write_is_refused(tmp_path: Path) -> None:
    folder = made.folder(tmp_path / "model")
    changed(folder, model_type="t5", auto_map={"AutoModelForCausalLM": "a.B"})
    with pytest.raises(Refused, match="needs its own code"):
        ModelCache().load(str(folder), "dense-fp32", "cpu")

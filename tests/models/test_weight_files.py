"""Which files of a folder count: transformers' choice, whatever else lies beside them, and one sentence otherwise."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from llmlab.errors import Refused
from llmlab.lab.model_cache import ModelCache
from llmlab.models.loading.contents import checkpoint
from llmlab.models.loading.sources import locate
from tests import made
from tests.laws import laws

TOKENS = [5, 9, 2, 77, 31, 8]
INDEX = "model.safetensors.index.json"


def state(folder: Path, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in load_file(folder / file).items()}


def write(folder: Path, file: str, tensors: dict[str, torch.Tensor]) -> None:
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / file, metadata={"format": "pt"})


def halves(folder: Path, prefix: str = "model", index: str = INDEX) -> dict[str, str]:
    """Turn a folder's weights into two shards with an index; returns its weight_map."""
    tensors = state(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    owners = {n: f"{prefix}-0000{1 + (i >= len(names) // 2)}-of-00002.safetensors" for i, n in enumerate(names)}
    for file in set(owners.values()):
        write(folder, file, {n: tensors[n] for n in names if owners[n] == file})
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": owners}))
    return owners


def other(tmp_path: Path, kind: str) -> Path:
    return made.folder(tmp_path / "other", kind, seed=7)


def beside_ema(folder: Path, more: Path) -> None:
    shutil.copy(more / "model.safetensors", folder / "model_ema.safetensors")


def beside_consolidated(folder: Path, more: Path) -> None:
    shutil.copy(more / "model.safetensors", folder / "consolidated.safetensors")
    shutil.copy(more / "model.safetensors", folder / "consolidated.00.safetensors")


def beside_adapter(folder: Path, more: Path) -> None:
    shutil.copy(more / "model.safetensors", folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "a/b"}))


def beside_index(folder: Path, more: Path) -> None:
    shutil.copy(more / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    owners = dict.fromkeys(state(more), "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": owners}))


def beside_damaged_index(folder: Path, more: Path) -> None:
    (folder / INDEX).write_text("[")


def beside_variant(folder: Path, more: Path) -> None:
    shutil.copy(more / "model.safetensors", folder / "model.fp16.safetensors")


def sharded_with_stale(folder: Path, more: Path) -> None:
    halves(folder)
    shutil.copy(more / "model.safetensors", folder / "model-00003-of-00003.safetensors")
    shutil.copy(more / "model.safetensors", folder / "zz.safetensors")


def other_name(folder: Path, more: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")


def other_index(folder: Path, more: Path) -> None:
    halves(folder, "model.fp16", "model.safetensors.index.fp16.json")


def named_in_config(folder: Path, more: Path) -> None:
    (folder / "model.safetensors").rename(folder / "best.safetensors")
    shutil.copy(more / "model.safetensors", folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"transformers_weights": "best.safetensors"}
    (folder / "config.json").write_text(json.dumps(config))


def without_metadata(folder: Path, more: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": halves(folder)}))


CASES = [
    *(beside_ema, beside_consolidated, beside_adapter, beside_index, beside_damaged_index, beside_variant),
    *(sharded_with_stale, other_name, other_index, named_in_config, without_metadata),
]


@pytest.mark.parametrize("change", CASES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_lies_beside_is_never_mixed_in(tmp_path: Path, kind: str, change: Callable[[Path, Path], None]) -> None:
    """For our decoder and for models that transformers runs."""
    folder = made.folder(tmp_path / "model", kind)
    want = AutoModelForCausalLM.from_pretrained(folder).eval()(torch.tensor([TOKENS])).logits[0]
    change(folder, other(tmp_path, kind))
    if change not in (other_name, other_index, without_metadata):  # there transformers asks for more
        theirs = AutoModelForCausalLM.from_pretrained(folder).eval()(torch.tensor([TOKENS])).logits[0]
        assert torch.equal(theirs, want), "transformers is the referee"
    model = ModelCache().load(str(folder), "dense-fp32", "cpu").model
    assert torch.allclose(laws.logits(model, TOKENS, [len(TOKENS)]), want, atol=1e-3, rtol=1e-3)


def test_a_tensor_in_several_shards_comes_from_the_file_that_the_index_names(tmp_path: Path) -> None:
    folder = made.folder(tmp_path / "model")
    whole, owners = state(folder), halves(folder)
    last = max(owners.values())
    name = min(n for n in owners if owners[n] != last)
    write(folder, last, {**state(folder, last), name: whole[name] + 1})
    got = checkpoint(locate.find(str(folder))).get(name)
    assert torch.equal(got, whole[name])


def test_transformers_is_not_given_shards_that_disagree(tmp_path: Path) -> None:
    folder = made.folder(tmp_path / "model", "gpt2")
    owners = halves(folder)
    last = max(owners.values())
    name = min(n for n in owners if owners[n] != last)
    write(folder, last, {**state(folder, last), name: torch.zeros(3)})
    with pytest.raises(Refused, match="several files"):
        ModelCache().load(str(folder), "dense-fp32", "cpu")


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (halves(folder), (folder / name).unlink())[1]


def lacking(folder: Path) -> None:
    owners = halves(folder)
    first = min(owners.values())
    tensors = state(folder, first)
    tensors.pop(min(tensors))
    write(folder, first, tensors)


def indexed(value: Any) -> Callable[[Path], None]:
    text = value if isinstance(value, str) else json.dumps(value)
    return lambda folder: (halves(folder), (folder / INDEX).write_text(text))[0] and None


def only(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            shutil.copy(folder / "model.safetensors", folder / name)
        (folder / "model.safetensors").unlink()

    return change


def only_adapter(folder: Path) -> None:
    beside_adapter(folder, folder)
    (folder / "model.safetensors").unlink()


def bare_adapter(folder: Path) -> None:
    only_adapter(folder)
    (folder / "config.json").unlink()


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    path = "model.safetensors"
    return lambda folder: (folder / path).write_bytes(change((folder / path).read_bytes())) and None


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a shard is missing": (drop("model-00002-of-00002.safetensors"), "model-00002-of-00002.safetensors is missing"),
    "no index": (drop(INDEX), "which says what lies where"),
    "a shard lacks a tensor": (lacking, r"missing from model-00001-of-00002.safetensors, where .* says"),
    "an index that is a list": (indexed([1]), "weight_map"),
    "an index without a map": (indexed({"metadata": {}}), "weight_map"),
    "an index with an empty map": (indexed({"weight_map": {}}), "weight_map"),
    "an index of numbers": (indexed({"weight_map": {"a": 1}}), "weight_map"),
    "an index that is no JSON": (indexed("{"), "it is no JSON"),
    "an index that leads out": (indexed({"weight_map": {"a": "a/../../x.safetensors"}}), "inside the model's folder"),
    "an index of pickles": (indexed({"weight_map": {"a": "x.bin"}}), "no safetensors file"),
    "two files": (only("one.safetensors", "two.safetensors"), "several files of weights .*model.safetensors"),
    "two variants": (only("model.fp16.safetensors", "model.bf16.safetensors"), "several files of weights"),
    "only consolidated": (only("consolidated.safetensors"), "should be called model.safetensors"),
    "only an adapter": (only_adapter, "only an adapter.*'a/b'"),
    "only an adapter without a config": (bare_adapter, "only an adapter.*'a/b'"),
    "nothing": (lambda f: (f / "model.safetensors").unlink(), "holds no safetensors file"),
    "pickles": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin") and None, "can run code"),
    "GGUF": (lambda f: (f / "model.safetensors").rename(f / "x.gguf") and None, "path of the GGUF file itself"),
    "an empty file": (damaged(lambda b: b""), "not a safetensors file"),
    "a header cut short": (damaged(lambda b: b[:50]), "not a safetensors file"),
    "a header of another length": (damaged(lambda b: b"\xff" * 8 + b[8:]), "not a safetensors file"),
    "a header that is no JSON": (damaged(lambda b: b[:8] + b"x" * 40 + b[48:]), "not a safetensors file"),
    "a header of other offsets": (damaged(lambda b: b.replace(b"data_offsets", b"data_0ffsets")), "not a safetensors"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_is_missing_or_ambiguous_gets_one_sentence(tmp_path: Path, name: str, kind: str) -> None:
    change, says = REFUSED[name]
    folder = made.folder(tmp_path / "model", kind)
    change(folder)
    with pytest.raises(Refused, match=says) as e:
        ModelCache().load(str(folder), "dense-fp32", "cpu")
    assert "\n" not in str(e.value)


def test_a_file_written_over_does_not_end_the_process(tmp_path: Path) -> None:
    """The weights of a model that runs are its own: safetensors maps the file, and a shorter one would be a SIGBUS."""
    code = """
import os, sys
from llmlab.lab.model_cache import ModelCache
from tests.laws import laws
folder = sys.argv[1]
model = ModelCache().load(folder, "dense-fp32", "cpu").model
before = laws.logits(model, [1, 2, 3], [3]).clone()
os.truncate(folder + "/model.safetensors", 0)
assert (laws.logits(model, [1, 2, 3], [3]) == before).all()
"""
    for kind in ("llama", "gpt2"):
        folder = made.folder(tmp_path / kind, kind)
        done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

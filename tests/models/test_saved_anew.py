"""A model that is saved anew while the lab runs is read anew, and the old one is let go; nothing else reloads it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmlab.lab.model_cache import ModelCache
from llmlab.runtime.stack import Stack
from llmlab.runtime.tools import Tools
from tests import made
from tests.laws import laws


def weights(folder: Path) -> None:
    tensors = {k: v * 1.5 for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def weights_with_old_times(folder: Path) -> None:
    s = (folder / "model.safetensors").stat()
    weights(folder)
    os.utime(folder / "model.safetensors", ns=(s.st_atime_ns, s.st_mtime_ns))


def config(folder: Path) -> None:
    value = json.loads((folder / "config.json").read_text())
    value["rope_parameters"]["rope_theta"] = 500.0
    (folder / "config.json").write_text(json.dumps(value))


def tokenizer(folder: Path) -> None:
    made.tokenizer(chat=False).save_pretrained(folder)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text + "\n")


def template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")


def stops(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3]}))


def another_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    made.folder(folder, seed=3)


@pytest.mark.parametrize(
    "change", [weights, weights_with_old_times, config, tokenizer, template, stops, another_folder]
)
def test_a_folder_is_read_anew(tmp_path: Path, change: Callable[[Path], None]) -> None:
    folder, cache = made.folder(tmp_path / "model"), ModelCache()
    first = cache.load(str(folder), "dense-fp32", "cpu")
    cache.transformed(first, Stack.from_arguments(["layer-drop:count=1"]), Tools(first.tokenizer))
    assert cache.load(str(folder), "dense-fp32", "cpu") is first
    change(folder)
    second = cache.load(str(folder), "dense-fp32", "cpu")
    assert second is not first
    assert cache.nbytes == second.model.nbytes, "the old one and its copies are let go"
    fresh = ModelCache().load(str(folder), "dense-fp32", "cpu")
    assert torch.equal(laws.logits(second.model, [5, 6, 7], [3]), laws.logits(fresh.model, [5, 6, 7], [3]))
    assert cache.load(str(folder), "dense-fp32", "cpu") is second


def test_other_formats_of_the_old_one_are_let_go_too(tmp_path: Path) -> None:
    folder, cache = made.folder(tmp_path / "model"), ModelCache()
    cache.load(str(folder), "int8", "cpu")
    cache.load(str(folder), "dense-fp32", "cpu")
    weights(folder)
    second = cache.load(str(folder), "dense-fp32", "cpu")
    assert cache.nbytes == second.model.nbytes


@pytest.mark.parametrize("file", ["README.md", "optimizer.pt", "model_ema.safetensors", "adapter_model.safetensors"])
def test_what_is_not_read_does_not_count(tmp_path: Path, file: str) -> None:
    folder, cache = made.folder(tmp_path / "model"), ModelCache()
    first = cache.load(str(folder), "dense-fp32", "cpu")
    (folder / file).write_bytes(b"x")
    assert cache.load(str(folder), "dense-fp32", "cpu") is first


def test_a_gguf_file_is_read_anew(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.gguf", ModelCache()
    made.gguf(path)
    first = cache.load(str(path), "dense-fp32", "cpu")
    assert cache.load(str(path), "dense-fp32", "cpu") is first
    made.gguf(path, kind="Q8_0")
    second = cache.load(str(path), "dense-fp32", "cpu")
    assert not torch.equal(laws.logits(first.model, [5, 6, 7], [3]), laws.logits(second.model, [5, 6, 7], [3]))


def test_a_link_that_points_elsewhere_is_followed(tmp_path: Path) -> None:
    for i in (1, 2):
        made.folder(tmp_path / f"v{i}", seed=i)
    (tmp_path / "current").symlink_to("v1")
    cache = ModelCache()
    first = cache.load(str(tmp_path / "current"), "dense-fp32", "cpu")
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("v2")
    assert cache.load(str(tmp_path / "current"), "dense-fp32", "cpu") is not first


def test_looking_whether_it_changed_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = made.folder(tmp_path / "model"), ModelCache()
    first = cache.load(str(folder), "dense-fp32", "cpu")

    def read(*_: object, **__: object) -> None:
        raise AssertionError("a file was read")

    monkeypatch.setattr("builtins.open", read)
    monkeypatch.setattr("pathlib.Path.open", read)
    monkeypatch.setattr("pathlib.Path.read_bytes", read)
    assert cache.load(str(folder), "dense-fp32", "cpu") is first

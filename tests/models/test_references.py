"""However people write where a model is, it opens, or a sentence says how to write it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmlab.errors import Refused
from llmlab.models.loading.sources import locate
from llmlab.models.loading.sources.reference import Repository, repository, tidy
from tests import made


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty working directory and home, with no network."""
    for name in ("SPACE_ID", "LLMLAB_ALLOW_ANY_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


SITE = "https://huggingface.co/owner/name"
READ = {
    "owner/name": Repository("owner/name"),
    "owner/name/": Repository("owner/name"),
    "owner/name@v1.2": Repository("owner/name", "v1.2"),
    "owner/name@refs/pr/3": Repository("owner/name", "refs/pr/3"),
    "distilgpt2": Repository("distilgpt2"),
    "distilgpt2@dev": Repository("distilgpt2", "dev"),
    SITE: Repository("owner/name"),
    f"{SITE}/": Repository("owner/name"),
    f"{SITE}.git": Repository("owner/name"),
    f"{SITE}?library=transformers#files": Repository("owner/name"),
    f"{SITE}/tree/main": Repository("owner/name"),
    f"{SITE}/tree/dev/": Repository("owner/name", "dev"),
    f"{SITE}/tree/refs%2Fpr%2F3": Repository("owner/name", "refs/pr/3"),
    f"{SITE}/commit/0123abc": Repository("owner/name", "0123abc"),
    f"{SITE}/discussions/4": Repository("owner/name"),
    f"{SITE}/blob/main/x.gguf?download=true": Repository("owner/name", "main", "x.gguf"),
    f"{SITE}/resolve/v1/config.json": Repository("owner/name", "v1", "config.json"),
    SITE.replace("https", "http"): Repository("owner/name"),
    SITE.replace("https://", "www."): Repository("owner/name"),
    "HTTPS://HuggingFace.co/owner/name": Repository("owner/name"),
    "huggingface.co/owner/name/tree/dev": Repository("owner/name", "dev"),
    "hf.co/owner/name": Repository("owner/name"),
    "https://huggingface.co/distilgpt2": Repository("distilgpt2"),
    "https://huggingface.co/distilgpt2/tree/dev": Repository("distilgpt2", "dev"),
    "hf://owner/name": Repository("owner/name"),
    "hf://models/owner/name@dev/config.json": Repository("owner/name", "dev", "config.json"),
    "hf://owner/name@refs/pr/3/config.json": Repository("owner/name", "refs/pr/3", "config.json"),
}


@pytest.mark.parametrize("ref", READ)
def test_ids_and_addresses_of_the_hub(ref: str) -> None:
    assert repository(ref) == READ[ref]


NOT_READ = {
    "https://huggingface.co/datasets/owner/name": "the Hub's datasets",
    "https://huggingface.co/spaces/owner/name": "the Hub's spaces",
    "https://huggingface.co/": "does not name a model",
    "https://github.com/owner/name": "not one of the Hugging Face Hub",
    "https://huggingface.co.evil/owner/name": "not one of the Hugging Face Hub",
    "s3://bucket/model": "begins with s3://",
    "owner/name:Q4_K_M": "asks for the GGUF file 'Q4_K_M'",
    "hf.co/owner/name:Q4_K_M": "asks for the GGUF file 'Q4_K_M'",
    f"{SITE}/tree/main/onnx": "points at onnx",
    f"{SITE}/blob/main/x.gguf": "hf download owner/name 'x.gguf' --local-dir models.*models/x.gguf",
    f"{SITE}/blob/v1/x-00002-of-00003.gguf": r"--include 'x-\*' --revision v1",
    "file://elsewhere/models/tiny": "a file on elsewhere",
    "./missing": "No file or folder is called './missing'",
    "~/missing/model": "No file or folder",
    "~nobody-has-this-name/model": "No file or folder",
    "C:\\models\\tiny": "No file or folder",
    "missing.gguf": "No file or folder",
    "": "No model is called ''",
    "''": "No model is called ''",
    "a b c": "was not found",
    "nul\0byte": "was not found",
    "owner/na..me": "was not found",
    "smolm2-135m": "Did you mean smollm2-135m",
}


@pytest.mark.parametrize("ref", NOT_READ)
def test_what_cannot_be_read_is_told_how_to_write_it(here: Path, ref: str) -> None:
    with pytest.raises(Refused, match=NOT_READ[ref]) as e:
        locate.find(ref)
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 400


@pytest.mark.parametrize("ref", ['"a/b"', "'a/b'", " a/b\n", "` a/b `", "“a/b”", "<a/b>", "\"'a/b'\"", "\ufeffa/b"])
def test_quotes_and_spaces_are_taken_off(ref: str) -> None:
    assert tidy(ref) == "a/b"


SPELLINGS = [
    "{0}",
    "{0}/",
    "'{0}'",
    '  "{0}" ',
    "my models/tiny one",
    "./my models/tiny one",
    "~/my models/tiny one",
    "my\\ models/tiny\\ one",
    "my models\\tiny one",
    ".\\my models\\tiny one",
    "file://{0}",
    "file://localhost{0}",
    "file:{0}",
    "{0}/config.json",
    "{0}/model.safetensors",
    "{0}/tokenizer.json",
    "my models/tiny one/config.json",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_folder_however_it_is_written(here: Path, spelling: str) -> None:
    folder = made.folder(here / "my models" / "tiny one")
    ref = spelling.format(folder)
    if ref.startswith("file:"):
        ref = ref.replace(" ", "%20")
    found = locate.find(ref)
    assert found.kind == "folder"
    assert found.path is not None
    assert found.path.resolve() == folder
    assert found.name == "tiny one"


def test_a_file_that_the_folder_does_not_read_is_refused(here: Path) -> None:
    folder = made.folder(here / "model")
    shutil.copy(folder / "model.safetensors", folder / "model_ema.safetensors")
    with pytest.raises(Refused, match=r"model_ema.safetensors is not read from the folder model, which opens model"):
        locate.find(str(folder / "model_ema.safetensors"))
    (folder / "config.json").unlink()
    for name in ("model.safetensors", "tokenizer.json"):
        with pytest.raises(Refused, match=r"no config.json lies beside it"):
            locate.find(str(folder / name))


def test_a_folder_of_one_gguf_file_opens_it(here: Path) -> None:
    made.gguf(here / "models" / "tiny.gguf") if (here / "models").mkdir() is None else None
    (here / "models" / "README.md").write_text("")
    (here / "models" / "mmproj-f16.gguf").write_bytes(b"GGUF")
    for ref in ("models", str(here / "models"), "models/tiny.gguf", "models\\tiny.gguf", "'models/tiny.gguf'"):
        found = locate.find(ref)
        assert (found.kind, found.path and found.path.name) == ("gguf", "tiny.gguf")


def test_a_folder_of_several_gguf_files_lists_them(here: Path) -> None:
    for name in ("a.gguf", "b-00001-of-00002.gguf", "b-00002-of-00002.gguf", "C.GGUF"):
        made.gguf(here / name)
    with pytest.raises(Refused, match=r"several GGUF models \(C.GGUF, a.gguf, b-00001-of-00002.gguf\).*path of one"):
        locate.find(str(here))


def test_a_folder_of_the_hub_s_cache_opens_its_snapshot(here: Path) -> None:
    made.folder(here / "models--a--b" / "snapshots" / "0123")
    (here / "models--a--b" / "refs").mkdir()
    (here / "models--a--b" / "refs" / "main").write_text("0123")
    found = locate.find("models--a--b")
    assert found.path is not None
    assert found.path.name == "0123"

"""A hub on this machine, with revisions: what is downloaded is what is read, and half a snapshot is no whole one."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from safetensors.torch import load_file, save_file

from llmlab.errors import Refused
from llmlab.lab.model_cache import ModelCache
from llmlab.models.loading.catalog import MODELS
from llmlab.models.loading.contents import checkpoint
from llmlab.models.loading.sources import locate
from llmlab.models.loading.sources.hub import complete_snapshot
from llmlab.models.loading.sources.reference import Repository
from tests import made


@dataclass
class Hub:
    """Files by name, per repository and revision; `asked`: the files that were downloaded."""

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    pulls: dict[str, int] = field(default_factory=dict)
    broken: str = ""

    def add(self, repo: str, path: Path, revision: str = "main") -> dict[str, bytes]:
        files = {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}
        return self.repos.setdefault(repo, {}).setdefault(revision, files)

    def commit(self, repo: str, revision: str) -> str:
        return hashlib.sha1(repr((repo, revision)).encode()).hexdigest()

    def revision(self, repo: str, name: str) -> str | None:
        """The revision of a name or a commit."""
        return next((r for r in self.repos[repo] if name in (r, self.commit(repo, r))), None)

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        api = path.startswith("api/models/")
        rest = path.removeprefix("api/models/")
        repo = max((r for r in self.repos if rest == r or rest.startswith(r + "/")), key=len, default=None)
        if repo is None:
            return 404, b"{}", {"X-Error-Code": "RepoNotFound"}
        verb, _, rest = rest.removeprefix(repo).strip("/").partition("/")
        if verb == "discussions":
            pulls = [self.pulls[repo]] if repo in self.pulls else []
            listed = [
                {"num": n, "author": {"name": "SFconvertbot"}, "title": "", "status": "open", "isPullRequest": True}
                | {"createdAt": "2024-01-01T00:00:00.000Z", "repo": {"name": repo, "type": "model"}}
                for n in pulls
            ]
            return 200, json.dumps({"discussions": listed, "count": len(listed), "start": 0}).encode(), {}
        names = sorted((n for n in (*self.repos[repo], *map(self.commit, [repo] * 9, self.repos[repo]))), key=len)
        name = next((n for n in reversed(names) if rest == n or rest.startswith(n + "/")), rest or "main")
        revision = self.revision(repo, name)
        if revision is None:
            return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
        files, sha = self.repos[repo][revision], self.commit(repo, revision)
        if api and verb == "tree":
            tree = [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in files.items()]
            return 200, json.dumps(tree).encode(), {}
        if api:
            siblings = [{"rfilename": n, "size": len(b)} for n, b in files.items()]
            return 200, json.dumps({"id": repo, "sha": sha, "siblings": siblings, "private": False}).encode(), {}
        file = rest.removeprefix(name).strip("/")
        if file not in files or file == self.broken:
            return (500 if file == self.broken else 404), b"{}", {"X-Error-Code": "EntryNotFound"}
        etag = hashlib.sha1(files[file]).hexdigest()
        return 200, files[file], {"ETag": f'"{etag}"', "X-Repo-Commit": sha}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            status, body, headers = hub.answer(path)
            if self.command == "GET" and "/resolve/" in path and status == 200:
                hub.asked.append(path.rpartition("/")[2])
            self.send_response(status)
            for k, v in ({"Content-Length": str(len(body)), "Content-Type": "application/json"} | headers).items():
                self.send_header(k, v)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

    return Handler


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    for name in ("HF_HUB_OFFLINE", "LLMLAB_OFFLINE", "SPACE_ID", "LLMLAB_ALLOW_ANY_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache"))
    served = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(served))
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield served
    server.shutdown()
    server.server_close()


def sharded(folder: Path) -> Path:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    owners = {n: f"model-0000{1 + (i > 9)}-of-00002.safetensors" for i, n in enumerate(names)}
    for file in set(owners.values()):
        save_file({n: tensors[n] for n in names if owners[n] == file}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": owners}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


WHOLE = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
WHOLE |= {"chat_template.jinja"}
SHARDS = {"model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
EXTRA = ("model_ema.safetensors", "adapter_model.safetensors", "consolidated.safetensors", "model.fp16.safetensors")
EXTRA += ("pytorch_model.bin", "README.md", "trainer_state.json", "onnx/model.onnx", "onnx/config.json")
EXTRA += ("original/params.json", "original/consolidated.00.safetensors", "x.gguf", "adapter_config.json", "notes.txt")


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_only_what_is_read_is_downloaded(hub: Hub, tmp_path: Path, kind: str) -> None:
    folder = made.folder(tmp_path / "made")
    want = WHOLE
    if kind == "sharded":
        sharded(folder)
        want = (WHOLE - {"model.safetensors"}) | SHARDS
    files = hub.add("a/b", folder)
    stale = "model-00003-of-00003.safetensors"
    files |= dict.fromkeys((*EXTRA, stale), b"x" * 1000)
    if kind == "whole":
        files |= dict.fromkeys(SHARDS - {"model.safetensors.index.json"}, b"x" * 1000)
        files["model.safetensors.index.json"] = b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
    found = locate.find("a/b")
    assert not any(f.endswith(".safetensors") for f in hub.asked), "finding downloads no weights"
    assert found.nbytes == sum(len(files[f]) for f in want)
    locate.fetch(found)
    assert sorted(hub.asked) == sorted(want), "and nothing twice"
    hub.repos.clear()
    loaded = ModelCache().load("a/b", "dense-fp32", "cpu")
    assert loaded.tokenizer.chat_template


def test_a_revision_is_its_own_model(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, revision in enumerate(("main", "dev", "refs/pr/3")):
        hub.add("a/b", made.folder(tmp_path / str(i), seed=i), revision)

    def embedding(ref: str) -> Any:
        found = locate.fetch(locate.find(ref))
        return checkpoint(found).get("model.embed_tokens.weight")

    first = embedding("a/b")
    assert locate.find("a/b@dev").kind == "hub", "main is not taken for it"
    others = {ref: embedding(ref) for ref in ("a/b@dev", "https://huggingface.co/a/b/tree/refs%2Fpr%2F3")}
    commit = hub.commit("a/b", "dev")
    assert (embedding(f"a/b@{commit}") == others["a/b@dev"]).all()
    assert not any((first == o).all() for o in others.values())
    with pytest.raises(Refused, match="no branch, tag or commit called nope"):
        locate.find("a/b@nope")
    monkeypatch.setenv("LLMLAB_OFFLINE", "1")
    for ref, value in {"a/b": first, **others, f"hf://a/b@{commit}": others["a/b@dev"]}.items():
        assert (embedding(ref) == value).all()
    assert "at dev" in checkpoint(locate.find("a/b@dev")).source


def test_two_revisions_in_the_cache_are_two_models(hub: Hub, tmp_path: Path) -> None:
    for i, revision in enumerate(("main", "dev")):
        hub.add("a/b", made.folder(tmp_path / str(i), seed=i), revision)
    cache = ModelCache()
    first = cache.load("a/b", "dense-fp32", "cpu")
    assert cache.load("a/b@dev", "dense-fp32", "cpu") is not first
    assert cache.load("a/b", "dense-fp32", "cpu") is first


@pytest.mark.parametrize("ref", ["tiny", "tiny@main", "https://huggingface.co/tiny", "hf.co/tiny"])
def test_ids_of_one_word(hub: Hub, tmp_path: Path, ref: str) -> None:
    hub.add("tiny", made.folder(tmp_path / "made"))
    assert locate.fetch(locate.find(ref)).kind == "folder"
    assert locate.find(ref).kind == "folder"
    with pytest.raises(Refused, match="was not found"):
        locate.find("tinyer")


def _gguf(files: dict[str, bytes]) -> None:
    del files["model.safetensors"]
    files["x-Q4_K_M.gguf"] = files["x-Q8_0.gguf"] = b"GGUF"


def _adapter(files: dict[str, bytes]) -> None:
    files["adapter_model.safetensors"] = files.pop("model.safetensors")
    files["adapter_config.json"] = b'{"base_model_name_or_path": "owner/base"}'
    del files["config.json"]


def _lost_shard(files: dict[str, bytes]) -> None:
    del files["model.safetensors"]
    owners = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": owners}).encode()
    files["model-00001-of-00002.safetensors"] = b""


def _bad_index(files: dict[str, bytes]) -> None:
    _lost_shard(files)
    files["model.safetensors.index.json"] = b"[]"


def _subfolder(files: dict[str, bytes]) -> None:
    files["fp16/model.safetensors"] = files.pop("model.safetensors")


def _several(files: dict[str, bytes]) -> None:
    files["one.safetensors"] = files["two.safetensors"] = files.pop("model.safetensors")


REFUSED: dict[str, tuple[Callable[[dict[str, bytes]], None], str]] = {
    "only GGUF": (_gguf, "hf download a/b 'x-Q4_K_M.gguf' --local-dir models.*models/x-Q4_K_M.gguf"),
    "only an adapter": (_adapter, "only an adapter.*'owner/base'"),
    "an index of lost shards": (_lost_shard, "model-00002-of-00002.safetensors, which is not in the repository"),
    "a damaged index": (_bad_index, "weight_map"),
    "weights in a subfolder": (_subfolder, "no safetensors files"),
    "several files": (_several, "several files of weights"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_opened_is_refused_before_its_download(hub: Hub, tmp_path: Path, name: str) -> None:
    change, says = REFUSED[name]
    change(hub.add("a/b", made.folder(tmp_path / "made")))
    with pytest.raises(Refused, match=says) as e:
        locate.find("a/b")
    assert "\n" not in str(e.value)
    assert not any(f.endswith((".safetensors", ".gguf")) for f in hub.asked)


def test_an_address_of_a_file_that_is_not_read(hub: Hub, tmp_path: Path) -> None:
    hub.add("a/b", made.folder(tmp_path / "made"))["model_ema.safetensors"] = b""
    site = "https://huggingface.co/a/b/blob/main"
    assert locate.find(f"{site}/model.safetensors").kind == "hub"
    assert locate.find(f"{site}/config.json").kind == "hub"
    for _ in range(2):  # on the Hub, and in the cache
        with pytest.raises(Refused, match=r"model_ema.safetensors, which is not read"):
            locate.find(f"{site}/model_ema.safetensors")
        locate.fetch(locate.find("a/b"))


# Half a snapshot --------------------------------------------------------------------------------------------


def _unlink(name: str) -> Callable[[Path], None]:
    return lambda snapshot: (snapshot / name).unlink()


def _dangle(name: str) -> Callable[[Path], None]:
    return lambda snapshot: (snapshot / name).resolve().unlink()


def _cut(name: str) -> Callable[[Path], None]:
    def change(snapshot: Path) -> None:
        blob = (snapshot / name).resolve()
        blob.write_bytes(blob.read_bytes()[:-10])

    return change


def _no_tree(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """As other programs leave a cache: without the Hub's list of files."""
    return lambda snapshot: (shutil.rmtree(snapshot.parents[1] / "trees", ignore_errors=True), change(snapshot))[1]


SHARD = "model-00002-of-00002.safetensors"
HALVES = {
    "a shard": _unlink(SHARD),
    "a shard's blob": _dangle(SHARD),
    "a shard's end": _cut(SHARD),
    "the index": _unlink("model.safetensors.index.json"),
    "the config": _unlink("config.json"),
    "the tokenizer": _unlink("tokenizer.json"),
    "the chat template": _unlink("chat_template.jinja"),
    "a shard, no list": _no_tree(_unlink(SHARD)),
    "the tokenizer, no list": _no_tree(_unlink("tokenizer.json")),
    "the index, no list": _no_tree(_unlink("model.safetensors.index.json")),
}


@pytest.mark.parametrize("name", HALVES)
def test_half_a_snapshot_is_fetched_again(hub: Hub, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("a/b", sharded(made.folder(tmp_path / "made")))
    locate.fetch(locate.find("a/b"))
    snapshot = complete_snapshot(Repository("a/b"))
    assert snapshot is not None
    HALVES[name](snapshot)
    assert complete_snapshot(Repository("a/b")) is None
    monkeypatch.setenv("LLMLAB_OFFLINE", "1")
    with pytest.raises(Refused, match="not on this machine"):
        locate.find("a/b")
    monkeypatch.delenv("LLMLAB_OFFLINE")
    assert ModelCache().load("a/b", "dense-fp32", "cpu").model
    assert complete_snapshot(Repository("a/b")) == snapshot


def test_a_download_that_broke_off_goes_on(hub: Hub, tmp_path: Path) -> None:
    """Whatever file fails, the weights come last: weights that are whole mean that all is here."""
    names = hub.add("a/b", sharded(made.folder(tmp_path / "made")))
    for name in [n for n in names if n not in ("config.json", "model.safetensors.index.json")]:
        shutil.rmtree(tmp_path / "hub", ignore_errors=True)
        hub.broken = name
        with pytest.raises(Refused, match=r"broke off|answered 500"):
            locate.fetch(locate.find("a/b"))
        shutil.rmtree(tmp_path / "hub" / "models--a--b" / "trees", ignore_errors=True)
        assert complete_snapshot(Repository("a/b")) is None
        hub.broken = ""
        locate.fetch(locate.find("a/b"))
        assert complete_snapshot(Repository("a/b")) is not None


def test_a_conversion_is_found_again_without_the_network(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A catalogue model whose safetensors are in a pull request of the Hub's bot."""
    repo = MODELS["opt-125m"].repo
    folder = made.folder(tmp_path / "made", "gpt2", chat=False)
    hub.add(repo, folder, "refs/pr/7")
    files = hub.add(repo, folder)
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    hub.pulls[repo] = 7
    found = locate.find("opt-125m")
    assert (found.kind, found.revision) == ("hub", "refs/pr/7")
    locate.fetch(found)
    monkeypatch.setenv("LLMLAB_OFFLINE", "1")
    assert (locate.find("opt-125m").kind, locate.downloaded(MODELS["opt-125m"])) == ("folder", True)

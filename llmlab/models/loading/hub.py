"""The Hugging Face Hub: checks before a download, the download, and what the Hub's own cache already holds."""

from __future__ import annotations

import io
import json
import os
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from llmlab.errors import Refused
from llmlab.models.loading.catalog import Entry
from llmlab.models.loading.disk import refuse_full_disk, require_disk
from llmlab.models.loading.environment import offline
from llmlab.models.loading.folder import config_of
from llmlab.models.loading.found import Found, Unreachable
from llmlab.models.loading.progress import Report, quiet

WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt", "*.jinja")
PATIENCE = 6.0
"""Seconds that the Hub may take to answer before it counts as unreachable."""


def find_on_hub(repo: str, entry: Entry | None) -> Found:
    """A repository that the lab can run, with the bytes of its download; only its config is fetched.

    `entry`: the catalogue's, where it is a catalogue model. Raises Refused for what cannot be used and Unreachable
    where the Hub does not answer.
    """
    from huggingface_hub import HfApi

    who = entry.title if entry else repo
    if offline():
        raise Refused(
            f"The model {who}",
            "is not on this machine, and the lab has been told to stay offline",
            "Connect once to fetch it, choose a model that is here, or replay a recorded run",
        )
    api = HfApi(token=token_for(entry))
    files = _listed_files(api, repo, who)
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
    folder = download(repo, revision, ("config.json", "generation_config.json"), entry, quiet)
    config_of(folder, repo)
    nbytes = sum(size for f, size in files.items() if _fits_pattern(f))
    require_disk(nbytes, folder, who)
    return Found(repo, repo, "hub", folder, entry, revision, nbytes)


def _listed_files(api: Any, repo: str, who: str) -> dict[str, int]:
    """The repository's files with their bytes. Raises Refused or Unreachable with the reason of a failure."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        info = api.model_info(repo, files_metadata=True, timeout=PATIENCE)
    except GatedRepoError as e:
        raise gated(who, repo) from e
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


def _fits_pattern(file: str) -> bool:

    return "/" not in file and any(fnmatch(file, w) for w in WANTED)


def download(
    repo: str, revision: str, patterns: tuple[str, ...], entry: Entry | None, report: Report, nbytes: int = 0
) -> Path:
    """The folder with a repository's files of these patterns. Raises Refused for a gated one or a full disk."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError
    from tqdm import tqdm

    what = f"Downloading {entry.title if entry else repo}"
    seen = {"done": 0}

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
                allow_patterns=list(patterns),
                ignore_patterns=["*/*"],
                token=token_for(entry),
                tqdm_class=Bar,
            )
        )
    except GatedRepoError as e:
        raise gated(entry.title if entry else repo, repo) from e
    except Exception as e:
        if isinstance(e, OSError):
            refuse_full_disk(e, what)
        raise Unreachable(what, f"broke off ({type(e).__name__})", "Check the network and try again") from e


def complete_snapshot(repo: str) -> Path | None:
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

"""Models by name: a catalogue id, a Hub id, a local folder or a GGUF file.

`find` looks without downloading weights, `fetch` brings them, and nothing that a stranger's files say is run.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from pathlib import Path

from llmlab.errors import Refused
from llmlab.models.loading.catalog import MODELS, Entry
from llmlab.models.loading.contents import read_gguf
from llmlab.models.loading.environment import offline, restricted
from llmlab.models.loading.gguf.split import gguf_in
from llmlab.models.loading.progress import Report, quiet
from llmlab.models.loading.sources.files import ADAPTER, matching, weights_in
from llmlab.models.loading.sources.folder import config_of
from llmlab.models.loading.sources.found import Found, Missing, Unreachable
from llmlab.models.loading.sources.hub import (
    as_file,
    cached_conversions,
    complete_snapshot,
    fetch_from_hub,
    find_on_hub,
)
from llmlab.models.loading.sources.mirror import fetch_mirror, intact, mirrored_file
from llmlab.models.loading.sources.reference import Repository, is_path, local, repository, tidy


def find(ref: str) -> Found:
    """The model that `ref` names: a catalogue id, a Hub id or address, a local folder or a GGUF file.

    Downloads a config and an index at most. Raises Refused for a model that is unknown, gated, too large for the disk,
    without safetensors, in need of its own code, or of a kind that does not generate text.
    """
    ref = tidy(ref)
    entry = MODELS.get(ref)
    if entry is not None:
        return _find_entry(ref, entry)
    if restricted():
        raise Refused(
            f"The model {ref[:80]!r}",
            "is not in the list, and this public page runs listed models only",
            "Choose one from the list, or run the lab on your own machine",
        )
    path = local(ref) if ref else None
    if path is not None:
        return _find_local(ref, path)
    at = None if not ref or is_path(ref) else repository(ref)
    if at is not None:
        return _find_repository(ref, at)
    raise _nothing(ref)


def _nothing(ref: str) -> Refused:
    """Nothing is called so."""
    if is_path(ref) and len(ref) < 500:
        return Refused(f"No file or folder is called {ref[:80]!r};", "it was not found", "Check the path")
    near = _near(ref)
    hint = (
        f"Did you mean {near}" if near else "Give a name from the list, a Hub id (owner/name), a folder or a GGUF file"
    )
    return Refused(f"No model is called {ref[:80]!r};", "it was not found", hint)


def _near(ref: str, alike: float = 0.6) -> str | None:
    """The catalogue model that was probably meant; `alike` (0 to 1) as in difflib."""
    return next(iter(difflib.get_close_matches(ref.lower(), MODELS, 1, alike)), None)


def _find_local(ref: str, path: Path) -> Found:
    """A folder, a GGUF file, or the folder of a file that belongs to a model."""
    try:
        if path.is_dir():
            path = _snapshot_in(path)
            held = None if (path / "config.json").exists() else gguf_in(path)
            if held is None:
                return _find_folder(ref, path)
            path = held
        elif path.suffix == ".safetensors" or matching([path.name]) or path.name.endswith(".safetensors.index.json"):
            return _find_beside(ref, path)
        return Found(ref, path.stem, "gguf", read_gguf(path).path)
    except OSError as e:
        raise Refused(str(path)[:200], f"cannot be read ({type(e).__name__})", "Check the path and its rights") from e


def _snapshot_in(path: Path) -> Path:
    """The snapshot in a folder of the Hub's cache (models--owner--name); any other folder is itself."""
    ref = path / "refs" / "main"
    if (path / "config.json").exists() or not ref.is_file():
        return path
    name = ref.read_text(encoding="utf-8", errors="replace").strip()
    held = path / "snapshots" / name
    return held if re.fullmatch(r"\w[\w.-]*", name) and held.is_dir() else path


def _find_folder(ref: str, path: Path) -> Found:
    who = path.resolve().name
    if not (path / "config.json").exists() and (path / ADAPTER).exists():
        weights_in(path, f"The folder {who}")
    config = config_of(path, who)
    weights_in(path, f"The folder {who}", getattr(config, "transformers_weights", None))
    return Found(ref, who, "folder", path)


def _find_beside(ref: str, path: Path) -> Found:
    """The model in whose folder a file lies."""
    owner = path.absolute().parent
    if not (owner / "config.json").exists():
        raise Refused(
            f"The file {path.name}",
            "is only a part of a model: no config.json lies beside it",
            "Give the folder that holds the whole model",
        )
    found = _find_folder(ref, owner)
    held = weights_in(owner, owner.name, getattr(config_of(owner, owner.name), "transformers_weights", None))
    if path.suffix == ".safetensors" and path.name not in held.files:
        raise Refused(
            f"The file {path.name}",
            f"is not read from the folder {owner.name}, which opens {held.entry}",
            f"Give {owner}, or put {path.name} into a folder of its own as model.safetensors",
        )
    return found


def _find_repository(ref: str, at: Repository) -> Found:
    """A Hub model, on this machine already or on the Hub."""
    if at.file.lower().endswith(".gguf"):
        raise as_file(at, at.file, f"offers {at.file[:60]}, and the lab opens GGUF as a file only")
    if at.file and ("/" in at.file or "." not in at.file):
        why = f"points at {at.file[:60]}, inside a repository"
        raise Refused(f"The address {ref[:80]!r}", why, f"Write {at.repo}, or download that folder and give its path")
    found = _in_cache(at, None)
    if found is None and "/" not in at.repo and (offline() or _near(ref, 0.85)):
        raise _nothing(ref)
    try:
        found = found or find_on_hub(at, None)
    except (Missing, Unreachable) as e:
        if "/" in at.repo or not (isinstance(e, Missing) or _near(ref)):
            raise
        raise _nothing(ref) from e
    if at.file.endswith(".safetensors") and found.path is not None:
        held = found.weights or weights_in(found.path, at.repo).files
        if at.file not in held:
            why = f"points at {at.file[:60]}, which is not read from {at.repo}: it opens {held[0]}"
            raise Refused(f"The address {ref[:80]!r}", why, f"Write {at.repo}")
    return replace(found, ref=ref)


def _find_entry(ref: str, entry: Entry) -> Found:
    found = _in_cache(Repository(entry.repo), entry)
    if found is None and entry.mirror is not None and intact(mirrored_file(entry.mirror), entry.mirror):
        found = Found(ref, entry.title, "gguf", mirrored_file(entry.mirror), entry)
    try:
        found = found or find_on_hub(Repository(entry.repo), entry)
    except Unreachable:
        if entry.mirror is None:
            raise
        found = Found(ref, entry.title, "mirror", None, entry, nbytes=entry.mirror.nbytes)
    return replace(found, ref=ref, name=entry.title)


def _snapshot(at: Repository, entry: Entry | None) -> tuple[Path, str] | None:
    """A whole snapshot on this machine, and its revision; of a catalogue model, that of a conversion too."""
    for revision in (at.revision, *(cached_conversions(at.repo) if entry else ())):
        here = complete_snapshot(Repository(at.repo, revision))
        if here is not None:
            return here, revision
    return None


def _in_cache(at: Repository, entry: Entry | None) -> Found | None:
    """A Hub model that is on this machine already."""
    held = _snapshot(at, entry)
    if held is None:
        return None
    config_of(held[0], at.repo)
    return Found(at.repo, at.repo, "folder", held[0], entry, held[1], repo=at.repo)


def fetch(found: Found, report: Report = quiet) -> Found:
    """The same model with its weights on this machine. Raises Refused when the network or the disk forbids it."""
    if found.kind == "mirror" and found.entry and found.entry.mirror:
        return replace(found, kind="gguf", path=fetch_mirror(found.entry.mirror, found.name, report))
    if found.kind == "hub":
        return replace(found, kind="folder", path=fetch_from_hub(found, report))
    return found


def downloaded(entry: Entry) -> bool:
    """Whether a catalogue model can run without the network."""
    if entry.mirror is not None and mirrored_file(entry.mirror).exists():
        return True
    return _snapshot(Repository(entry.repo), entry) is not None

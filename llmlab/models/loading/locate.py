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
from llmlab.models.loading.environment import restricted
from llmlab.models.loading.folder import config_of
from llmlab.models.loading.found import Found, Unreachable
from llmlab.models.loading.hub import WANTED, complete_snapshot, download, find_on_hub
from llmlab.models.loading.mirror import fetch_mirror, intact, mirrored_file
from llmlab.models.loading.progress import Report, quiet

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")


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
            config_of(path, path.name)
            return Found(ref, path.resolve().name, "folder", path)
        if path.is_file():
            read_gguf(path)
            return Found(ref, path.stem, "gguf", path)
    except OSError:  # a name too long for a file is no file
        pass
    if HUB_ID.fullmatch(ref):
        return _in_cache(ref, None) or find_on_hub(ref, None)
    near = difflib.get_close_matches(ref.lower(), MODELS, 1)
    hint = (
        f"Did you mean {near[0]}"
        if near
        else "Give a name from the list, a Hub id (owner/name), a folder or a GGUF file"
    )
    raise Refused(f"No model is called {ref[:80]!r};", "it was not found", hint)


def _find_entry(ref: str, entry: Entry) -> Found:
    found = _in_cache(entry.repo, entry)
    if found is None and entry.mirror is not None and intact(mirrored_file(entry.mirror), entry.mirror):
        found = Found(ref, entry.title, "gguf", mirrored_file(entry.mirror), entry)
    try:
        found = found or find_on_hub(entry.repo, entry)
    except Unreachable:
        if entry.mirror is None:
            raise
        found = Found(ref, entry.title, "mirror", None, entry, nbytes=entry.mirror.nbytes)
    return replace(found, ref=ref, name=entry.title)


def _in_cache(repo: str, entry: Entry | None) -> Found | None:
    """A Hub model that is on this machine already."""
    here = complete_snapshot(repo)
    if here is None:
        return None
    config_of(here, repo)
    return Found(repo, repo, "folder", here, entry)


def fetch(found: Found, report: Report = quiet) -> Found:
    """The same model with its weights on this machine. Raises Refused when the network or the disk forbids it."""
    if found.kind == "mirror" and found.entry and found.entry.mirror:
        return replace(found, kind="gguf", path=fetch_mirror(found.entry.mirror, found.name, report))
    if found.kind == "hub":
        repo = found.entry.repo if found.entry else found.ref
        path = download(repo, found.revision, WANTED, found.entry, report, found.nbytes)
        return replace(found, kind="folder", path=path)
    return found


def downloaded(entry: Entry) -> bool:
    """Whether a catalogue model can run without the network."""
    if entry.mirror is not None and mirrored_file(entry.mirror).exists():
        return True
    return complete_snapshot(entry.repo) is not None

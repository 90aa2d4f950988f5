"""How people write where a model is: as they copy it from the browser, the shell, the file manager or a README."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llmlab.errors import Refused

WORD = r"[A-Za-z0-9][\w.-]{0,95}"
HUB_ID = re.compile(rf"(?P<repo>{WORD}/[\w.-]{{1,96}}|{WORD})(@(?P<revision>[\w./-]{{1,200}}))?")
SITES = ("huggingface.co", "hf.co", "hub.huggingface.co")
QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "<": ">"}
PAGES = ("tree", "blob", "resolve", "raw", "commit", "commits")
"""What stands before a revision in the Hub's addresses."""
HOW = "Write owner/name, owner/name@revision, a folder or a GGUF file"


@dataclass(frozen=True)
class Repository:
    """A repository on the Hub. `file`: one of its files, where that was named."""

    repo: str
    revision: str = "main"
    file: str = ""


def tidy(ref: str) -> str:
    """What was written, without the spaces and quotes around it."""
    ref = ref.strip().strip("\ufeff\u200b").strip()
    while len(ref) > 1 and QUOTES.get(ref[0]) == ref[-1]:
        ref = ref[1:-1].strip()
    return ref


def repository(ref: str) -> Repository | None:
    """The repository that a Hub id or an address of the Hub names; None for what is neither.

    Raises Refused for an address of another site, and of what is no model.
    """
    scheme, found = re.match(r"[A-Za-z][\w+.-]*(?=://)", ref), None
    if scheme is None and ref.lower().split("/")[0].removeprefix("www.") in SITES and "/" in ref:
        return repository("https://" + ref)
    if scheme is not None:
        if scheme[0].lower() == "hf":
            return _from_parts([unquote(p) for p in re.split(r"[?#]", ref[5:])[0].split("/") if p], ref)
        if scheme[0].lower() not in ("http", "https"):
            raise Refused(f"The address {ref[:80]!r}", f"begins with {scheme[0][:10]}://, which is not read here", HOW)
        site = urlsplit(ref)
        own = urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc.lower()
        host = site.netloc.lower().rpartition("@")[2]
        if host.removesuffix(":443").removeprefix("www.") not in SITES and host != own:
            raise Refused(f"The address {ref[:80]!r}", "is not one of the Hugging Face Hub", HOW)
        return _from_parts([unquote(p) for p in site.path.split("/") if p], ref)
    name, _, tag = ref.partition(":")
    found = HUB_ID.fullmatch(name.rstrip("/") if name.count("/") == 2 and name.endswith("/") else name)
    if found is None or ".." in ref:
        return None
    if tag:
        why = f"asks for the GGUF file {tag[:30]!r} of a repository, and the lab opens GGUF as a file only"
        raise Refused(f"The name {ref[:80]!r}", why, f"Run `hf download {found['repo']}` and give the file's path")
    return Repository(found["repo"].removesuffix(".git"), found["revision"] or "main")


def _from_parts(parts: list[str], ref: str) -> Repository:
    """What the path of an address names: owner, name, then perhaps a page, a revision and a file."""
    bad = f"The address {ref[:80]!r}"
    if parts[:1] == ["models"]:
        parts = parts[1:]
    if parts[:1] and parts[0] in ("datasets", "spaces", "docs", "papers", "collections", "blog", "api", "buckets"):
        raise Refused(bad, f"is one of the Hub's {parts[0][:12]}, not of a model", HOW)
    if parts and ":" in parts[-1] and len(parts) < 3:
        repository("/".join(parts))  # refuses it
    at = next((i for i, p in enumerate(parts[:3]) if i and p in PAGES), min(len(parts), 2))
    named, rest = parts[:at], parts[at:]
    revision = "main"
    if named and "@" in named[-1]:
        named[-1], _, revision = named[-1].partition("@")
        if revision == "refs" and len(rest) >= 2:  # hf://owner/name@refs/pr/1/…
            revision, rest = "/".join([revision, *rest[:2]]), rest[2:]
    elif len(rest) > 1 and rest[0] in PAGES:
        revision, rest = rest[1], rest[2:]
        if revision == "refs" and len(rest) >= 2:
            revision, rest = "/".join([revision, *rest[:2]]), rest[2:]
    elif rest and rest[0] in (*PAGES, "discussions", "edit", "settings", "community"):
        rest = []
    found = HUB_ID.fullmatch("/".join(named) + f"@{revision}")
    if found is None or ".." in revision:
        raise Refused(bad, "does not name a model of the Hugging Face Hub", HOW)
    return Repository(found["repo"].removesuffix(".git"), revision, "/".join(rest))


def local(ref: str) -> Path | None:
    """The file or folder that `ref` names, however it is written; None where there is none.

    Raises Refused for a file:// address of another machine.
    """
    return next((path for path in _spellings(ref) if _exists(path)), None)


def _spellings(ref: str) -> list[Path]:
    if ref.lower().startswith("file:"):
        site = urlsplit(ref)
        if site.netloc not in ("", "localhost"):
            raise Refused(f"The address {ref[:80]!r}", f"is a file on {site.netloc[:40]}", "Copy it to this machine")
        path = unquote(site.path)
        return [Path(path), *([Path(path[1:])] if re.match(r"/[A-Za-z]:", path) else [])]
    ways = [ref, ref.replace("\\ ", " "), ref.replace("\\", "/"), unquote(ref)]
    paths = []
    for way in dict.fromkeys(ways):
        try:
            paths.append(Path(way).expanduser())
        except (RuntimeError, ValueError):  # a home that nobody has, or a null byte
            continue
    return paths


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long for a file is no file
        return False


def is_path(ref: str) -> bool:
    """Whether what was written can only be a path."""
    if ("://" in ref[:12] and not ref.startswith("file:")) or ref.lower().split("/")[0].removeprefix("www.") in SITES:
        return False
    begins = ref.startswith(("/", "./", "../", "~", ".\\", "..\\", "file:")) or re.match(r"[A-Za-z]:[\\/]", ref)
    return bool(begins) or "\\" in ref or ref.lower().endswith((".gguf", ".safetensors", ".json", ".bin"))

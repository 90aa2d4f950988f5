"""What environment variables decide: where downloads are kept, whether the network and unlisted models may be used."""

from __future__ import annotations

import os
import stat
import tempfile
from functools import cache
from pathlib import Path

from llmlab.errors import Refused


def cache_folder() -> Path:
    """The folder for what the lab itself downloads; models from the Hub stay in the Hub's own cache.

    LLMLAB_CACHE, else `llmlab` in XDG_CACHE_HOME (which counts only as a whole path, says the XDG Base Directory
    Specification), else in the user's own cache, else, where nobody knows a home folder, in the temporary one. Raises
    Refused for a variable that begins with a home folder that is not known.
    """
    name = cache_variable()
    if name is not None:
        folder = _folder(name)
        return folder.absolute() if name == "LLMLAB_CACHE" else folder / "llmlab"
    try:
        return Path.home().absolute() / ".cache" / "llmlab"
    except RuntimeError:  # an unknown user without HOME, as in a container
        return temporary_home()


@cache
def temporary_home() -> Path:
    """A folder in the temporary one that is this user's alone: the same each time, unless somebody else made it first,
    who could put into it what libraries trust."""
    user = os.getuid() if hasattr(os, "getuid") else None
    folder = Path(tempfile.gettempdir(), f"llmlab-{'user' if user is None else user}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="llmlab-"))
    own = stat.S_ISDIR(found.st_mode) and (user is None or (found.st_uid == user and not found.st_mode & 0o022))
    return folder if own else Path(tempfile.mkdtemp(prefix="llmlab-"))


def cache_variable() -> str | None:
    """Which variable says where the cache is, if one does."""
    if os.environ.get("LLMLAB_CACHE", "").strip():
        return "LLMLAB_CACHE"
    if os.environ.get("XDG_CACHE_HOME", "").strip() and _folder("XDG_CACHE_HOME").is_absolute():
        return "XDG_CACHE_HOME"
    return None


def _folder(variable: str) -> Path:
    value = os.environ[variable].strip()
    try:
        return Path(value).expanduser()
    except RuntimeError as e:
        why = f"begins with a home folder that nobody knows here: {value[:80]}"
        raise Refused(f"The variable {variable}", why, "Give the whole path") from e


def offline() -> bool:
    """Whether the network must not be tried: LLMLAB_OFFLINE or HF_HUB_OFFLINE is set."""
    return any(
        os.environ.get(n, "").lower() in ("1", "true", "yes", "on") for n in ("LLMLAB_OFFLINE", "HF_HUB_OFFLINE")
    )


def restricted() -> bool:
    """Whether only the catalogue may be used: on a public Space, unless its owner allows any model."""
    return bool(os.environ.get("SPACE_ID")) and os.environ.get("LLMLAB_ALLOW_ANY_MODEL") != "1"

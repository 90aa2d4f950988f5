"""Whatever a process is started with, it works, or ends with one sentence on standard error and status 2."""

from __future__ import annotations

import codecs
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from llmlab.__main__ import main
from llmlab.cli import interruption, output, places, surroundings, words
from llmlab.errors import Refused
from llmlab.models.auxiliary import store
from llmlab.models.loading import environment
from llmlab.models.loading.whole import whole_file, whole_folder
from tests import made

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="streams are closed and filled as POSIX shells do it")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(made.folder(tmp_path_factory.mktemp("models") / "tiny"))


def shell(line: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """(status, standard output, standard error) of a shell's line, in which $LAB stands for the command line."""
    lab = {"LAB": f"{sys.executable} -m llmlab", "APP": f"{sys.executable} app.py --no-browser"}
    ran = subprocess.run(
        ["bash", "-c", line], capture_output=True, cwd=ROOT, timeout=240, env={**os.environ, **lab, **(env or {})}
    )
    return ran.returncode, ran.stdout.decode("utf-8", "replace"), ran.stderr.decode("utf-8", "replace")


def one_sentence(status: int, err: str, says: str) -> None:
    assert status == 2, err
    assert len(err.strip().splitlines()) == 1, err
    assert says in err


# Streams --------------------------------------------------------------------------------------------------------

FIRST = "$LAB run --model {model} --prompt hé --max-new-tokens 3"


@pytest.mark.parametrize(
    ("line", "env", "status", "out", "err"),
    [
        (FIRST + " > /dev/full", {}, 2, "", "No space left on device"),
        (FIRST + " --json {tmp}/a.json > /dev/full; tail -c 2 {tmp}/a.json", {}, 0, "}\n", "goes on for its file"),
        (FIRST + " >&- 2>&- <&-", {}, 0, "", ""),
        (FIRST + " --json {tmp}/b.json >&-; tail -c 2 {tmp}/b.json", {}, 0, "}\n", "3 tokens"),
        (FIRST + " --json - 2>/dev/full | head -1", {}, 0, "{\n", ""),
        (FIRST + " --json -", {"PYTHONIOENCODING": "ascii"}, 0, "h\\u00e9", "\\xb7"),
        (FIRST, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "x"}, 0, "", "3 "),
    ],
    ids=["full", "full with a file", "all closed", "closed with a file", "head", "ascii", "locale C"],
)
def test_a_run_whatever_becomes_of_its_streams(
    model: str, tmp_path: Path, line: str, env: dict[str, str], status: int, out: str, err: str
) -> None:
    got = shell(line.format(model=model, tmp=tmp_path), env)
    assert got[0] == status, got
    assert out in got[1]
    assert err in got[2]
    assert "Traceback" not in got[2]
    if status == 2:
        assert len(got[2].strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("$LAB run --help > /dev/full", "Standard output cannot be written"),
        ("$LAB studies > /dev/full", "Standard output cannot be written"),
        ("$LAB run --prompt a --json - >&-", "Standard output is closed"),
        ("$LAB run --prompt $'a\\xff'", "is not UTF-8 text"),
        ("$LAB run --prompt a --json $'/nowhere/\\xff'", "there is no folder"),
        ("cd $(mktemp -d) && rmdir $PWD && PYTHONPATH=" + str(ROOT) + " $LAB models", "is gone"),
    ],
)
def test_streams_and_words_that_cannot_work(line: str, says: str) -> None:
    status, _, err = shell(line)
    one_sentence(status, err, says)


def test_ctrl_c_is_quiet_whenever_it_comes(model: str) -> None:
    for after in (0.4, 1.2):
        command = [sys.executable, "-m", "llmlab", "run", "--model", model, "--prompt", "a", "--max-new-tokens", "400"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT) as run:
            time.sleep(after)
            run.send_signal(signal.SIGINT)
            said = run.communicate(timeout=60)[1]
        assert b"Traceback" not in said
        assert run.returncode in (130, -signal.SIGINT, 0)


def test_ctrl_c_that_a_library_turned_into_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def act() -> None:
        raise ImportError("cannot import name")

    with pytest.raises(ImportError):
        output.carried_out(act)
    monkeypatch.setattr(interruption, "interrupted", lambda: True)
    assert output.carried_out(act) == 130


# Where results go -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--json", "--trace"])
@pytest.mark.parametrize("where", ["{tmp}/none/a.json", "{tmp}", "/dev/full", "{tmp}/file/a.json", "{tmp}/a\0b"])
def test_a_place_is_looked_at_before_the_run(
    option: str, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the model is looked for: there is none of that name."""
    (tmp_path / "file").write_text("")
    assert main(["run", "--model", "nobody/knows", "--prompt", "a", option, where.format(tmp=tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--json", ""], "The name given to --json is empty."),
        (["--trace", ""], "The name given to --trace is empty."),
        (["--trace", "-"], "Only --json goes to standard output; --trace needs a file."),
    ],
)
def test_what_names_no_file_is_refused_before_the_run(
    given: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--model", "nobody/knows", "--prompt", "a", *given]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_two_results_never_go_to_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = ["--json", str(tmp_path / "a"), "--trace", str(tmp_path / "." / "a")]
    assert main(["run", "--model", "nobody/knows", "--prompt", "a", *same]) == 2
    assert "name the same file" in capsys.readouterr().err


def test_a_result_is_written_whole_or_into_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "a.json"
    places.save(str(place), '{"text": "\udcff"}')
    assert json.loads(place.read_text(encoding="utf-8")) == {"text": "\udcff"}
    (tmp_path / "link").symlink_to(place)
    places.save(str(tmp_path / "link"), "{}")
    assert (place.read_text(), (tmp_path / "link").is_symlink()) == ("{}", True)
    (tmp_path / "kept").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "kept"))

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(places, "_write", full)
    with pytest.raises(Refused, match="The result is in"):
        places.save(str(place), '{"a": 1}')
    (rescued,) = (tmp_path / "kept").iterdir()
    assert (rescued.read_text(), place.read_text()) == ('{"a": 1}', "{}")


def test_a_result_for_which_there_is_no_room_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(places, "_write", full)
    monkeypatch.setattr(places, "_rescued", lambda *_: None)
    with pytest.raises(Refused, match="The result is on standard output"):
        places.save(str(tmp_path / "a.json"), '{"a": 1}')
    assert capsys.readouterr().out == '{"a": 1}'


def test_a_record_that_cannot_be_written_does_not_take_the_trace_with_it(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from llmlab.measure import trace

    whole = places._write

    def full(path: Path, data: bytes) -> None:
        if path.suffix == ".json":
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(path, data)

    monkeypatch.setattr(places, "_write", full)
    where = ["--json", str(tmp_path / "a.json"), "--trace", str(tmp_path / "a.jsonl")]
    assert main(["run", "--model", model, "--prompt", "a", "--max-new-tokens", "4", *where]) == 2
    assert "The result is in" in capsys.readouterr().err
    assert trace.load(tmp_path / "a.jsonl")


def test_a_file_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    place = tmp_path / "a.json"
    for mode in (0o600, 0o664):
        place.write_text("old")
        place.chmod(mode)
        places.save(str(place), "{}")
        assert (place.stat().st_mode & 0o777, place.read_text()) == (mode, "{}")


def test_a_folder_for_training_is_looked_at_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["train", "heads", "--model", "nobody/knows", "--folder", str(tmp_path / "file" / "x")]) == 2
    one_sentence(2, capsys.readouterr().err, "cannot be written")


def test_what_breaks_midway_leaves_what_was_there(tmp_path: Path) -> None:
    file, folder = tmp_path / "a", tmp_path / "b"
    file.write_text("old")
    folder.mkdir()
    (folder / "old").write_text("old")

    def broken_off(make: Callable[[Path], AbstractContextManager[Path]], place: Path) -> None:
        with make(place) as part:
            (part / "new" if part.is_dir() else part).write_text("half")
            raise KeyboardInterrupt

    for make, place in ((whole_file, file), (whole_folder, folder)):
        with pytest.raises(KeyboardInterrupt):
            broken_off(make, place)
    assert file.read_text() == "old"
    assert [p.name for p in folder.iterdir()] == ["old"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_trained_part_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "new" / "heads-a.safetensors"
    store.write(place, {"a": torch.ones(2)}, {"kind": "heads"})

    def broken(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "save_file", broken)
    with pytest.raises(OSError, match="No space"):
        store.write(place, {"a": torch.zeros(2)}, {"kind": "heads"})
    assert torch.equal(store.read(place)["a"], torch.ones(2))
    assert [p.name for p in place.parent.iterdir()] == [place.name]


# Prompts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"one\r\ntwo\xc3\xa9",
        codecs.BOM_UTF8 + "one\ntwoé".encode(),
        "one\r\ntwoé".encode("utf-16"),
        codecs.BOM_UTF16_BE + "one\rtwoé".encode("utf-16-be"),
        "one\ntwoé".encode("utf-32"),
    ],
)
def test_a_prompt_file_in_any_unicode(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "p").write_bytes(data)
    assert words.read_prompt(str(tmp_path / "p")) == "one\ntwoé"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (codecs.BOM_UTF8 + b" \n", "is empty"),
        (b"a\0b", "NUL"),
        ("ab".encode("utf-16-le"), "NUL"),
        (b"caf\xe9", "not UTF-8"),
        (codecs.BOM_UTF16_LE + b"a", "not UTF-8"),
        (None, "Is a directory"),
        (b"a" * (words.LARGEST + 1), "larger than"),
    ],
)
def test_a_prompt_file_that_cannot_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes | None, says: str
) -> None:
    place = tmp_path / "p"
    if data is None:
        place.mkdir()
    else:
        place.write_bytes(data)
    assert main(["run", "--model", "nobody/knows", "--prompt-file", str(place)]) == 2
    one_sentence(2, capsys.readouterr().err, says)


def test_bytes_that_the_locale_does_not_know_are_utf_8() -> None:
    assert words.as_text("a", "日本".encode().decode("ascii", "surrogateescape")) == "日本"
    assert words.as_text("a", "日本 🎈") == "日本 🎈"
    with pytest.raises(Refused, match="not UTF-8"):
        words.as_text("The prompt", "caf\udce9")


# Folders and variables ------------------------------------------------------------------------------------------


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for mine, xdg, want in (
        ("", "", tmp_path / ".cache" / "llmlab"),
        ("  ", " ", tmp_path / ".cache" / "llmlab"),
        (" /a/b ", "/x", Path("/a/b")),
        ("~/c", "", tmp_path / "c"),
        ("rel/c", "", tmp_path / "rel" / "c"),
        ("", " /x ", Path("/x/llmlab")),
        ("", "~/x", tmp_path / "x" / "llmlab"),
        ("", "rel", tmp_path / ".cache" / "llmlab"),
    ):
        monkeypatch.setenv("LLMLAB_CACHE", mine)
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
        assert environment.cache_folder() == want
    monkeypatch.setenv("LLMLAB_CACHE", "~nobody-of-this-name/c")
    with pytest.raises(Refused, match="LLMLAB_CACHE begins with a home folder"):
        environment.cache_folder()


def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("HOME", "USER", "LLMLAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(Path, "home", unknown)
    assert environment.cache_folder().is_relative_to(tempfile.gettempdir())
    surroundings._find_home()
    assert Path(os.environ["HOME"]).is_relative_to(tempfile.gettempdir())


@pytest.mark.parametrize(("value", "kept"), [("2", True), ("4,2", True), ("", False), ("0", False), ("x", False)])
def test_odd_numbers_of_threads_are_dropped(monkeypatch: pytest.MonkeyPatch, value: str, kept: bool) -> None:
    for odd in ("-1", "99999999", "1e3"):
        monkeypatch.setenv("OMP_NUM_THREADS", odd)
        surroundings._drop_odd_threads()
        assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    surroundings._drop_odd_threads()
    assert ("OMP_NUM_THREADS" in os.environ) == kept


@pytest.mark.parametrize("made", ["link", "file", "open"])
def test_a_temporary_home_that_somebody_else_could_have_made_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: str
) -> None:
    from llmlab.models.loading.environment import temporary_home

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    temporary_home.cache_clear()
    usual = temporary_home()
    assert usual.stat().st_mode & 0o777 == 0o700
    usual.rmdir()
    if made == "link":
        usual.symlink_to(tmp_path)
    elif made == "file":
        usual.write_text("")
    else:
        usual.mkdir()
        usual.chmod(0o777)
    temporary_home.cache_clear()
    other = temporary_home()
    temporary_home.cache_clear()
    assert other != usual
    assert other.stat().st_mode & 0o777 == 0o700

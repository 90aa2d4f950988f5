"""Ctrl-C and SIGTERM, sent to processes in each phase: one line, status 130 or 143, and nothing computed is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from llmlab.measure import trace
from llmlab.runtime.events import Committed, Finished
from tests import made

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX systems do it")

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}

HALT = """
import sys, time
def halt(seconds=60):
    print("HERE", file=sys.stderr, flush=True)
    time.sleep(seconds)
"""
"""What a patched phase does: say that it has come, and last long."""
LOADING = "import llmlab.lab.model_cache as m; m.build_decoder = lambda *a, **k: halt()"
QUALITY = "from llmlab.lab.experiment import Lab; Lab.quality = lambda *a, **k: halt()"
WRITING = """
from llmlab.cli import places
whole = places._write
def slow(path, data):
    halt(1)
    whole(path, data)
places._write = slow
"""
NOTHING = ""
START = "from llmlab.__main__ import main; from llmlab.cli.interruption import leave"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(made.folder(tmp_path_factory.mktemp("models") / "tiny"))


def started(arguments: list[str], patch: str = NOTHING) -> subprocess.Popen[str]:
    """The command line with a phase patched; without a patch it is started as its users start it."""
    code = f"{HALT}\n{patch}\n{START}\nleave(main({arguments!r}))"
    command = [sys.executable, "-c", code] if patch else [sys.executable, "-m", "llmlab", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "CI": ""}
    )


def read_until(stream: IO[str] | None, mark: str) -> None:
    assert stream is not None
    for line in stream:
        if mark in line:
            return
    raise AssertionError(f"the process ended before it said {mark}")


def ended(process: subprocess.Popen[str], number: signal.Signals, *others: str) -> str:
    """The one line of an interrupted process, after its other ones."""
    _, err = process.communicate(timeout=60)
    assert process.returncode == STATUS[number], err
    lines = [line for line in err.splitlines() if not any(o in line for o in others)]
    assert len(lines) == 1, err
    assert lines[0].startswith(f"Stopped by {NAMES[number]}.")
    return lines[0]


RUN = ["--prompt", "hello hello", "--max-new-tokens", "400", "--no-chat"]


@pytest.mark.parametrize("number", STATUS)
def test_while_importing(model: str, number: signal.Signals) -> None:
    for after in (0.15, 0.5, 1.0, 1.5, 2.0, 2.5):
        process = started(["bench", "--model", model, "--rounds", "500", "--cases", "decode"])
        time.sleep(after)
        process.send_signal(number)
        ended(process, number)


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("how", ["in a destructor", "by what is imported"])
def test_what_a_library_swallows_is_raised_once_more(
    model: str, number: signal.Signals, how: str, tmp_path: Path
) -> None:
    """Python cannot raise in a destructor, and a module may go on whatever fails in it."""
    (tmp_path / "careless.py").write_text("try:\n    halt()\nexcept BaseException:\n    pass\nhalt()\n")
    destructor = "class D:\n    def __del__(self): halt()\nD()\nhalt()"
    careless = f"import builtins; builtins.halt = halt; sys.path.insert(0, {str(tmp_path)!r}); import careless"
    what = destructor if how == "in a destructor" else careless
    patch = "import llmlab.lab.model_cache as m\ndef lost(*a, **k):\n"
    patch += "".join(f"    {line}\n" for line in what.split("\n")) + "m.build_decoder = lost"
    process = started(["run", "--model", model, *RUN], patch)
    read_until(process.stderr, "HERE")
    process.send_signal(number)
    ended(process, number, "HERE")


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("command", ["run", "compare", "study", "sweep", "train", "bench"])
def test_while_loading(model: str, command: str, number: signal.Signals, tmp_path: Path) -> None:
    rest = {"run": RUN, "compare": RUN, "study": ["sweep"], "train": ["heads"]}.get(command, [])
    weights = ["--weights", "dense-fp32"]
    process = started([command, *rest, "--model", model, *weights, "--json", str(tmp_path / "a.json")], LOADING)
    read_until(process.stderr, "HERE")
    process.send_signal(number)
    ended(process, number)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", STATUS)
def test_while_generating_what_there_is_is_written(model: str, tmp_path: Path, number: signal.Signals) -> None:
    record, events = tmp_path / "a.json", tmp_path / "a.jsonl"
    process = started(["run", "--model", model, *RUN, "--json", str(record), "--trace", str(events)])
    assert process.stdout is not None
    assert process.stdout.read(20)
    process.send_signal(number)
    line = ended(process, number)
    assert str(record) in line
    assert str(events) in line
    value, kept = json.loads(record.read_text()), trace.load(events)
    assert value["stopped"] is True
    assert 0 < value["metrics"]["new_tokens"] < 400
    assert sum(len(e.tokens) for e in kept if isinstance(e, Committed)) == value["metrics"]["new_tokens"]
    assert isinstance(kept[-1], Finished)
    assert kept[-1].reason == "stopped"


def test_while_measuring_quality_both_runs_are_written(model: str, tmp_path: Path) -> None:
    record = tmp_path / "a.json"
    what = ["--prompt", "hello", "--max-new-tokens", "8", "--no-chat", "--technique", "magnitude"]
    process = started(["compare", "--model", model, *what, "--json", str(record)], QUALITY)
    read_until(process.stderr, "HERE")
    process.send_signal(signal.SIGINT)
    ended(process, signal.SIGINT)
    value = json.loads(record.read_text())
    assert value["stopped"] is True
    assert value["metrics"]["new_tokens"] == value["baseline"]["metrics"]["new_tokens"] == 8


def test_while_writing_the_result_is_written_whole(model: str, tmp_path: Path) -> None:
    record, events = tmp_path / "a.json", tmp_path / "a.jsonl"
    what = ["--prompt", "hello", "--max-new-tokens", "8", "--json", str(record), "--trace", str(events)]
    process = started(["run", "--model", model, *what], WRITING)
    read_until(process.stderr, "HERE")
    process.send_signal(signal.SIGTERM)
    ended(process, signal.SIGTERM, "HERE")
    assert json.loads(record.read_text())["metrics"]["new_tokens"] == 8
    assert isinstance(trace.load(events)[-1], Finished)


def test_a_second_one_ends_at_once(model: str, tmp_path: Path) -> None:
    record = tmp_path / "a.json"
    process = started(["run", "--model", model, *RUN, "--json", str(record)], WRITING.replace("halt(1)", "halt(60)"))
    assert process.stdout is not None
    assert process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    read_until(process.stderr, "HERE")
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.monotonic() - begun < 10


def test_a_sweep_keeps_the_rows_so_far(model: str, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    patch = """
from llmlab.studies.sweep import Sweep
row = Sweep._measured
def slow(self, subject, bases, name, turned, value, *rest):
    return halt() if value == 4 else row(self, subject, bases, name, turned, value, *rest)
Sweep._measured = slow
"""
    what = ["--technique", "prompt-lookup", "--values", "1,4", "--kind", "chat", "--tokens", "8"]
    process = started(["sweep", *what, "--model", model, "--json", str(out)], patch)
    read_until(process.stderr, "HERE")
    process.send_signal(signal.SIGTERM)
    assert str(out) in ended(process, signal.SIGTERM)
    value = json.loads(out.read_text())
    assert value["stopped"] is True
    assert [r["value"] for r in value["rows"]] == [None, 1]
    assert value["claims"] == []


def test_a_training_keeps_its_texts_and_its_checkpoint(model: str, tmp_path: Path) -> None:
    """Interrupted while it writes texts and again in the training, and then it goes on from there."""
    what = ["train", "heads", "--model", model, "--weights", "dense-fp32", "--tokens", "1000", "--batch", "64"]
    what += ["--folder", str(tmp_path / "texts"), "--out", str(tmp_path / "heads.safetensors")]
    writing = "from llmlab.training import corpus as c\nold = c.generate_batch\n"
    writing += (
        "def slow(*a, **k):\n    for t in old(*a, **k):\n        yield t\n        halt()\nc.generate_batch = slow"
    )
    process = started(what, writing)
    read_until(process.stderr, "HERE")
    process.send_signal(signal.SIGINT)
    ended(process, signal.SIGINT)
    assert len(list((tmp_path / "texts").glob("text-*"))) == 1
    training = "from llmlab.training import parts as p\nold = p.learning_rate\n"
    training += "def slow(plan, step, done):\n    if step == 5: halt()\n"
    training += "    return old(plan, step, done)\np.learning_rate = slow"
    process = started([*what, "--steps", "8"], training)
    read_until(process.stderr, "HERE")
    process.send_signal(signal.SIGTERM)
    ended(process, signal.SIGTERM)
    import torch

    assert torch.load(tmp_path / "texts" / "heads.pt", weights_only=True)["step"] == 5
    assert not (tmp_path / "heads.safetensors").exists()


def test_what_is_being_kept_is_not_broken_off_by_an_interruption_that_was_not_lost(model: str, tmp_path: Path) -> None:
    """It came in an import, where it could have been lost, and writing the checkpoint takes longer than that wait."""
    (tmp_path / "slow.py").write_text("halt()\n")
    patch = f"import builtins; builtins.halt = halt; sys.path.insert(0, {str(tmp_path)!r})\n"
    patch += "from llmlab.training import parts as p\nold, save = p.learning_rate, p.Checkpoint.save\n"
    patch += "def late(plan, step, done):\n    if step == 5:\n        import slow\n    return old(plan, step, done)\n"
    patch += "def slowly(*a, **k):\n    time.sleep(0.7)\n    return save(*a, **k)\n"
    patch += "p.learning_rate, p.Checkpoint.save = late, slowly"
    what = ["train", "heads", "--model", model, "--weights", "dense-fp32", "--tokens", "1000", "--batch", "64"]
    what += ["--folder", str(tmp_path / "texts"), "--out", str(tmp_path / "heads.safetensors"), "--steps", "8"]
    process = started(what, patch)
    read_until(process.stderr, "HERE")
    process.send_signal(signal.SIGINT)
    ended(process, signal.SIGINT)
    import torch

    assert torch.load(tmp_path / "texts" / "heads.pt", weights_only=True)["step"] == 5


def test_a_bench_keeps_the_cases_that_are_through(model: str, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    what = ["bench", "--model", model, "--rounds", "1", "--cases", "decode,batch-4", "--json", str(out)]
    patch = "from llmlab.measure import benchmark as b\nold = b.measure\n"
    patch += "b.measure = lambda case, *a: halt() if case.verb == 'batch' else old(case, *a)"
    process = started(what, patch)
    read_until(process.stderr, "HERE")
    process.send_signal(signal.SIGINT)
    assert str(out) in ended(process, signal.SIGINT)
    value = json.loads(out.read_text())
    assert value["stopped"] is True
    assert list(value["cases"]) == ["decode"]


def test_a_reader_that_goes_away_leaves_no_trace_of_python(model: str) -> None:
    for command in (["run", "--model", model, *RUN], ["techniques"], ["studies", "--json"], ["models"]):
        process = started(command)
        assert process.stdout is not None
        assert process.stdout.read(5)
        process.stdout.close()
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(60) == 0
        assert "Traceback" not in said
        assert "Exception ignored" not in said

"""The command line's contract: its JSON, its exit status, and one sentence for whatever cannot work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmlab.__main__ import COMMANDS, main
from llmlab.lab.settings import Settings
from llmlab.lab.study import studies
from llmlab.measure import trace
from llmlab.runtime.technique import registry
from tests import made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(made.folder(tmp_path_factory.mktemp("models") / "tiny"))


METRICS = [
    "prompt_tokens",
    "new_tokens",
    "passes",
    "tokens_per_pass",
    "drafted",
    "accepted",
    "acceptance_rate",
    "prefill_seconds",
    "ttft_seconds",
    "decode_seconds",
    "decode_tokens_per_second",
    "seconds_per_pass_median",
    "weight_bytes",
    "kv_bytes_peak",
    "kv_rows_peak",
    "layers_run_mean",
]


def test_run_writes_the_record(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, log = tmp_path / "run.json", tmp_path / "run.jsonl"
    places = ["--json", str(out), "--trace", str(log)]
    assert main(["run", "--model", model, "--prompt", "hello", "--max-new-tokens", "8", *places]) == 0
    value = json.loads(out.read_text())
    assert set(value) >= {"schema", "model", "stack", "settings", "device", "text", "token_ids", "metrics", "quality"}
    assert value["schema"] == "llmlab.run/1"
    assert set(METRICS) <= set(value["metrics"])
    assert len(value["token_ids"]) == value["metrics"]["new_tokens"] == 8
    assert capsys.readouterr().out.strip(), "the text goes to standard output"
    assert trace.load(log)


def test_json_on_standard_output_stands_alone(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--model", model, "--prompt", "hello", "--max-new-tokens", "4", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["new_tokens"] == 4


def test_compare_measures_quality(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--prompt",
        "abc abc abc abc",
        "--max-new-tokens",
        "24",
        "--technique",
        "prompt-lookup:length=3,ngram=1",
    ]
    assert main(["compare", "--model", model, *arguments, "--json", "-"]) == 0
    value = json.loads(capsys.readouterr().out)
    quality = value["quality"]
    assert {"identical", "first_difference", "margin", "kl_mean", "top1_agreement", "perplexity_ratio"} <= set(quality)
    assert quality["identical"] is True
    assert quality["kl_mean"] == pytest.approx(0, abs=1e-6)
    assert quality["perplexity_ratio"] == pytest.approx(1, abs=1e-4)
    assert value["baseline"]["token_ids"] == value["token_ids"]
    assert value["stack"][0]["knobs"]["length"] == 3


def test_compare_runs_pairs_and_tells_spread_errors_and_verdict(
    model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["--prompt", "abc abc abc abc", "--max-new-tokens", "16", "--technique", "magnitude:ratio=0.7"]
    assert main(["compare", "--model", model, *arguments, "--json", str(tmp_path / "a.json")]) == 0
    value, told = json.loads((tmp_path / "a.json").read_text()), capsys.readouterr().err
    pairs = value["pairs"]
    assert len(pairs["baseline"]) == len(pairs["stack"]) >= 3
    assert pairs["low"] <= pairs["ratio"] <= pairs["high"]
    assert f"{pairs['low']:.2f} to {pairs['high']:.2f} in {len(pairs['stack'])} pairs" in told
    quality = value["quality"]
    assert f"× {quality['perplexity_ratio']:.3f} ± {quality['perplexity_ratio_error']:.3f}" in told
    assert f"{quality['scored_tokens']} tokens of prose and code" in told
    assert value["verdict"]["verdict"] in ("worse", "trade")
    assert f"verdict: {value['verdict']['verdict']} (" in told


def test_compare_measures_quality_on_one_s_own_text(
    model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own, short = tmp_path / "own.txt", tmp_path / "short.txt"
    own.write_text("The quick brown fox jumps over the lazy dog. " * 8)
    short.write_text("fox")
    arguments = ["--prompt", "abc abc", "--max-new-tokens", "8", "--technique", "magnitude:ratio=0.7"]
    assert main(["compare", "--model", model, *arguments, "--quality-text", str(own), "--json", "-"]) == 0
    assert set(json.loads(capsys.readouterr().out)["quality"]["kinds"]) == {"own"}
    assert main(["compare", "--model", model, *arguments, "--quality-text", str(short)]) == 2
    shown = capsys.readouterr()
    assert "Give a longer one" in shown.err
    assert shown.out == "", "it is refused before anything is generated"


def test_a_lossy_stack_costs_something(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--prompt", "abc abc abc abc", "--max-new-tokens", "16", "--technique", "magnitude:ratio=0.7"]
    assert main(["compare", "--model", model, *arguments, "--json", "-"]) == 0
    quality = json.loads(capsys.readouterr().out)["quality"]
    assert quality["kl_mean"] > 0.01
    assert quality["top1_agreement"] < 1


def test_replay_gives_the_figures_of_the_run(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    arguments = ["--prompt", "hello", "--max-new-tokens", "6", "--technique", "prompt-lookup", "--trace", str(log)]
    assert main(["compare", "--model", model, *arguments, "--json", "-"]) == 0
    ran = json.loads(capsys.readouterr().out)
    assert main(["replay", str(log), "--json", "-"]) == 0
    replayed = json.loads(capsys.readouterr().out)
    assert replayed["stack"]["metrics"] == ran["metrics"]
    assert replayed["stack"]["token_ids"] == ran["token_ids"]
    assert replayed["baseline"]["metrics"] == ran["baseline"]["metrics"]
    assert replayed["stack"]["quality"] == ran["quality"]


def test_techniques_lists_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["techniques", "--json"]) == 0
    rows = {r["id"]: r for r in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(registry())
    for row in rows.values():
        assert {"id", "role", "door", "title", "claim", "knobs", "exact", "speed", "covers"} <= set(row)
        assert row["role"] == row["door"] == registry()[row["id"]].role
        assert row["main_knob"] in {k["name"] for k in row["knobs"]}
    assert main(["techniques"]) == 0
    assert "prompt-lookup" in capsys.readouterr().out


def test_studies_lists_the_studies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["studies", "--json"]) == 0
    rows = {r["id"]: r for r in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(studies())
    for row in rows.values():
        assert {"id", "role", "bench", "title", "claim", "knobs", "exact", "speed", "covers"} <= set(row)
    assert main(["studies"]) == 0
    shown = capsys.readouterr().out
    assert "each = 1  1…5" in shown


def test_a_study_prints_its_table_and_its_word_on_each_claim(
    model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "study.json"
    study = "sweep:technique=prompt-lookup,kind=chat,tokens=8,values=1/4"
    assert main(["study", study, "--model", model, "--json", str(out)]) == 0
    value = json.loads(out.read_text())
    assert value["schema"] == "llmlab.study/1"
    assert value["settings"]["tokens"] == 8
    assert [r["value"] for r in value["rows"]] == [None, 1, 4]
    shown = capsys.readouterr().out
    assert "Plain decoding" in shown
    assert "confirmed: 2 of 2 lossless settings wrote every text as the baseline did" in shown
    assert "not testable here: " in shown


def test_sweep_is_short_for_its_study(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    what = ["--technique", "h2o", "--knob", "budget", "--values", "16,64", "--kind", "chat", "--tokens", "8"]
    assert main(["sweep", *what, "--model", model, "--json", "-"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["study"] == "sweep"
    assert [(r["knob"], r["value"]) for r in value["rows"][1:]] == [("budget", 16), ("budget", 64)]
    assert all(0 <= r["top1"] <= 1 for r in value["rows"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["study", "sweap"], "Did you mean sweep"),
        (["study", "sweep:tokens=9999"], "whole number from 8 to 64"),
        (["study", "sweep:tokns=9"], "Did you mean tokens"),
        (["study", "sweep:tokens"], "has no value"),
        (["study", "sweep", "--weights", "int3"], "Choose dense-fp32"),
        (["study", "sweep", "--seed", "-1"], "Give 0 to"),
        (["sweep", "--technique", "h3o"], "Choose one of"),
        (["sweep", "--technique", "h2o", "--knob", "bugdet"], "has no knob called 'bugdet'"),
        (["sweep", "--technique", "h2o", "--values", "-1"], "whole number from 4"),
    ],
)
def test_a_study_that_cannot_work(
    model: str, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main([*arguments, "--model", model]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.strip().splitlines()) == 1
    assert says in shown.err


def test_models_says_what_is_here_and_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    rows = {r["id"]: r for r in json.loads(capsys.readouterr().out)}
    assert isinstance(rows["smollm2-135m"]["downloaded"], bool)
    assert set(rows["gpt2"]["fits"]) < set(rows["smollm2-135m"]["fits"])
    assert main(["models"]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompt", "  "], "The prompt is empty"),
        (["--prompt", "x" * 600], r"The prompt has \d+ tokens .* reads at most 512"),
        (["--prompt", "x" * 490, "--no-chat", "--max-new-tokens", "100"], "leaves room for 22 new tokens"),
        (["--prompt", "hi", "--prompt-file", "f"], "gives both"),
        (["--prompt-file", "/nowhere/at/all"], "cannot be read"),
        (["--prompt", "hi", "--technique", "promt-lookup"], "Did you mean prompt-lookup"),
        (["--prompt", "hi", "--technique", "prompt-lookup:lenght=3"], "Did you mean length"),
        (["--prompt", "hi", "--technique", "prompt-lookup:length=9999"], "whole number from 1 to"),
        (["--prompt", "hi", "--technique", "prompt-lookup:length=many"], "whole number from 1 to"),
        (["--prompt", "hi", "--technique", "prompt-lookup:length"], "has no value"),
        (["--prompt", "hi", "--technique", "prompt-lookup", "--technique", "early-exit"], "Switch one of them off"),
        (["--prompt", "hi", "--technique", "prompt-lookup", "--technique", "draft-model"], "Switch one of them off"),
        (["--prompt", "hi", "--max-new-tokens", "0"], "Give 1 to"),
        (["--prompt", "hi", "--max-new-tokens", "a lot"], "Give 1 to"),
        (["--prompt", "hi", "--temperature", "nan"], "Give 0.0 to"),
        (["--prompt", "hi", "--seed", "-1"], "Give 0 to"),
        (["--prompt", "hi", "--weights", "int3"], "Choose dense-fp32"),
        (["--prompt", "hi", "--device", "tpu"], "Choose auto, cpu or cuda"),
        (["--prompt", "hi", "--device", "cuda"], "not available on this machine"),
    ],
)
def test_input_that_cannot_work(
    model: str, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["run", "--model", model, *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.strip().splitlines()) == 1
    import re

    assert re.search(says, shown.err), shown.err


def test_an_unknown_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--model", "smolm2-135m", "--prompt", "hi"]) == 2
    assert "Did you mean smollm2-135m" in capsys.readouterr().err


def test_a_model_without_a_chat_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(made.folder(tmp_path / "plain", "gpt2", chat=False))
    assert main(["run", "--model", folder, "--prompt", "hi", "--max-new-tokens", "2"]) == 0
    assert main(["run", "--model", folder, "--prompt", "hi", "--chat"]) == 2
    assert "has no chat template" in capsys.readouterr().err
    assert main(["run", "--model", folder, "--prompt", "hi", "--technique", "layer-drop"]) == 2
    assert "Choose another model" in capsys.readouterr().err


def test_a_place_that_cannot_be_written(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["run", "--model", model, "--prompt", "hi", "--max-new-tokens", "2", "--json", "/nowhere/run.json"]) == 2
    )
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no run"),
        ("hello", "damaged at line 1"),
        ('{"a": 1}', "is not a trace"),
        ('{"schema": "llmlab.trace/1"}\n{"event": "Started", "t": 0}', "incomplete Started"),
        ('{"schema": "llmlab.trace/1"}\n{"event": "Exploded", "t": 0}', "not an event"),
        ('{"schema": "llmlab.trace/1"}\n[1, 2', "damaged at line 2"),
    ],
)
def test_a_broken_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str) -> None:
    (tmp_path / "t.jsonl").write_text(text)
    assert main(["replay", str(tmp_path / "t.jsonl")]) == 2
    assert says in capsys.readouterr().err


def test_bench_compares_with_transformers(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--model", model, "--rounds", "2", "--cases", "decode,verify-4,batch-4", "--json", "-"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["schema"] == "llmlab.bench/1"
    assert {"processor", "cores", "threads"} <= set(value["machine"])
    for name in ("decode", "verify-4", "batch-4"):
        row = value["cases"][name]
        assert set(row["ratios"]) >= {"transformers float32", "transformers bfloat16"}
        assert row["rounds"] == 2
        for peer, ratio in row["ratios"].items():
            low, high = row["spread"][peer]
            assert 0 < low <= ratio <= high
            assert row["median_ms"][peer] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--threads", "4096"], "threads"),
        (["run", "--verify", "maybe"], "bitwise or fast"),
        (["run", "--copies", "two"], "auto or none"),
        (["bench", "--cases", "nonsense"], "No case is called 'nonsense'"),
        (["bench", "--rounds", "0"], "rounds"),
        (["bench", "--weights", "int3"], "int3"),
    ],
)
def test_the_engine_s_settings_are_checked(
    model: str, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ["--prompt", "hello"] if arguments[0] == "run" else []
    assert main([*arguments, "--model", model, *rest]) == 2
    told = capsys.readouterr().err.strip()
    assert says in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rnu"], "No command is called 'rnu'; the name was not found. Did you mean run."),
        (["fly"], "Choose one of run, compare, techniques"),
        (["run", "--promt", "hi"], "No option is called '--promt'; the name was not found. Did you mean --prompt."),
        (["run", "--promt=hi"], "Did you mean --prompt."),
        (["run", "hi"], "has no place for 'hi'. See python -m llmlab run --help."),
        (["run", "--prompt"], "expected one argument"),
        (["study"], "the following arguments are required: NAME"),
        ([], "the following arguments are required: command"),
        (["train", "eagel"], "No part is called 'eagel'; the name was not found. Did you mean eagle."),
    ],
)
def test_a_command_that_is_not_understood(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.strip().splitlines()) == 1
    assert says in shown.err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main([name, "--help"])
    assert e.value.code == 0
    assert f"python -m llmlab {name}" in capsys.readouterr().out


def test_every_setting_is_an_option_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = capsys.readouterr().out
    for k in Settings.knobs():
        assert f"{k.option} " in shown or f"{k.option}," in shown


HEAVY = {"torch", "gradio", "transformers", "plotly", "numba", "llmlab.ui"}


@pytest.mark.parametrize(
    ("arguments", "may"),
    [(["--help"], set()), (["run", "--help"], set()), (["rnu"], set()), (["techniques"], {"torch"})],
    ids=lambda v: " ".join(v),
)
def test_a_command_imports_only_what_it_needs(arguments: list[str], may: set[str]) -> None:
    """The techniques' own files need PyTorch; the rest is for commands that compute or draw."""
    program = f"""
import sys
from llmlab.__main__ import main
try:
    main({arguments!r})
except SystemExit:
    pass
print(*sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(ran.stderr.splitlines()[-1].split()) <= may


def test_running_out_of_memory_is_one_sentence(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmlab.lab.experiment import Lab

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(Lab, "run", full)
    assert main(["run", "--model", model, "--prompt", "hello"]) == 2
    assert capsys.readouterr().err.strip().startswith("The run ran out of memory.")


@pytest.mark.parametrize("verify", ["bitwise", "fast"])
def test_a_run_says_which_way_it_took(model: str, verify: str, tmp_path: Path) -> None:
    from llmlab.ui.run_summary import run_summary

    log = tmp_path / "run.jsonl"
    rest = ["--max-new-tokens", "4", "--weights", "int4", "--verify", verify, "--trace", str(log)]
    assert main(["run", "--model", model, "--prompt", "hello", *rest]) == 0
    told = run_summary(trace.load(log), "en")
    assert ("to the bit, what a pass of its own" in told) == (verify == "bitwise")
    assert ("shared their products" in told) == (verify == "fast")
    assert "kept a second time" in told


def test_streaming_llm_goes_past_the_context_and_an_ab_says_that_its_baseline_cannot(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny model reads 512 tokens, fewer than the prompt has."""
    given = ["--model", model, "--prompt", "abc " * 200, "--max-new-tokens", "20", "--json", "-"]
    window = ["--technique", "streaming-llm:budget=32"]
    assert main(["run", *given, *window]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["prompt_tokens"] > 512
    assert metrics["kv_rows_peak"] < 50
    assert main(["run", *given]) == 2
    assert "StreamingLLM" in capsys.readouterr().err
    assert main(["compare", *given, *window]) == 2
    assert "The baseline of an A/B has" in capsys.readouterr().err

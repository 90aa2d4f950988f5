"""What the README says is so: its example runs, its commands are those of CI, its figures those of the traces."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import yaml

from llmlab.measure import trace, verdict
from llmlab.runtime.configurable import LABELS, card
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make
from llmlab.ui.playground.samples import RUNS, examples, recordings
from tests import tiny
from tests.laws import laws

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_example_technique_works_as_it_stands() -> None:
    (code,) = blocks("python")
    name = "llmlab.techniques.kv_eviction.recent_only"
    module = sys.modules[name] = ModuleType(name)
    try:
        exec(compile(code, "README.md", "exec"), module.__dict__)
        policy = module.RecentOnly(budget=16)
        assert set(card(type(policy))) == set(LABELS)
        model, prompt = tiny.decoder(), tiny.prompts(1, 40)[0]
        events = laws.run(model, prompt, 40, Stack([policy]))
        assert trace.ledger(events)["evicted_rows"] > 0
        both = laws.run(model, prompt, 40, Stack([policy, make("prompt-lookup")]))
        assert laws.committed_tokens(both) == laws.committed_tokens(events)
        idle = laws.run(model, prompt, 40, Stack([module.RecentOnly(**policy.noop_settings)]))
        plain = laws.run(model, prompt, 40, Stack())
        assert laws.committed_tokens(idle) == laws.committed_tokens(plain)
        biting = laws.run(model, prompt, 40, Stack([module.RecentOnly(**policy.biting_settings)]))
        assert laws.committed_tokens(biting) != laws.committed_tokens(plain)
        assert policy.main_knob in {k.name for k in policy.knobs()}
        assert policy.claim
        assert policy.claim_zh
    finally:
        del sys.modules[name]


def test_ci_calls_the_readme_s_test_command() -> None:
    commands = [line for b in blocks("bash") for line in b.splitlines() if "venv" in line]
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_front_matter_is_a_space_s() -> None:
    values = yaml.safe_load(README.split("---")[1])
    assert values["sdk"] == "gradio"
    assert (ROOT / values["app_file"]).exists()
    floor = re.search(r"gradio>=([\d.]+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"))
    assert floor
    assert str(values["sdk_version"]).startswith(floor.group(1))
    assert len(values["short_description"]) <= 60


def named_in_the_tree() -> list[str]:
    """The paths below llmlab/ in the README's tree, where a line indented by two begins a folder or is a file."""
    tree = README.split("## Architecture")[1].split("```")[1].split("llmlab/\n")[1]
    paths, folder = [], ""
    for line in tree.splitlines():
        if entry := re.match(r"  (\S+)", line):
            folder = entry[1] if entry[1].endswith("/") else ""
        elif line[:1] != " ":  # a folder beside llmlab/
            break
        found = re.findall(r"\w+\.(?:py|js|css|json)\b", line)
        paths += [folder + name for name in (found if folder else [entry[1] if entry else ""])]
    return paths


def test_the_readme_s_tree_is_the_tree() -> None:
    """Every file is named under its folder, once, and nothing is named that is not there.

    Adding a technique or a study is adding one file, so that those need not be named; their folders must.
    """
    kinds = (".py", ".js", ".css", ".json")
    files = [p for p in (ROOT / "llmlab").glob("**/*") if p.suffix in kinds and p.name != "__init__.py"]
    there = {p.relative_to(ROOT / "llmlab").as_posix() for p in files}
    named = named_in_the_tree()
    assert {path for path in named if named.count(path) > 1} == set()
    assert set(named) - there == set(), "named in the README's tree, but not there"
    one_file_is_enough = {p for p in there if p.startswith("techniques/") or re.fullmatch(r"studies/\w+\.py", p)}
    assert there - set(named) - one_file_is_enough == set(), "missing in the README's tree"
    folders = {p.rsplit("/", 1)[0] for p in there if "/" in p}
    assert folders - {p.rsplit("/", 1)[0] for p in named} == set(), "folders missing in the README's tree"


def test_a_token_is_followed_through_files_that_do_what_is_said() -> None:
    """At most twelve, and each holds the names that its line gives."""
    section = README.split("### Following a token")[1].split("\n## ")[0]
    steps = re.findall(r"^\d+\. `(\S+)`:(.*?)(?=^\d+\. |\Z)", section, re.DOTALL | re.MULTILINE)
    assert 10 <= len(steps) <= 12
    for path, story in steps:
        source = (ROOT / "llmlab" / path).read_text(encoding="utf-8")
        for name in re.findall(r"\w+", " ".join(re.findall(r"`(.+?)`", story))):
            assert name in source, f"{path} has no {name}"


def test_the_recorded_figures_are_those_of_the_recorded_runs() -> None:
    rows = [line for line in README.splitlines() if line.startswith("|") and "×, " in line]
    assert len(rows) >= len(recordings())
    for item, row in zip(recordings(), rows, strict=False):
        events = trace.load(RUNS / item["file"])
        plain, stack = (trace.ledger(trace.lanes(events)[lane]) for lane in ("baseline", "stack"))
        pairs, judged = verdict.pairs_of(events), verdict.verdict_of(events)
        assert pairs is not None
        assert judged is not None
        a, b = plain["decode_tokens_per_second"], stack["decode_tokens_per_second"]
        told = f"{a:.1f} → {b:.1f} ({pairs.ratio:.2f}×, {pairs.spread[0]:.2f}–{pairs.spread[1]:.2f})"
        assert f"| {told} | {stack['tokens_per_pass']:.2f} |" in row, f"{item['id']}: {told}"
        assert f"| {judged.verdict}: " in row, f"{item['id']}: {judged.verdict}"
        if "memory" in row:
            sizes = [round(m["memory_bytes_peak"] / 1e6) for m in (plain, stack)]
            assert f"memory {sizes[0]} → {sizes[1]} MB" in row, f"{item['id']}: {sizes}"


def test_recorded_runs_are_of_the_examples_and_as_asked() -> None:
    prompts = {e["id"]: e["prompt"] for e in examples()}
    assert len(recordings()) >= 3
    for item in recordings():
        events = trace.load(RUNS / item["file"])
        asked = [v for k, v in zip(item["arguments"], item["arguments"][1:], strict=False) if k == "--technique"]
        started = [e for e in events if hasattr(e, "stack")]
        assert started[-1].settings["prompt"] == prompts[item["example"]]
        assert Stack.from_json(started[-1].stack) == Stack.from_arguments(asked)


MACHINE = re.compile(r"(?<![\w.:/-])/(?:home|root|work|tmp|mnt|opt|Users)/")
OUTSIDE = re.compile(r"(?<!/)\.\./(?!\.\./)[\w.]")
HOST = re.compile(r"\b((?:[a-z0-9-]+\.)+(?:org|com|net|io))\b", re.IGNORECASE)
KNOWN = {"arxiv.org", "github.com", "www.w3.org"}
"""Hosts that the project may name: where the papers and a format's source are, and the name of SVG itself."""


def test_the_project_speaks_of_itself_alone() -> None:
    """No path of somebody's machine, nothing beside the checkout, no host but those that the page may link to."""
    for path in ROOT.glob("**/*"):
        parts = path.relative_to(ROOT).parts
        hidden = parts[0].startswith(".") and parts[0] != ".ci"
        if hidden or not path.is_file() or "__pycache__" in parts or path == Path(__file__):
            continue
        if path.suffix in (".py", ".md", ".json", ".jsonl", ".txt", ".js", ".css", ".toml", ""):
            text = path.read_text(encoding="utf-8")
            assert not MACHINE.search(text), path
            assert not OUTSIDE.search(text), path
            assert path.name == "LICENSE" or set(HOST.findall(text)) <= KNOWN, path

"""Three ways to repeat a run: its link, its command line and its script give the same settings and the same text."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.__main__ import main, parse
from llmlab.cli.options import run_of
from llmlab.lab.experiment import Lab
from llmlab.lab.settings import Settings
from llmlab.runtime.stack import Stack
from llmlab.ui import links
from tests import made

STACKS = ([], ["prompt-lookup"], ["prompt-lookup:length=3", "h2o:budget=64,recent=0.25", "wanda:pattern=2:4"])
BASE = Settings(prompt="base", stack=Stack.from_arguments(["h2o"]))


@given(
    prompt=st.text(st.characters(codec="utf-8"), min_size=1, max_size=200).filter(str.strip),
    chat=st.sampled_from([None, True, False]),
    tokens=st.integers(1, 4096),
    temperature=st.floats(0, 5),
    seed=st.integers(0, 2**31 - 1),
    stack=st.sampled_from(STACKS),
    weights=st.sampled_from(["dense-fp32", "int4"]),
)
def test_link_and_command_line_restore_the_settings(
    prompt: str, chat: Any, tokens: int, temperature: float, seed: int, stack: list[str], weights: str
) -> None:
    settings = Settings(
        prompt=prompt,
        chat=chat,
        max_new_tokens=tokens,
        temperature=temperature,
        seed=seed,
        weights=weights,
        stack=Stack.from_arguments(stack),
    )
    parameters = dict(parse_qsl(links.to_query(settings)[1:], keep_blank_values=True))
    assert links.from_query(parameters, BASE) == settings
    if "\0" not in prompt:
        words = shlex.split(links.command_line(settings))
        assert words[:3] == ["python", "-m", "llmlab"]
        assert run_of(parse(words[3:])) == settings


def test_a_prompt_too_long_for_a_link_is_left_out() -> None:
    assert len(links.to_query(Settings(prompt="x" * 50_000))) < 100


def test_the_script_and_the_command_line_write_the_same_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(made.folder(tmp_path / "tiny"))
    settings = Settings(
        model, 'say "hello"\nto $HOME', max_new_tokens=12, stack=Stack.from_arguments(["prompt-lookup:length=2"])
    )
    lab = Lab()
    prepared = lab.prepare(settings)
    text = lab.record(prepared, list(lab.run(prepared)))["text"]
    exec(compile(links.python(settings), "script.py", "exec"), {})
    assert capsys.readouterr().out.startswith(text)
    assert main(shlex.split(links.command_line(settings))[3:]) == 0
    assert capsys.readouterr().out.rstrip("\n") == text.rstrip("\n")

"""Three ways to repeat a run: its link, its command line and its script give the same settings and the same text."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmlab.__main__ import main, parse
from llmlab.cli.options import run_of, settings_of
from llmlab.errors import Faults, Refused
from llmlab.lab.experiment import Lab
from llmlab.lab.settings import Settings
from llmlab.lab.study import make_study
from llmlab.runtime.stack import Stack, parsed
from llmlab.runtime.technique import make
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


ODD = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40).filter(str.strip)


@given(model=ODD, partner=ODD)
@example(model="-m", partner="a,b")
@example(model="a b", partner='"')
@example(model="C:\\models\\x", partner=' x=1,y:"2", ')
def test_odd_names_come_back_from_link_and_command_line(model: str, partner: str) -> None:
    stack = Stack([make("draft-model", model=partner)])
    assert Stack.from_arguments(stack.arguments()) == stack
    settings = Settings(model=model, prompt="a", stack=stack)
    assert links.from_query(dict(parse_qsl(links.to_query(settings)[1:], keep_blank_values=True)), BASE) == settings
    assert run_of(parse(shlex.split(links.command_line(settings))[3:])) == settings


@given(values=ODD, model=ODD)
@example(values="1,4", model="--seed")
def test_a_study_s_odd_knobs_come_back_from_its_command_line(values: str, model: str) -> None:
    study, settings = make_study("sweep", values=values), Settings(model=model)
    a = parse(shlex.split(links.study_command(study, settings))[3:])
    name, knobs = parsed(a.study)
    assert make_study(name, **knobs) == study
    assert settings_of(a) == settings
    again, same = links.study_from_query(
        dict(parse_qsl(links.study_query(study, settings)[1:], keep_blank_values=True))
    )
    assert (again, same) == (study, settings)


@pytest.mark.parametrize(
    ("text", "knobs"),
    [
        ("n", {}),
        ("n:a=1,b=x:y=z", {"a": "1", "b": "x:y=z"}),
        ('n:a="1,2",b= 3 ,', {"a": "1,2", "b": "3"}),
        ('n:a="say ""hi"", x" , b-c=""', {"a": 'say "hi", x', "b_c": ""}),
        ('n:a="b"c', {"a": '"b"c'}),
    ],
)
def test_knobs_as_they_are_written(text: str, knobs: dict[str, str]) -> None:
    assert parsed(text) == ("n", knobs)


def test_a_comma_without_quotes_is_told_of() -> None:
    with pytest.raises(Refused, match=r"""'b' has no value. .* in double quotes: 'draft-model:model="a,…"'"""):
        Stack.from_arguments(["draft-model:model=a,b"])
    with pytest.raises(Refused, match="is longer than"):
        Stack.from_arguments(["draft-model:model=" + "a" * 5000])


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


BAD = {
    "m": "./no/such/folder",
    "p": None,
    "chat": "maybe",
    "n": "0",
    "w": "foo",
    "temp": "nan",
    "top_k": "-1",
    "top_p": "2",
    "seed": "1.5",
    "device": "abacus",
    "verify": "sometimes",
    "copies": "many",
    "threads": "100000",
    "t": "nonsense",
    "h2o.budget": "huge",
    "h2o.colour": "blue",
}
"""A value that cannot work for every parameter; any text is a prompt."""


def test_what_is_bad_of_a_link_is_told_and_the_rest_is_kept() -> None:
    assert {*links.SHORT.values()} <= {*BAD}, "a setting without a bad value here"
    good = {"p": "hello", "n": "7", "seed": "3", "t": "h2o", "h2o.budget": "64", "w": "int4"}
    for name, value in BAD.items():
        if value is None:
            continue
        faults: Faults = []
        found = links.from_query({**good, name: value}, BASE, faults)
        assert [f[0] for f in faults] == [name], name
        rest = {k: v for k, v in good.items() if k != name}
        expected = links.from_query(rest, BASE)
        assert found == expected, name
        for lang in ("en", "zh-CN"):
            said = links.faults_sentence(faults, {name: value}, lang)
            assert f"{name}={value}" in said
            assert "\n" not in said
    everything = {k: v for k, v in BAD.items() if v} | {"p": "hello", "t": "nonsense,h2o,h2o,streaming-llm"}
    faults = []
    found = links.from_query(everything, BASE, faults)
    assert found == Settings(prompt="hello", stack=Stack.from_arguments(["h2o"]))
    assert len(faults) == len(BAD) - 1 + 2, "a technique twice, and two for one job"


@given(st.dictionaries(st.sampled_from([*BAD, "", "x", "t.t", "h2o."]), st.text(max_size=30)))
@settings(deadline=None, max_examples=60)
def test_garbage_never_breaks_a_link(parameters: dict[str, str]) -> None:
    parameters.pop("m", None)  # a bare name asks the Hub
    faults: Faults = []
    assert isinstance(links.from_query(parameters, BASE, faults), Settings)
    assert {name for name, _ in faults} <= {*parameters}


def test_what_is_bad_of_a_study_link_is_told_and_the_rest_is_kept() -> None:
    faults: Faults = []
    asked = {"study": "sweep", "sweep.technique": "h2o", "sweep.colour": "blue", "w": "foo", "seed": "5"}
    study, found = links.study_from_query(asked, faults)
    assert sorted(f[0] for f in faults) == ["sweep.colour", "w"]
    assert (study.technique, found) == ("h2o", Settings(seed=5))  # type: ignore[attr-defined]

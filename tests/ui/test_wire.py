"""What travels to the panel: derived from the events, whatever they are, and harmless, whoever wrote them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.measure import trace
from llmlab.runtime.events import KINDS, Committed, Event, Evicted, Failed, Finished, Started
from llmlab.ui.live import wire
from llmlab.ui.live.bundle import bundle
from llmlab.ui.live.panel import HERE, LivePanel, message, script
from llmlab.ui.playground.samples import RUNS, recordings

MOST_BYTES = 10_000
"""Of one message: beyond, Gradio's own work on it is felt."""


@dataclass(frozen=True)
class Surprise(Event):
    """An event that nobody has heard of."""

    colour: str
    depths: list[int]
    more: dict[str, Any] = field(default_factory=dict)


def test_a_field_or_an_event_that_is_new_travels_by_its_name() -> None:
    (got,) = wire.encode([Surprise(1.5, "red", [3, 3], {"a": [1, {"b": None}]})])
    assert got == {"event": "Surprise", "t": 1.5, "colour": "red", "depths": [3, 3], "more": {"a": [1, {"b": None}]}}


def test_every_event_travels_with_all_its_fields_but_those_left_out() -> None:
    shaped = {f"{kind}.{f.name}" for kind, cls in KINDS.items() for f in fields(cls)}
    assert set(wire.SHAPES) <= shaped, "a shape for a field that is gone"
    left_out = {name for name, shape in wire.SHAPES.items() if shape is wire.LEFT_OUT}
    seen = set()
    for event in (e for item in recordings() for e in trace.load(RUNS / item["file"])):
        (got,) = wire.encode([event])
        kind = type(event).__name__
        seen.add(kind)
        assert {f"{kind}.{name}" for name in got if name != "event"} == {
            f"{kind}.{f.name}" for f in fields(event) if f"{kind}.{f.name}" not in left_out
        }
    assert {"Started", "Prefilled", "Drafted", "Committed", "Evicted", "Exited", "Finished"} <= seen


def test_layers_that_agree_share_one_number() -> None:
    (got,) = wire.encode([Evicted(1.0, [7] * 30, [4, 4, 5])])
    assert (got["before"], got["after"]) == (7, [4, 4, 5])


def test_a_message_of_a_tenth_of_a_second_is_small() -> None:
    """The prompt apart, which travels once and is cut to its end."""
    panel = LivePanel()
    for item in recordings():
        pieces: dict[int, list[Event]] = {}
        for e in trace.load(RUNS / item["file"]):
            if not isinstance(e, Started):
                pieces.setdefault(int(e.t * 10), []).append(e)
        for events in pieces.values():
            sent = panel.postprocess(message("r", 0, events, "running"))
            assert len(json.dumps(sent).encode()) < MOST_BYTES, item["id"]


def test_a_long_prompt_is_cut_to_its_end() -> None:
    start = Started(0.0, "m", "stack", "cpu", "int4", [], {"prompt": "x"}, 3, 4, 5, True, ["a" * 30_000, "一", "b"])
    (got,) = wire.encode([start])
    assert got["prompt"].startswith("… a")
    assert got["prompt"].endswith("一b")
    assert len(got["prompt"]) <= wire.LONGEST_PROMPT + 2
    assert "settings" not in got


def test_a_message_survives_absurd_numbers() -> None:
    """Gradio patches nested lists wrongly between messages, so events travel as one string; JSON knows no infinity."""
    e = Committed(float("inf"), [10**30], [0], float("nan"), [10**30] * 5000, 10**30, -float("inf"), ["x"])
    sent = LivePanel().postprocess(message("r", 0, [e], "running"))
    assert isinstance(sent["ev"], str)
    (got,) = json.loads(sent["ev"], parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert got["event"] == "Committed"
    assert got["tokens"] == [wire.LARGEST]
    assert got["t"] == got["seconds"] == 0
    assert len(sent["ev"]) < 20_000


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@given(junk)
def test_whatever_an_event_holds_is_json_that_javascript_can_hold(value: Any) -> None:
    got = wire.encode([Surprise(0.0, value, value, value)])
    text = json.dumps(got, allow_nan=False)
    assert json.loads(text, parse_float=lambda x: abs(float(x)) <= wire.LARGEST and float(x)) == got
    json.loads(text, parse_int=lambda x: abs(int(x)) <= wire.LARGEST or pytest.fail(x))


def test_what_is_endless_is_cut() -> None:
    deep: Any = 1
    for _ in range(500):
        deep = [deep]
    events = [
        Surprise(0.0, "x" * 10**6, list(range(10**5)), {"deep": deep} | {str(i): i for i in range(10**4)}),
        Committed(0.0, [1] * 10**5, [0] * 10**5, 0.0, list(range(10**5)), 0, 1.0, ["x" * 10**4] * 3),
        Finished(0.0, "x" * 10**6, {"a": 1}),
        Failed(0.0, "x" * 10**6),
    ]
    assert len(json.dumps(wire.encode(events))) < 40_000


# The bundle -----------------------------------------------------------------------------------------------------


def test_the_script_holds_every_module_once_and_no_import() -> None:
    text = script()
    for path in HERE.glob("*.js"):
        assert text.count(f"$modules.{path.stem} = ") == 1, f"{path.name} is in no import, or in two"
    assert "\nimport " not in text
    assert "\nexport " not in text
    assert "</script" not in text


def write(folder: Path, **modules: str) -> Path:
    for name, source in modules.items():
        (folder / f"{name}.js").write_text(source, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ('import { b } from "./b.js";', "a imports b imports a"),
        ('import * as all from "./c.js";', "cannot hold 'import"),
        ('import { c } from "https://elsewhere.example/c.js";', "cannot hold 'import"),
        ("export default 1;", "cannot hold 'export"),
        ("export let changing = 1;", "cannot hold 'export"),
        ("const x = 1;\nexport { x };", "cannot hold 'export"),
        ('  import { c } from "./c.js";', "cannot hold 'import"),
    ],
)
def test_a_module_that_the_bundle_cannot_hold_is_an_error(tmp_path: Path, source: str, says: str) -> None:
    write(tmp_path, a=source, b='import { a } from "./a.js";', c="export const c = 1;")
    with pytest.raises(ValueError, match=says):
        bundle(tmp_path, "a")


@pytest.mark.browser
def test_a_bundle_does_what_its_modules_do(browser: Any, tmp_path: Path) -> None:
    write(
        tmp_path,
        base='export const base = 2;\nexport function twice(x) {\n  return base * x;\n}\nconst hidden = "export";\n',
        left='import { base, twice as doubled } from "./base.js";\nexport const left = doubled(base + 1);\n',
        right='import {\n  base,\n} from "./base.js";\nexport class Right {\n  value = base;\n}\n',
        top='import { left } from "./left.js";\nimport { Right } from "./right.js";\n'
        "const base = 100;\nexport const top = () => [base, left, new Right().value];\n",
    )
    page = browser.new_page()
    ran = page.evaluate("body => new Function(`${body}\\nreturn $modules.top.top();`)()", bundle(tmp_path, "top"))
    assert ran == [100, 6, 2]
    page.close()

"""Cards and controls: every technique explains itself and its knobs, and survives links, the shell and JSON."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from contextlib import suppress
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import Refused
from llmlab.lab.settings import Settings
from llmlab.lab.study import Study, make_study, studies
from llmlab.runtime.configurable import LABELS, Configurable, Knob, card, title
from llmlab.runtime.roles import ROLES
from llmlab.runtime.stack import Stack, parsed
from llmlab.runtime.technique import Technique, make, registry
from llmlab.studies.sweep import values_of
from llmlab.ui import links
from llmlab.ui.i18n import catalogue
from llmlab.ui.studies.picker import BENCHES
from tests.laws import laws

SURVEY = Path(__file__).parents[2] / "assets" / "survey.json"


@pytest.fixture(params=registry(), ids=str)
def cls(request: pytest.FixtureRequest) -> type[Technique]:
    return registry()[request.param]


@pytest.fixture(params=studies(), ids=str)
def study(request: pytest.FixtureRequest) -> type[Study]:
    return studies()[request.param]


def explains_itself(described: type[Configurable], longest: int = 40) -> None:
    """A card with its four paragraphs, a short title and a claim of one sentence."""
    paragraphs = card(described)
    assert tuple(paragraphs) == LABELS
    for label, text in paragraphs.items():
        assert len(text) >= 30, label
        assert text.rstrip()[-1] in ".?!)", label
    assert 2 < len(title(described)) <= longest
    assert "\n" not in described.claim
    assert 20 <= len(described.claim) <= 100
    assert described.claim.endswith(".")
    assert re.search("[\u4e00-\u9fff]", described.claim_zh), "a claim in Chinese"
    assert "\n" not in described.claim_zh
    assert 6 <= len(described.claim_zh) <= 60
    assert described.claim_zh.endswith("。")


def covers_known_works(described: type[Configurable]) -> None:
    assert described.covers
    ids = {row["id"] for row in json.loads(SURVEY.read_text(encoding="utf-8"))}
    unknown = [c for c in described.covers if c not in ids and not c.startswith("https://")]
    assert unknown == []


def has_complete_knobs(described: type[Configurable]) -> None:
    for k in described.knobs():
        assert len(k.help) >= 10, k.name
        assert k.validated("", k.default) == k.default
        assert k.validated("", str(k.default)) == k.default
        if k.kind == "choice":
            assert len(k.choices) > 1
        elif k.kind != "bool":
            assert k.low < k.high


def test_the_registry_is_not_empty() -> None:
    assert {"prompt-lookup", "draft-model", "self-speculation", "streaming-llm", "h2o", "magnitude", "wanda"} <= {
        *registry()
    }


def test_a_card_has_its_four_paragraphs(cls: type[Technique]) -> None:
    explains_itself(cls)


def test_a_technique_is_one_frozen_dataclass_in_a_short_file(cls: type[Technique]) -> None:
    path = Path(inspect.getfile(cls))
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 120
    assert path.stem.replace("_", "-") == cls().id
    assert cls.role in ROLES
    assert cls.job
    with pytest.raises(FrozenInstanceError):
        cls().anything = 1
    assert hash(cls()) == hash(cls())
    assert {f.name for f in fields(cls)} == {k.name for k in cls.knobs()}, "every field is a knob"


def test_it_says_what_it_covers(cls: type[Technique]) -> None:
    covers_known_works(cls)


def test_exact_or_with_an_identity(cls: type[Technique]) -> None:
    assert cls.exact == (cls.noop_settings is None)
    assert set(cls.noop_settings or {}) <= {k.name for k in cls.knobs()}
    assert cls.speed in ("real", "simulated")


def test_it_says_where_it_shows(cls: type[Technique]) -> None:
    """Whether these settings change a tiny model's text, or draft, is in test_exact.py."""
    assert cls.biting_settings is not None
    assert {k: getattr(make(cls._id(), **cls.biting_settings), k) for k in cls.biting_settings} == cls.biting_settings
    assert not cls.biting_settings or cls.exact or not make(cls._id(), **cls.biting_settings).lossless()


def test_its_main_knob_is_a_number_of_its_own(cls: type[Technique]) -> None:
    numbers = {k.name for k in cls.knobs() if k.kind in ("int", "float")}
    assert cls.main_knob in numbers or not (numbers or cls.main_knob)
    if cls.main_knob:
        k = cls.knob_named(cls.main_knob)
        values = values_of(cls, k)
        assert len(values) > 1
        assert [k.parse(v) for v in values] == values


def test_knobs_are_complete(cls: type[Technique]) -> None:
    has_complete_knobs(cls)


def test_a_study_explains_itself_and_its_knobs(study: type[Study]) -> None:
    explains_itself(study, 60)
    covers_known_works(study)
    has_complete_knobs(study)
    assert study.bench in BENCHES
    assert f"bench_{study.bench}" in catalogue()["zh-CN"]
    assert {f.name for f in fields(study)} == {k.name for k in study.knobs()}, "every field is a knob"
    with pytest.raises(FrozenInstanceError):
        study().anything = 1


def test_a_study_survives_its_link_and_its_command(study: type[Study]) -> None:
    plain = study()
    assert links.study_query(plain, Settings()) == f"?study={plain.id}"
    changed = {k.name: _other(k) for k in study.knobs()}
    turned, settings = make_study(plain.id, **changed), Settings(weights="int4", seed=3)
    query = dict(parse_qsl(links.study_query(turned, settings).removeprefix("?")))
    assert links.study_from_query(query) == (turned, settings)
    words = shlex.split(links.study_command(turned, settings))
    name, knobs = parsed(words[words.index("study") + 1])
    assert make_study(name, **knobs) == turned
    assert words[-2:] == ["--weights=int4", "--seed=3"]


def test_out_of_range_is_refused_by_a_study_too(study: type[Study]) -> None:
    for k in study.knobs():
        for value in _wrong(k):
            with pytest.raises(Refused) as e:
                make_study(study._id(), **{k.name: value})
            assert k.name in str(e.value)
    with pytest.raises(Refused, match="has no knob called"):
        make_study(study._id(), no_such_knob=1)


def _other(k: Knob) -> Any:
    """A value of the knob that is not its default."""
    match k.kind:
        case "bool":
            return not k.default
        case "choice":
            return next((c for c in k.choices if c not in ("*", k.default)), "word")
    return k.low if k.default != k.low else k.high


def _values(k: Knob) -> st.SearchStrategy[Any]:
    match k.kind:
        case "bool":
            return st.booleans()
        case "int":
            return st.integers(k.low, k.high)
        case "float":
            return st.floats(k.low, k.high)
    return st.sampled_from([c for c in k.choices if c != "*"])


@st.composite
def stacks(draw: st.DrawFn) -> Stack:
    """Any techniques at any settings, in any order; whether they go together is another question."""
    ids = draw(st.lists(st.sampled_from(sorted(registry())), unique=True))
    return Stack(
        make(id, **{k.name: draw(_values(k)) for k in registry()[id].knobs() if draw(st.booleans())}) for id in ids
    )


@settings(max_examples=150)
@given(stacks())
def test_a_stack_survives_its_round_trips(stack: Stack) -> None:
    assert Stack.from_query(dict(parse_qsl(stack.to_query()))) == stack
    assert Stack.from_arguments(stack.arguments()) == stack
    assert Stack.from_json(stack.to_json()) == stack
    assert Stack.from_json(json.dumps(stack.to_json())) == stack
    assert hash(Stack(reversed(stack.techniques))) == hash(stack)
    assert [t.id for t in Stack(reversed(stack.techniques))] == [t.id for t in stack]


def test_defaults_need_no_words(cls: type[Technique]) -> None:
    stack = Stack([cls()])
    assert stack.to_query() == f"t={cls().id}"
    assert stack.arguments() == [cls().id]


def _wrong(k: Knob) -> list[Any]:
    match k.kind:
        case "bool":
            return ["maybe", 2, None]
        case "choice":
            return [] if "*" in k.choices else ["no such choice", None, 1]
    beyond = [k.low - 1, k.high + 1, "", "x", None, True, float("nan"), float("inf"), [], {}, 10**400]
    return [*beyond, k.low + 0.5] if k.kind == "int" else beyond


def test_out_of_range_is_refused_at_every_door(cls: type[Technique]) -> None:
    id = cls().id
    for k in cls.knobs():
        for value in _wrong(k):
            for attempt in (
                lambda k=k, value=value: make(id, **{k.name: value}),
                lambda k=k, value=value: cls(**{k.name: value}),
                lambda k=k, value=value: Stack.from_json([{"id": id, "knobs": {k.name: value}}]),
                lambda k=k, value=value: Stack.from_query({"t": id, f"{id}.{k.name}": value}),
            ):
                with pytest.raises(Refused) as e:
                    attempt()
                assert k.name in str(e.value)
                assert title(cls) in str(e.value)


@pytest.mark.parametrize("name", ["no_such_knob", "name", "self", "cls", "id", "covers", "__class__", "exact"])
def test_unknown_knobs_are_refused_at_every_door(cls: type[Technique], name: str) -> None:
    id = cls().id
    for attempt in (
        lambda: Stack.from_json([{"id": id, "knobs": {name: 1}}]),
        lambda: Stack.from_query({"t": id, f"{id}.{name}": "1"}),
        lambda: Stack.from_arguments([f"{id}:{name}=1"]),
    ):
        with pytest.raises(Refused, match="has no knob called"):
            attempt()


@pytest.mark.parametrize(
    "value",
    [
        "",
        "{",
        "[" * 4000,
        "null",
        {},
        [1],
        [{}],
        [{"id": 1}],
        [{"id": "h2o", "knobs": 3}],
        [{"id": "nothing-like-it"}],
        [{"id": "h2o"}, {"id": "h2o"}],
        None,
    ],
    ids=lambda v: repr(v)[:20],
)
def test_a_stack_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(Refused) as e:
        Stack.from_json(value)
    assert len(str(e.value)) < 300


@settings(max_examples=100)
@given(st.text(max_size=60))
def test_any_text_is_a_stack_or_refused(text: str) -> None:
    for read in (
        lambda: Stack.from_arguments([text]),
        lambda: Stack.from_json(text),
        lambda: Stack.from_query({"t": text}),
        lambda: Stack.from_arguments([f"h2o:{text}"]),
    ):
        with suppress(Refused):
            assert isinstance(read(), Stack)


def test_a_near_miss_gets_a_hint() -> None:
    with pytest.raises(Refused, match="Did you mean prompt-lookup"):
        make("promptlookup")
    with pytest.raises(Refused, match="Did you mean budget"):
        make("h2o", bugdet=4)


def test_order_is_the_labs_own() -> None:
    given_ = [laws.sharp(id) for id in ("prompt-lookup", "h2o", "wanda", "neuron-drop", "layer-drop")]
    assert [t.id for t in Stack(given_)] == ["layer-drop", "neuron-drop", "wanda", "h2o", "prompt-lookup"]

"""A run's settings: one line each, from which options, links, JSON and controls are derived."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest

from llmlab.errors import Refused
from llmlab.lab.settings import STUDIED, Settings, within
from llmlab.runtime.configurable import Knob
from llmlab.ui import links

KNOBS = Settings.knobs()


def other(k: Knob) -> Any:
    """A value that is not the default."""
    match k.kind:
        case "bool":
            return True
        case "text":
            return "a word"
        case "choice":
            return next(c for c in k.choices if c not in ("*", k.default))
    return k.high if k.default != k.high else k.low


def test_every_field_but_the_stack_is_a_knob_with_its_words() -> None:
    assert [f.name for f in fields(Settings) if f.name != "stack"] == [k.name for k in KNOBS]
    for k in KNOBS:
        assert k.help
        assert k.parse(k.default) == k.default
    assert set(STUDIED) < {k.name for k in KNOBS}


def test_a_link_names_every_setting_once_and_as_it_always_did() -> None:
    assert len(set(links.SHORT.values())) == len(KNOBS)
    published = {"m", "p", "chat", "n", "w", "temp", "top_k", "top_p", "seed", "device", "verify", "copies", "threads"}
    assert published <= set(links.SHORT.values())


@pytest.mark.parametrize("k", KNOBS, ids=lambda k: k.name)
def test_each_survives_its_link_its_json_and_its_words(k: Knob) -> None:
    settings = Settings(**{"prompt": "hi", k.name: other(k)})
    query = links.to_query(settings)
    assert f"{links.SHORT[k.name]}=" in query
    back = Settings(**json.loads(json.dumps(settings.to_json())), model=settings.model)
    assert back == settings
    assert f"{k.name}={other(k)!r}" in links.python(settings)
    assert k.option in links.command_line(settings)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_new_tokens": 0}, "The setting max new tokens cannot be 0. Give 1 to 32768."),
        ({"max_new_tokens": "a lot"}, "The setting max new tokens cannot be a lot. Give 1 to 32768."),
        ({"max_new_tokens": True}, "The setting max new tokens cannot be True. Give 1 to 32768."),
        ({"temperature": float("nan")}, "The setting temperature cannot be nan. Give 0.0 to 5.0."),
        ({"top_k": 1.5}, "The setting top k cannot be 1.5. Give 0 to 1000000."),
        ({"seed": 10**400}, "Give 0 to 2147483647."),
        ({"verify": "maybe"}, "The setting verify cannot be 'maybe'. Give bitwise or fast."),
        ({"copies": None}, "The setting copies cannot be 'None'. Give auto or none."),
        ({"chat": "perhaps"}, "The setting chat cannot be 'perhaps'. Give true or false."),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(given: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused) as e:
        Settings(**given)
    assert str(e.value).endswith(says)


def test_text_becomes_what_the_setting_is() -> None:
    s = Settings(max_new_tokens="12", temperature="0.5", chat="no")
    assert (s.max_new_tokens, s.temperature, s.chat) == (12, 0.5, False)
    assert Settings().chat is None


def test_a_command_s_own_numbers_are_refused_in_the_same_words() -> None:
    assert within("rounds", "5", 1, 1000, int) == 5
    assert within("minutes", 0, 0, 100, float) == 0
    with pytest.raises(Refused, match=r"The setting rounds cannot be 0. Give 1 to 1000."):
        within("rounds", 0, 1, 1000, int)

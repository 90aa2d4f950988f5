"""What the panel says of waiting, of a comparison's parts and of its verdict: Python's words, in both languages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmlab.measure.pairs import Pairs
from llmlab.runtime.events import Compared, Event, Finished
from llmlab.ui.live.panel import HERE, LivePanel, message
from tests.test_verdict import EQUAL, FASTER, lane
from tests.ui.test_fold import modules

__all__ = ["modules"]
pytestmark = pytest.mark.browser

SHOWN = """async ([message, labels, lang]) => {
    const [{ State }, { Status }, { Figures }, { decode }, words] = await Promise.all(
        ["state", "status", "figures", "protocol", "words"].map(name => import(`/${name}.js`)));
    Object.assign(words.language, { name: lang, labels });
    const state = new State();
    Object.assign(state, { status: message.state, note: message.note, twice: message.compare });
    state.ingest(decode(message));
    state.move(state.order.length);
    const [status, figures] = [new Status(state), new Figures(state)];
    status.draw();
    figures.draw();
    const cell = name => figures.node.querySelector(`[data-figure="${name}"]`);
    const told = name => [cell(name).className, cell(name).querySelector(".extra").textContent];
    return { status: status.told.textContent, speed: told("speed"), same: told("same") };
}"""


def shown(modules: Any, events: list[Event], state: str, note: str = "", lang: str = "en") -> dict[str, Any]:
    labels = json.loads((HERE / "labels.json").read_text(encoding="utf-8"))
    value = LivePanel().postprocess(message("r", 0, events, state, note, reset=True, compare=True))
    found: dict[str, Any] = modules.evaluate(SHOWN, [value, labels, lang])
    return found


def test_a_text_that_was_stopped_is_no_other_text(modules: Any) -> None:
    cut = [*lane("baseline", 0.2, 8), *lane("stack", 0.1, 3)[:-1], Finished(2.0, "stopped")]
    assert shown(modules, cut, "done", "stopped")["same"] == ["figure", "so far"]
    ended = [*lane("baseline", 0.2, 8), *lane("stack", 0.1, 3)]
    assert shown(modules, ended, "done")["same"] == ["figure bad", "differs after 3 tokens"]


def compared(pairs: Pairs | None, verdict: str) -> list[Event]:
    runs = [*lane("baseline", 0.2, 8), *lane("stack", 0.1, 8)]
    told = {"verdict": verdict} if verdict else {}
    return [*runs, Compared(3.0, {"identical": True}, pairs.to_json() if pairs else {}, told)]


@pytest.mark.parametrize(
    ("verdict", "colour"), [("better", "good"), ("worse", "bad"), ("trade", ""), ("none", ""), ("undecided", "")]
)
def test_the_colour_is_python_s_verdict(modules: Any, verdict: str, colour: str) -> None:
    """The stack is twice as fast in the one pair that is shown; that decides nothing."""
    found = shown(modules, compared(FASTER, verdict), "done")
    assert found["speed"][0].split() == ["figure", *filter(None, [colour])]
    assert "Verdict: " in found["status"]
    low, high = FASTER.spread
    assert found["speed"][1] == f"×{FASTER.ratio:.2f} the baseline ({low:.2f} to {high:.2f} in 3 pairs)"


def test_nothing_is_coloured_while_it_runs_or_without_a_verdict(modules: Any) -> None:
    for events, state in ((compared(None, "")[:-1], "running"), (compared(EQUAL, "better"), "running")):
        found = shown(modules, events, state, "")
        assert found["speed"][0] == "figure"
    assert shown(modules, compared(None, "")[:-1], "done")["speed"][0] == "figure"
    earlier = shown(modules, compared(None, ""), "recorded", "a recorded run of an earlier version")
    assert earlier["speed"][0] == "figure"
    assert "Verdict" not in earlier["status"]


@pytest.mark.parametrize(
    ("state", "note", "en", "zh"),
    [
        ("queued", "waiting:2", "2 runs before yours", "前面还有 2 个运行"),
        ("queued", "waiting:1:35", "1 run before yours · about 35 s", "前面还有 1 个运行 · 约 35 秒"),
        ("running", "Pair|2|5", "Measuring speed in pairs · 2 / 5", "正在成对测量速度 · 2 / 5"),
        ("running", "Measuring quality|64|2080", "Measuring quality · 64 / 2,080", "正在测量质量 · 64 / 2,080"),
        (
            "running",
            "Measuring quality, waiting for others|64|2080",
            "Measuring quality, waiting for others · 64 / 2,080",
            "正在测量质量，让其他运行先行 · 64 / 2,080",
        ),
    ],
)
def test_the_status_line_in_both_languages(modules: Any, state: str, note: str, en: str, zh: str) -> None:
    for lang, want in (("en", en), ("zh-CN", zh)):
        both = [*lane("baseline", 0.2, 4), *lane("stack", 0.2, 4)]
        assert shown(modules, both, state, note, lang)["status"] == want


def test_an_ab_says_which_of_its_two_runs_is_on(modules: Any) -> None:
    first, second = lane("baseline", 0.2, 4), lane("stack", 0.2, 4)
    assert shown(modules, first[:-1], "running")["status"] == "1 of 2: baseline · Decoding"
    assert shown(modules, first[:-1], "running", lang="zh-CN")["status"] == "第 1 次，共 2 次：基线 · 解码中"
    assert shown(modules, [*first, *second[:-1]], "running")["status"] == "2 of 2: with techniques · Decoding"

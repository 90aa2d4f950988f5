"""The page's endpoints as a program calls them, and that only those are open."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client

from llmlab.models.loading.catalog import MODELS
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import registry
from llmlab.ui import machine
from llmlab.ui.i18n import catalogue
from llmlab.ui.machine import fit_html
from llmlab.ui.page import Page
from tests.held import PATIENCE, Gate, until
from tests.ui.conftest import Site


@pytest.fixture
def client(site: Site) -> Client:
    return Client(site.url, verbose=False)


def values(site: Site, **changes: Any) -> list[Any]:
    """What a visitor's controls would send."""
    page = Page(site.engine)
    page.build()
    given = {n: c.value for n, c in page.form.fields.items()}
    return list((given | {"own": site.model, "prompt": "hello hello", "max_new_tokens": 24} | changes).values())


def messages(client: Client, name: str, sent: list[Any]) -> list[dict[str, Any]]:
    job = client.submit(*sent, api_name=name)
    job.result(timeout=PATIENCE)
    got = [m for m in job.outputs() if isinstance(m, dict) and "seq" in m]
    return [m | {"ev": json.loads(m["ev"])} for m in got]


def test_a_run_streams_every_message_in_order(client: Client, site: Site) -> None:
    got = messages(client, "/run", values(site))
    numbers = sorted({m["seq"] for m in got})
    assert numbers == list(range(len(numbers)))
    assert got[0]["reset"] is True
    assert got[-1]["state"] == "done"
    kinds = [e["event"] for m in {m["seq"]: m for m in got}.values() for e in m["ev"]]
    assert kinds.count("Started") == 1
    assert kinds.count("Finished") == 1


def test_a_comparison_has_two_lanes(client: Client, site: Site) -> None:
    got = messages(client, "/compare", values(site, Drafter="prompt-lookup"))
    kinds = [e["event"] for m in {m["seq"]: m for m in got}.values() for e in m["ev"]]
    assert kinds.count("Started") == kinds.count("Finished") == 2


def test_without_network_and_model_the_page_says_what_is_missing(
    client: Client, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("LLMLAB_OFFLINE", "1")
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    got = messages(client, "/run", values(site, own="", model="smollm2-360m"))
    assert got[-1]["state"] == "error"
    (failed,) = [e for m in {m["seq"]: m for m in got}.values() for e in m["ev"]]
    assert "replay a recorded run" in failed["message"]
    entry = MODELS["smollm2-135m"]
    assert "only recorded runs play" in fit_html(entry, "int4", 512)
    monkeypatch.delenv("LLMLAB_OFFLINE")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert "downloaded at the first run (93 MB)" in fit_html(entry, "int4", 512)


def test_a_model_that_does_not_fit_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda device="cpu": int(1.5e9))
    shown = fit_html(MODELS["qwen2.5-0.5b"], "dense-fp32", 512)
    assert "needs 1.98 GB for its weights" in shown
    assert "int4 weights" in shown


def test_cancelling_stops_the_engine(client: Client, site: Site, passes: Gate) -> None:
    passes.shut(after=3)
    job = client.submit(*values(site, max_new_tokens=400, prompt="hello"), api_name="/compare")
    passes.wait_until_held()
    until(job.outputs, "the client has received nothing")
    run = list(site.engine._jobs.values())[-1]
    job.cancel()
    assert run.ended.wait(PATIENCE)
    assert run.stop.is_set()


def test_the_short_way_past_the_queue_is_closed(site: Site) -> None:
    for name in ("run", "compare"):
        assert httpx.post(f"{site.url}gradio_api/run/{name}", json={"data": []}).status_code == 404


def test_the_form_reads_what_it_writes(site: Site) -> None:
    page = Page(site.engine)
    page.build()
    playground = page.playground
    stacks = [[n] for n in registry()] + [["prompt-lookup", "h2o", "neuron-drop", "layer-drop"]]
    warm, plain = values(site, temperature=0.5, seed=3), values(site)
    for names in stacks:
        settings = playground.read(warm)
        settings = replace(settings, stack=Stack.from_arguments(names))
        written = playground.write(settings)
        shown = [written.get(c, old) for c, old in zip(playground.form.inputs, plain, strict=True)]
        assert playground.read(shown) == settings


def test_every_technique_has_one_control_per_knob(site: Site) -> None:
    page = Page(site.engine)
    page.build()
    for name, technique in registry().items():
        for k in technique.knobs():
            assert f"{name}.{k.name}" in page.form.fields
        family = next(f for f in page.playground.techniques.families if f.role == technique.role)
        assert name in family.members
        assert name in page.form.boxes


def test_both_languages_hold_the_same_words() -> None:
    english, chinese = catalogue()["en"], catalogue()["zh-CN"]
    assert set(english) == set(chinese)
    for key, text in english.items():
        assert sorted(re.findall(r"\{(\w+)\}", text)) == sorted(re.findall(r"\{(\w+)\}", chinese[key])), key

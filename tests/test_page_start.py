"""The page's start and end: its port, its proxies, its variables, and what Ctrl-C leaves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from llmlab.cli import page, surroundings
from llmlab.errors import Refused
from tests.test_surroundings import one_sentence, shell

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are started and ended as POSIX systems do it")


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        (["--port", "abc"], {}, "The port 'abc'"),
        (["--port", "0"], {}, "1 to 65535"),
        (["--prot", "1"], {}, "cannot be understood"),
        ([], {"GRADIO_SERVER_PORT": "abc"}, "The port 'abc'"),
        ([], {"GRADIO_SERVER_PORT": "99999"}, "The port '99999'"),
        ([], {"GRADIO_NUM_PORTS": "many"}, "GRADIO_NUM_PORTS"),
        ([], {"GRADIO_ROOT_PATH": "lab x"}, "GRADIO_ROOT_PATH"),
        ([], {"GRADIO_SERVER_NAME": "no such host"}, "The host 'no such host'"),
        ([], {"LLMLAB_CACHE": "/dev/null/x"}, "Set LLMLAB_CACHE elsewhere"),
        ([], {"XDG_CACHE_HOME": "/dev/null"}, "Set XDG_CACHE_HOME elsewhere"),
    ],
)
def test_a_page_that_cannot_be_served(
    arguments: list[str],
    env: dict[str, str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    monkeypatch.setenv("LLMLAB_CACHE", "")
    for name, value in {"GRADIO_SERVER_PORT": port, "GRADIO_SERVER_NAME": "", **env}.items():
        monkeypatch.setenv(name, value)
    assert page.main(lambda *_: None, arguments) == 2
    one_sentence(2, capsys.readouterr().err, says)


def test_a_busy_port_is_named_before_anything_is_loaded() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        status, out, err = shell("$APP", {"GRADIO_SERVER_PORT": f" {port} ", "GRADIO_SERVER_NAME": " "})
    one_sentence(status, err, f"The port {port} is in use already")
    assert out == ""


def test_the_next_free_port_is_taken_where_none_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        monkeypatch.setattr(page, "FIRST", port)
        found = next(page.Address("127.0.0.1", None).free_ports())
        assert port < found < port + page.TRIED
        monkeypatch.setattr(page, "TRIED", 1)
        with pytest.raises(Refused, match="Every port from"):
            next(page.Address("127.0.0.1", None).free_ports())
        with pytest.raises(Refused, match=f"The port {port} is in use already"):
            next(page.Address("0.0.0.0", port).free_ports())


def test_a_port_that_is_taken_while_the_page_loads(capfd: pytest.CaptureFixture[str]) -> None:
    """Two pages started at once: one finds its port taken in the last moment, and goes to the next."""
    import httpx

    from llmlab.lab.queue import Engine
    from llmlab.ui.page import Page, serve

    with socket.socket() as busy, socket.socket() as free:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        free.bind(("127.0.0.1", 0))
        ports = [s.getsockname()[1] for s in (busy, free)]
        free.close()
        shown = Page(Engine())
        url, told = serve(shown, "127.0.0.1", iter(ports), (), browser=False)
        try:
            assert (url, told) == (f"http://127.0.0.1:{ports[1]}", "")
            assert httpx.get(url).status_code == 200
        finally:
            shown.close()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_page_behind_proxies_says_its_address_once_it_answers(number: signal.Signals) -> None:
    import httpx

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nobody = "http://127.0.0.1:9"
    env = {"HTTP_PROXY": nobody, "https_proxy": nobody, "ALL_PROXY": "socks5://127.0.0.1:9", "NO_PROXY": "localhost"}
    env |= {"http_proxy": nobody, "GRADIO_SERVER_PORT": str(port)}
    command = [sys.executable, "app.py", "--no-browser"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env={**os.environ, **env}
    ) as app:
        assert app.stdout is not None
        first = app.stdout.readline()
        assert first == f"llmlab is at http://127.0.0.1:{port} (Ctrl+C ends it)\n"
        assert httpx.Client(trust_env=False).get(f"http://127.0.0.1:{port}/").status_code == 200
        app.send_signal(number)
        rest = app.communicate(timeout=60)[0]
    name, status = {signal.SIGINT: ("Ctrl-C", 130), signal.SIGTERM: ("SIGTERM", 143)}[number]
    assert (rest, app.returncode) == (f"Stopped by {name}.\n", status)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"no_proxy": "a.b, localhost"}, "a.b,localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "c.d", "no_proxy": "a.b"}, "a.b,c.d,localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "*"}, "*"),
    ],
)
def test_no_proxy_stands_before_loopback(monkeypatch: pytest.MonkeyPatch, before: dict[str, str], after: str) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    surroundings._reach_loopback()
    assert os.environ.get("no_proxy", os.environ["NO_PROXY"]) == after
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    kept = dict(os.environ)
    with surroundings.without_proxies():
        assert {n: v for n, v in os.environ.items() if n.lower().endswith("proxy")} == {"no_proxy": "*"}
    assert dict(os.environ) == kept


def test_variables_that_are_set_to_nothing_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*surroundings.NUMBERS, "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, " ")
    monkeypatch.setenv("GRADIO_ROOT_PATH", " /lab ")
    surroundings.tidy_gradio()
    assert os.environ["GRADIO_ROOT_PATH"] == "/lab"
    assert not any(n in os.environ for n in (*surroundings.NUMBERS, "GRADIO_TEMP_DIR"))

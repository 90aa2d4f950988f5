"""To which names the page answers: over real HTTP for loopback, and by the rule for the others."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx
import pytest

from llmlab.ui.host_names import HostNames
from tests.ui.conftest import Site

PATHS = ("", "config", "gradio_api/startup-events", "gradio_api/heartbeat/x", "gradio_api/queue/data?session_hash=x")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "10.0.0.1", ""])
def test_a_foreign_name_gets_nothing(site: Site, path: str, name: str) -> None:
    host = name.format(port=urlsplit(site.url).port)
    got = httpx.get(site.url + path, headers={"Host": host})
    assert got.status_code == 400
    assert got.text.startswith("This page does not answer to the name ")
    assert len(got.text.splitlines()) == 1
    assert httpx.post(f"{site.url}gradio_api/queue/join", json={}, headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]"])
@pytest.mark.parametrize("port", ["", ":{port}", ":8000"])  # another one through a tunnel
def test_loopback_is_answered(site: Site, name: str, port: str) -> None:
    host = name + port.format(port=urlsplit(site.url).port)
    assert httpx.get(site.url, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1.evil.example:7860"])
def test_another_site_s_page_changes_nothing(site: Site, origin: str) -> None:
    got = httpx.post(f"{site.url}gradio_api/queue/join", content="{}", headers={"Origin": origin})
    assert got.status_code == 403
    own = {"Origin": site.url.rstrip("/")}
    assert httpx.post(f"{site.url}gradio_api/queue/join", json={}, headers=own).status_code == 422


@pytest.mark.parametrize(
    ("names", "counts", "not_so"),
    [
        (HostNames.of("127.0.0.1"), "localhost LOCALHOST:1 localhost. [::1]:2", "lab.local 0.0.0.0 [::2]:1 *"),
        (HostNames.of("lab.school"), "Lab.School:7860 localhost", "school 192.168.0.1"),
        (HostNames.of("0.0.0.0"), "192.168.0.1:7860 [fe80::1]:7860 localhost", "lab.school evil.example"),
        (HostNames.of("::"), "192.168.0.1 [::1]:1", "evil.example"),
        (HostNames.of("0.0.0.0", ["lab.school", "*.hf.space"]), "lab.school:80 a.hf.space", "hf.space.evil.example"),
        (HostNames.of("127.0.0.1", ["*"]), "evil.example", ""),
        (HostNames.of("0.0.0.0", (), {"SPACE_HOST": "me-lab.hf.space"}), "me-lab.hf.space", "you-lab.hf.space"),
        (HostNames.of("127.0.0.1", (), {"GRADIO_ROOT_PATH": "https://a.b/lab"}), "a.b", "lab"),
    ],
)
def test_which_names_count(names: HostNames, counts: str, not_so: str) -> None:
    assert all(names.count(n) for n in counts.split())
    assert not any(names.count(n) for n in not_so.split())


def test_names_are_told_where_there_are_more_than_loopback_s() -> None:
    assert HostNames.of("127.0.0.1").told() == ""
    assert "every IP address" in HostNames.of("0.0.0.0").told()
    assert "lab.school" in HostNames.of("lab.school").told()

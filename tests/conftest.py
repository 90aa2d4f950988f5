from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from llmlab.models.decoder import Decoder
from tests import tiny
from tests.laws.laws import fingerprint

settings.register_profile("laws", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("laws")

LONGEST = ("test_default_model.py", "test_browser.py", "test_exact.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where processes share the files, the longest come first, so that all end at nearly the same time."""
    if hasattr(config, "workerinput"):
        rank = {name: i for i, name in enumerate(LONGEST)}
        items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small are slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def llama() -> Iterator[Decoder]:
    """Our decoder with the tiny Llama's weights; nobody may change it, and at the end nobody has."""
    model = tiny.decoder("llama")
    before = fingerprint(model)
    yield model
    assert fingerprint(model) == before

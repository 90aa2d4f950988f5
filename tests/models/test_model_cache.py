"""What the model cache counts."""

from __future__ import annotations

from pathlib import Path

from llmlab.lab.model_cache import ModelCache
from llmlab.models.formats.linear import nbytes
from llmlab.runtime.stack import Stack
from llmlab.runtime.tools import Tools
from tests import made


def test_a_transformed_copy_counts_once_what_it_shares(tmp_path: Path) -> None:
    cache = ModelCache()
    loaded = cache.load(str(made.folder(tmp_path / "tiny")), "dense-fp32", "cpu")
    assert cache.nbytes == loaded.model.nbytes
    copy = cache.transformed(loaded, Stack.from_arguments(["layer-drop:count=1"]), Tools(loaded.tokenizer)).model
    shared = nbytes(loaded.model.embedding)
    assert shared > 0
    assert cache.nbytes <= loaded.model.nbytes + copy.nbytes - shared
    assert cache.nbytes >= loaded.model.nbytes + nbytes(copy.layers)

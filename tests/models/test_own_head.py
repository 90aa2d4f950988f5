"""The output matrix: tied, its own, or stored though the config says tied, as transformers decides it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from llmlab.errors import Refused
from llmlab.lab.model_cache import ModelCache
from tests import made
from tests.laws import laws

TOKENS = [5, 9, 2, 77, 31]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def folder(tmp_path: Path, tied: bool, stored: str) -> Path:
    """A folder whose config says `tied`, with the matrices `stored`: both, equal, embedding, head or nearly."""
    made_here = made.folder(tmp_path / "model")
    config = json.loads((made_here / "config.json").read_text()) | {"tie_word_embeddings": tied}
    (made_here / "config.json").write_text(json.dumps(config))
    file = made_here / "model.safetensors"
    tensors = {k: v.clone() for k, v in load_file(file).items()}
    if stored in ("equal", "nearly"):
        tensors[HEAD] = tensors[EMBED].clone()
    if stored == "nearly":
        tensors[HEAD][-1, -1] += 1
    if stored in ("embedding", "head"):
        tensors.pop(HEAD if stored == "embedding" else EMBED)
    save_file(tensors, file, metadata={"format": "pt"})
    return made_here


@pytest.mark.parametrize("weights", ["dense-fp32", "int8"])
@pytest.mark.parametrize(
    ("tied", "stored"),
    [
        *((True, s) for s in ("both", "equal", "nearly", "embedding", "head")),
        *((False, s) for s in ("both", "equal", "nearly")),
    ],
)
def test_the_logits_are_those_of_transformers(tmp_path: Path, tied: bool, stored: str, weights: str) -> None:
    path = folder(tmp_path, tied, stored)
    with torch.inference_mode():
        want = AutoModelForCausalLM.from_pretrained(path).eval()(torch.tensor([TOKENS])).logits[0]
    model = ModelCache().load(str(path), weights, "cpu").model
    got = laws.logits(model, TOKENS, [len(TOKENS)])
    alike = float(torch.cosine_similarity(got.flatten(), want.flatten(), 0))
    assert alike > (0.99999 if weights == "dense-fp32" else 0.98)
    assert (model.embedding.head is model.embedding.embed) == (tied and stored in ("equal", "embedding", "head"))


def test_a_head_that_nobody_stored_is_refused(tmp_path: Path) -> None:
    """transformers would make one up at random."""
    path = folder(tmp_path, False, "embedding")
    with pytest.raises(Refused, match=r"lm_head.weight is missing.*tie_word_embeddings"):
        ModelCache().load(str(path), "dense-fp32", "cpu")


def test_an_embedding_that_nobody_stored_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path, False, "head")
    with pytest.raises(Refused, match=r"embed_tokens.weight is missing"):
        ModelCache().load(str(path), "dense-fp32", "cpu")

"""GGUF files: the text of transformers on the same values, exact 4-bit codes, a sentence for every damage."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from llmlab.errors import Refused
from llmlab.models.building import build
from llmlab.models.formats.quantized_groups import GROUP, QuantizedGroups
from llmlab.models.loading.gguf.file import GgufFile
from llmlab.runtime.generate import committed_tokens, generate
from tests import made
from tests.laws import laws


@pytest.mark.parametrize("kind", ["Q4_1", "Q4_0", "Q8_0", "F16"])
def test_the_text_is_that_of_transformers_on_the_same_values(tmp_path: Path, kind: str) -> None:
    reference = made.gguf(tmp_path / "tiny.gguf", kind=kind)
    model = build(GgufFile(tmp_path / "tiny.gguf"), "dense-fp32")
    prompt = list(range(5, 30))
    theirs = reference.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, len(prompt) :]
    assert committed_tokens(list(generate(model, prompt, 20))) == theirs.tolist()


def test_q4_1_keeps_its_exact_values(tmp_path: Path) -> None:
    reference = made.gguf(tmp_path / "tiny.gguf")
    file = GgufFile(tmp_path / "tiny.gguf")
    for name in ("model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        codes = file.get(name)
        assert isinstance(codes, QuantizedGroups)
        assert codes.q.max() <= 15
        assert torch.equal(codes.dense(), reference.state_dict()[name])
    assert "Q8_0 unpacked" in file.source


def test_int4_of_a_q4_1_file_stores_the_file_s_codes(tmp_path: Path) -> None:
    made.gguf(tmp_path / "tiny.gguf")
    file = GgufFile(tmp_path / "tiny.gguf")
    codes = file.get("model.layers.0.self_attn.o_proj.weight")
    assert isinstance(codes, QuantizedGroups)
    stored = build(file, "int4").layers[0].linears()["out"].dense()
    d, m = (x.repeat_interleave(GROUP, 1) for x in (codes.d, codes.m))
    # The kernel takes its scales in bfloat16, so values move a little; the codes that they stand for do not.
    assert torch.equal(((stored - m) / d).round(), codes.q.float())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda b: b"PK\x03\x04" + b[4:], "is not a GGUF file"),
        (lambda b: b[: len(b) // 2], "is damaged or cut short"),
        (lambda b: b[:40], "is damaged or cut short"),
        (lambda b: b"", "is not a GGUF file"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: object, says: str) -> None:
    path = tmp_path / "tiny.gguf"
    made.gguf(path)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(Refused, match=says):
        GgufFile(path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    made.gguf(tmp_path / "tiny.gguf", leave_out="blk.2.ffn_up.weight")
    with pytest.raises(Refused, match=r"model.layers.2.mlp.up_proj.weight is missing"):
        build(GgufFile(tmp_path / "tiny.gguf"), "dense-fp32")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    made.gguf(tmp_path / "tiny.gguf", architecture="mamba")
    with pytest.raises(Refused, match="architecture 'mamba'"):
        GgufFile(tmp_path / "tiny.gguf")


def test_the_reader_passes_over_arrays_and_finds_the_rest(tmp_path: Path) -> None:
    """What the faster reader reads is what gguf's own reads: every scalar, every tensor."""
    import gguf

    from llmlab.models.loading.gguf.file import _reader

    made.gguf(tmp_path / "a.gguf")
    ours, theirs = _reader(tmp_path / "a.gguf"), gguf.GGUFReader(tmp_path / "a.gguf")
    assert list(ours.fields) == list(theirs.fields)
    for name, field in theirs.fields.items():
        if gguf.GGUFValueType.ARRAY not in field.types:
            assert ours.fields[name].contents() == field.contents()
    for a, b in zip(ours.tensors, theirs.tensors, strict=True):
        assert (a.name, a.data_offset) == (b.name, b.data_offset)
        assert np.array_equal(a.data, b.data)


@pytest.mark.parametrize("kind", ["Q4_1", "Q4_0", "Q8_0", "Q5_0", "Q5_1", "F16"])
@pytest.mark.parametrize("weights", ["dense-fp32", "int4"])
def test_tensors_of_every_common_type_load(tmp_path: Path, kind: str, weights: str) -> None:
    reference = made.gguf(tmp_path / "a.gguf", kind=kind)
    file = GgufFile(tmp_path / "a.gguf")
    if kind not in ("Q4_1", "Q4_0", "F16"):
        assert kind in file.source
        assert "unpacked" in file.source, "the page says what has no packed form"
    model = build(file, weights)
    tokens = [5, 9, 2, 77, 31]
    with torch.inference_mode():
        want = reference(torch.tensor([tokens])).logits[0]
    got = laws.logits(model, tokens, [5])
    alike = float(torch.cosine_similarity(got.flatten(), want.flatten(), 0))
    assert alike > (0.99999 if weights == "dense-fp32" else 0.9)


def q6_k(block: bytes) -> list[float]:
    """The 256 values of a Q6_K block (ggml-quants.c): 4 low and 2 high bits each, a signed byte of scale for 16."""
    low, high, scales = block[:128], block[128:192], struct.unpack("16b", block[192:208])
    (d,) = struct.unpack("<e", block[208:])
    out = [0.0] * 256
    for i in range(256):
        half, quarter, at = i // 128, i % 128 // 32, i % 32
        nibble = low[64 * half + 32 * (quarter % 2) + at] >> (4 * (quarter // 2)) & 15
        two = high[32 * half + at] >> (2 * quarter) & 3
        out[i] = d * scales[i // 16] * ((nibble | two << 4) - 32)
    return out


def q5_k(block: bytes) -> list[float]:
    """The 256 values of a Q5_K block: 4 low bits and 1 high bit each, 6 bits of scale and of minimum for 32."""
    d, least = struct.unpack("<2e", block[:4])
    packed, high, low = block[4:16], block[16:48], block[48:]
    out = [0.0] * 256
    for i in range(256):
        part, at = divmod(i, 32)
        if part < 4:
            scale, minimum = packed[part] & 63, packed[part + 4] & 63
        else:
            scale = packed[part + 4] & 15 | packed[part - 4] >> 6 << 4
            minimum = packed[part + 4] >> 4 | packed[part] >> 6 << 4
        nibble = low[32 * (part // 2) + at] >> (4 * (part % 2)) & 15
        out[i] = d * scale * (nibble | (high[at] >> part & 1) << 4) - least * minimum
    return out


@pytest.mark.parametrize(("kind", "size", "values"), [("Q6_K", 210, q6_k), ("Q5_K", 176, q5_k)])
def test_k_quants_unpack_to_their_values(tmp_path: Path, kind: str, size: int, values: Callable) -> None:
    import gguf

    dice = random.Random(3)
    blocks = [bytearray(dice.randbytes(size)) for _ in range(6)]
    for block in blocks:  # halves that are no numbers would make the comparison empty
        block[slice(208, 210) if kind == "Q6_K" else slice(0, 4)] = struct.pack("<e", dice.uniform(0.001, 0.01)) * (
            1 if kind == "Q6_K" else 2
        )
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    raw = np.frombuffer(b"".join(blocks), np.uint8).reshape(3, 2 * size)
    writer.add_tensor("blk.0.ffn_down.weight", raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "k.gguf")
    assert f"{kind} unpacked" in file.source
    got = file.get("model.layers.0.mlp.down_proj.weight")
    want = torch.tensor([v for block in blocks for v in values(bytes(block))]).view(3, 512)
    assert torch.allclose(got, want, atol=1e-6)
    assert got.unique().numel() > 100


def test_a_tokenizer_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmlab.models.loading.sources import locate
    from llmlab.models.loading.tokens.tokenizers import read_tokenizer

    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache"))
    made.gguf(tmp_path / "a.gguf")
    found = locate.find(str(tmp_path / "a.gguf"))
    first = read_tokenizer(found)
    (kept,) = (tmp_path / "cache" / "tokenizers").iterdir()
    again = read_tokenizer(found)
    assert again.get_vocab() == first.get_vocab()
    assert again("the tea")["input_ids"] == first("the tea")["input_ids"]
    (kept / "tokenizer.json").write_text("{")
    assert read_tokenizer(found).get_vocab() == first.get_vocab(), "a damaged one is made anew"

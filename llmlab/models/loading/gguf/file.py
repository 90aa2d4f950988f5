"""GGUF files: their config, and their tensors under Hugging Face's names. Q4_1 and Q4_0 keep their exact 4-bit values.

The format is llama.cpp's (docs/gguf.md of ggml-org/ggml); the gguf package parses it and unpacks the other kinds.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmlab.errors import Refused
from llmlab.models.formats.quantized_groups import GROUP, Matrix, QuantizedGroups, pick_rows
from llmlab.models.loading.gguf.config import AGAIN, FACTORS, Metadata, config_from
from llmlab.models.loading.gguf.split import parts_of

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Those that our decoder runs; Mistral files call themselves llama."""
ONCE = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}
ONCE |= {"output_norm.weight": "model.norm.weight", "rope_freqs.weight": "rope_freqs"}
PER_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_TURNED = re.compile(r"\.[qk]_proj\.(weight|bias)$")
IGNORED = ("attn_rot_embd",)
"""Tensors that llama.cpp skips too (MODEL_TENSOR_SKIP of gguf's constants.py): what they hold is computed."""


def _told_elsewhere(name: str) -> bool:
    """Whether a tensor's values are in the config, or are of no use."""
    return name in FACTORS.values() or any(part in IGNORED for part in name.split("."))


def _renamed(name: str) -> str | None:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; None for one that no family has."""
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in PER_LAYER:
        return f"model.layers.{parts[1]}.{PER_LAYER[parts[2]]}.{parts[3]}"
    return ONCE.get(name)


def _reader(path: Path) -> Any:
    """gguf's reader, which passes over arrays: half of a start went into a vocabulary that only the tokenizer wants."""
    from gguf import GGUFReader, GGUFValueType

    class Reader(GGUFReader):
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type != GGUFValueType.ARRAY or self.byte_order == "S":
                return super()._get_field_parts(orig_offs, raw_type)
            held = self.data.data
            kind, count = struct.unpack_from("<IQ", held, orig_offs)
            kind, end = GGUFValueType(kind), orig_offs + 12
            if kind in self.gguf_scalar_to_np:
                end += count * np.dtype(self.gguf_scalar_to_np[kind]).itemsize
            elif kind == GGUFValueType.STRING:
                for _ in range(count):
                    end += 8 + struct.unpack_from("<Q", held, end)[0]
            else:
                return super()._get_field_parts(orig_offs, raw_type)
            if end > len(self.data):
                raise ValueError("an array reaches beyond the end of the file")
            return end - orig_offs, [self.data[orig_offs:end]], [0], [GGUFValueType.ARRAY, kind]

    return Reader(path)


class GgufFile:
    """A GGUF file, or all parts of a split one, as a Checkpoint. `path` may be any of the parts.

    Raises Refused for what is no GGUF file, is cut short, misses a part, is of an architecture that our decoder does
    not run, or has metadata that ask for what the lab does not build (`gguf.config`).
    """

    literal = True

    def __init__(self, path: Path) -> None:
        self.parts = parts_of(path)
        self.path = self.parts[0]
        self.source = f"GGUF file {self.path.name}" + (f" and {n} more parts" if (n := len(self.parts) - 1) else "")
        readers = [_opened(part) for part in self.parts]
        _require_parts(readers, self.parts)
        self._tensors = {t.name: t for reader in readers for t in reader.tensors}
        shapes = {name: tuple(int(n) for n in t.shape) for name, t in self._tensors.items()}
        self._metadata = Metadata(readers[0], self.path.name, shapes)
        who, kind = self._metadata.who, self._metadata.plain("general.type", str, "model")
        if kind != "model":
            raise Refused(who, f"holds no model but its {kind[:20]}", "Choose the file of the model itself")
        self.architecture = self._metadata.plain("general.architecture", str)
        self._metadata.architecture = self.architecture
        if self.architecture not in ARCHITECTURES:
            raise Refused(
                who,
                f"holds a model of the architecture {self.architecture[:30]!r}",
                f"Choose one of {', '.join(ARCHITECTURES)}, or the same model as safetensors",
            )
        kinds = sorted({t.tensor_type.name for t in self._tensors.values()} - {"F32", "F16", "BF16", "Q4_1", "Q4_0"})
        if kinds:
            self.source += f" ({', '.join(kinds)} unpacked to float32 first)"

    @cached_property
    def config(self) -> Any:
        """The transformers config that the metadata amounts to."""
        factors = {which: self._dense(name).tolist() for which, name in FACTORS.items() if name in self._tensors}
        return config_from(self._metadata, factors)

    @cached_property
    def _names(self) -> dict[str, str]:
        """Hugging Face's name of every tensor that is not in the config already; GGUF's own where there is none."""
        return {_renamed(name) or name: name for name in self._tensors if not _told_elsewhere(name)}

    def names(self) -> Iterable[str]:
        return self._names

    def _dense(self, name: str) -> torch.Tensor:
        """A tensor under its GGUF name, unpacked. Raises Refused for a kind that cannot be."""
        from gguf import dequantize

        t = self._tensors[name]
        try:
            shape = tuple(int(n) for n in reversed(t.shape))
            return torch.tensor(dequantize(t.data, t.tensor_type), dtype=torch.float32).view(shape)
        except NotImplementedError as e:
            raise Refused(
                f"The tensor {name}", f"is stored as {t.tensor_type.name}, which is unknown here", AGAIN
            ) from e

    def get(self, name: str) -> Matrix:
        """Raises Refused for a tensor that is missing or of a kind that cannot be unpacked."""
        from gguf import GGMLQuantizationType as Kind

        if name not in self._names:
            raise Refused(f"The tensor {name}", f"is missing from {self.path.name}", AGAIN)
        t = self._tensors[self._names[name]]
        codes = t.tensor_type in (Kind.Q4_1, Kind.Q4_0)
        value: Matrix = _codes(t.data, t.tensor_type == Kind.Q4_1) if codes else self._dense(self._names[name])
        if self.architecture == "llama" and _TURNED.search(name):  # its bias too: convert_hf_to_gguf.py permutes both
            heads = self.config.num_attention_heads if ".q_proj." in name else self.config.num_key_value_heads
            return _halves(value, heads, name)
        return value


def _opened(path: Path) -> Any:
    """A part's header. Raises Refused for what is no GGUF file or is damaged."""
    who = f"The file {path.name}"
    try:
        with open(path, "rb") as f:
            magic = f.read(4)
    except OSError as e:
        raise Refused(who, f"cannot be read ({type(e).__name__})", "Check the path") from e
    if magic != b"GGUF":
        raise Refused(who, "is not a GGUF file: it does not begin with GGUF", AGAIN)
    try:
        return _reader(path)
    except Exception as e:  # the parser meets a damaged file with errors of many kinds
        raise Refused(who, "is damaged or cut short", AGAIN) from e


def _require_parts(readers: list[Any], parts: tuple[Path, ...]) -> None:
    """Raise Refused unless the parts belong together: `split.no`, `split.count` and `split.tensors.count` say so."""

    def said(reader: Any, key: str, default: int) -> int:
        field = reader.get_field(key)
        value = default if field is None else field.contents()
        if not isinstance(value, int):
            raise Refused(f"The file {parts[0].name}", f"gives its {key} as something else than a number", AGAIN)
        return value

    whole, total = f"the model of {parts[0].name}", said(readers[0], "split.tensors.count", 0)
    if len(parts) == 1:
        if said(readers[0], "split.count", 1) > 1:
            number, count = said(readers[0], "split.no", 0) + 1, said(readers[0], "split.count", 1)
            why = f"is part {number} of {count} of a model, and its name does not say so"
            raise Refused(f"The file {parts[0].name}", why, f"Name the parts NAME-{number:05}-of-{count:05}.gguf")
        return
    seen: dict[str, str] = {}
    for i, (reader, part) in enumerate(zip(readers, parts, strict=True)):
        number, count = said(reader, "split.no", -1), said(reader, "split.count", -1)
        if (number, count) != (i, len(parts)) or said(reader, "split.tensors.count", total) != total:
            raise Refused(
                f"The file {part.name}",
                f"is no part of {whole}, though its name says so: it calls itself part {number + 1} of {count}",
                "Fetch all parts of one model again",
            )
        for t in reader.tensors:
            if t.name in seen:
                raise Refused(f"The file {part.name}", f"holds {t.name}, as {seen[t.name]} does", AGAIN)
            seen[t.name] = part.name
    if total and len(seen) != total:
        why = f"hold {len(seen)} tensors together where {total} are announced, so one is of another model"
        raise Refused(f"The parts of {parts[0].name}", why, "Fetch all parts of one model again")


def _codes(blocks: np.ndarray, minimum: bool) -> QuantizedGroups:
    """(N, bytes) of Q4_1 or Q4_0 blocks: d float16, m float16 (Q4_1 only), then 16 bytes, low nibbles first."""
    head = 4 if minimum else 2
    raw = np.ascontiguousarray(blocks).reshape(blocks.shape[0], -1, head + GROUP // 2)
    scales = torch.from_numpy(raw[:, :, :head].copy().view(np.float16).astype(np.float32))  # (N, K/32, 1 or 2)
    nibbles = torch.from_numpy(raw[:, :, head:].copy())
    q = torch.cat([nibbles & 15, nibbles >> 4], -1).flatten(1)
    d = scales[..., 0]
    return QuantizedGroups(q, d.contiguous(), (scales[..., 1] if minimum else -8 * d).contiguous())


def _halves(weight: Matrix, heads: int, name: str) -> Matrix:
    """Undo the order in which llama files keep the rows of q and k: pairs (x₀, y₀, x₁, …) back to halves (x₀…, y₀…)."""
    rows = weight.shape[0]
    if rows % (2 * heads):
        raise Refused(f"The tensor {name}", f"has {rows} rows, which {heads} heads cannot share", AGAIN)
    order = torch.arange(rows).view(heads, rows // heads // 2, 2).transpose(1, 2).reshape(-1)
    return pick_rows(weight, order)

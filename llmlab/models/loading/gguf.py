"""GGUF files: their config, and their tensors under Hugging Face's names. Q4_1 and Q4_0 keep their exact 4-bit values.

The format is llama.cpp's (docs/gguf.md of ggml-org/ggml); the gguf package parses it and unpacks the other kinds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmlab.errors import Refused
from llmlab.models.formats.quantized_groups import GROUP, Matrix, QuantizedGroups, pick_rows

AGAIN = "Fetch the file again or choose another"
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


def _renamed(name: str) -> str | None:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; None for a tensor that no family uses."""
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
    """A GGUF file as a Checkpoint.

    Raises Refused for what is no GGUF file, is cut short, is of an architecture that our decoder does not run, or
    misses a figure of its config.
    """

    literal = True

    def __init__(self, path: Path) -> None:
        self.path, self.source = path, f"GGUF file {path.name}"
        who = f"The file {path.name}"
        try:
            with open(path, "rb") as f:
                magic = f.read(4)
        except OSError as e:
            raise Refused(who, f"cannot be read ({type(e).__name__})", "Check the path") from e
        if magic != b"GGUF":
            raise Refused(who, "is not a GGUF file: it does not begin with GGUF", AGAIN)
        try:
            self._reader = _reader(path)
            self._tensors = {t.name: t for t in self._reader.tensors}
        except Exception as e:  # the parser meets a damaged file with errors of many kinds
            raise Refused(who, "is damaged or cut short", AGAIN) from e
        self.architecture = self._read("general.architecture", str)
        if self.architecture not in ARCHITECTURES:
            raise Refused(
                who,
                f"holds a model of the architecture {self.architecture[:30]!r}",
                f"Choose one of {', '.join(ARCHITECTURES)}, or the same model as safetensors",
            )
        kinds = sorted({t.tensor_type.name for t in self._tensors.values()} - {"F32", "F16", "BF16", "Q4_1", "Q4_0"})
        if kinds:
            self.source += f" ({', '.join(kinds)} unpacked to float32 first)"

    def _read(self, key: str, kind: type, default: Any = None) -> Any:
        field = self._reader.get_field(key)
        value = default if field is None else field.contents()
        if value is None or not isinstance(value, (int, float) if kind is float else kind):
            raise Refused(f"The file {self.path.name}", f"does not say its {key}", AGAIN)
        return value

    @cached_property
    def config(self) -> Any:
        """The transformers config that the metadata amounts to."""
        from transformers import AutoConfig

        def read(key: str, kind: type = int, default: Any = None) -> Any:
            return self._read(f"{self.architecture}.{key}", kind, default)

        heads, width = read("attention.head_count"), read("embedding_length")
        table = self._tensors.get("token_embd.weight")
        if table is None or not heads:
            raise Refused(f"The file {self.path.name}", "misses its embedding table", AGAIN)
        scaling = None
        if self._reader.get_field(f"{self.architecture}.rope.scaling.type") is not None:
            kind = read("rope.scaling.type", str)
            if kind not in ("none", "linear"):
                raise Refused(f"The file {self.path.name}", f"scales its positions by the {kind[:20]} rule", AGAIN)
            if kind == "linear":
                scaling = {"rope_type": "linear", "factor": read("rope.scaling.factor", float)}
        rope = {"rope_type": "default", "rope_theta": read("rope.freq_base", float, 10000.0)} | (scaling or {})
        return AutoConfig.for_model(
            self.architecture,
            vocab_size=int(table.shape[1]),
            hidden_size=width,
            intermediate_size=read("feed_forward_length"),
            num_hidden_layers=read("block_count"),
            num_attention_heads=heads,
            num_key_value_heads=read("attention.head_count_kv", default=heads),
            head_dim=read("attention.key_length", default=width // heads),
            max_position_embeddings=read("context_length"),
            rms_norm_eps=read("attention.layer_norm_rms_epsilon", float),
            rope_parameters=rope,
            tie_word_embeddings="output.weight" not in self._tensors,
            bos_token_id=self._token("bos"),
            eos_token_id=self._token("eos"),
            pad_token_id=None,
        )

    def _token(self, name: str) -> int | None:
        field = self._reader.get_field(f"tokenizer.ggml.{name}_token_id")
        return None if field is None else int(field.contents())

    @cached_property
    def _names(self) -> dict[str, str]:
        return {renamed: name for name in self._tensors if (renamed := _renamed(name))}

    def names(self) -> Iterable[str]:
        return self._names

    def get(self, name: str) -> Matrix:
        """Raises Refused for a tensor that is missing or of a kind that cannot be unpacked."""
        from gguf import GGMLQuantizationType as Kind
        from gguf import dequantize

        if name not in self._names:
            raise Refused(f"The tensor {name}", f"is missing from {self.path.name}", AGAIN)
        t = self._tensors[self._names[name]]
        if t.tensor_type in (Kind.Q4_1, Kind.Q4_0):
            value: Matrix = _codes(t.data, t.tensor_type == Kind.Q4_1)
        else:
            try:
                shape = tuple(int(n) for n in reversed(t.shape))
                value = torch.tensor(dequantize(t.data, t.tensor_type), dtype=torch.float32).view(shape)
            except NotImplementedError as e:
                raise Refused(
                    f"The tensor {name}", f"is stored as {t.tensor_type.name}, which is unknown here", AGAIN
                ) from e
        if self.architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = self.config.num_attention_heads if "q_proj" in name else self.config.num_key_value_heads
            return _halves(value, heads)
        return value


def _codes(blocks: np.ndarray, minimum: bool) -> QuantizedGroups:
    """(N, bytes) of Q4_1 or Q4_0 blocks: d float16, m float16 (Q4_1 only), then 16 bytes, low nibbles first."""
    head = 4 if minimum else 2
    raw = np.ascontiguousarray(blocks).reshape(blocks.shape[0], -1, head + GROUP // 2)
    scales = torch.from_numpy(raw[:, :, :head].copy().view(np.float16).astype(np.float32))  # (N, K/32, 1 or 2)
    nibbles = torch.from_numpy(raw[:, :, head:].copy())
    q = torch.cat([nibbles & 15, nibbles >> 4], -1).flatten(1)
    d = scales[..., 0]
    return QuantizedGroups(q, d.contiguous(), (scales[..., 1] if minimum else -8 * d).contiguous())


def _halves(weight: Matrix, heads: int) -> Matrix:
    """Undo the order in which llama files keep the rows of q and k: pairs (x₀, y₀, x₁, …) back to halves (x₀…, y₀…)."""
    rows = weight.shape[0]
    order = torch.arange(rows).view(heads, rows // heads // 2, 2).transpose(1, 2).reshape(-1)
    return pick_rows(weight, order)

"""What a GGUF file's metadata amounts to: the transformers config of its model, or a refusal that names the key.

The keys are those of gguf-py's constants.py; what they mean, and what holds where they are absent, is in llama.cpp's
`llama_model::load_hparams` (llama-model.cpp) and `ggml_rope_ext` (ggml.h).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from llmlab.errors import Refused
from llmlab.models.config import DEEPEST

AGAIN = "Fetch the file again or choose another"
ELSEWHERE = "Choose the same model as safetensors, or another file"
FACTORS = {"long": "rope_factors_long.weight", "short": "rope_factors_short.weight"}
READ = frozenset(
    """
context_length embedding_length block_count feed_forward_length vocab_size attention.head_count attention.head_count_kv
attention.layer_norm_rms_epsilon attention.layer_norm_epsilon attention.key_length attention.value_length
attention.sliding_window rope.freq_base rope.dimension_count rope.scale_linear rope.scaling.type rope.scaling.factor
rope.scaling.original_context_length rope.scaling.attn_factor rope.scaling.yarn_log_multiplier
rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow
""".split()  # noqa: SIM905
)
HARMLESS = frozenset(
    """
tensor_data_layout rope.scaling.finetuned expert_used_count expert_weights_scale expert_weights_norm
expert_gating_func leading_dense_block_count pooling_type rescale_every_n_layers embedding_length_out
""".split()  # noqa: SIM905
)
"""Keys that change nothing where there are no experts, or that say how the file was made."""
NEUTRAL = {
    "logit_scale": 1.0,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
    "attention.output_scale": 1.0,
    "attention.causal": True,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.alpha": 1.0,
}
"""Values, beside zero, at which a key that is not read changes nothing."""


@cache
def _defined() -> frozenset[str]:
    """The keys of an architecture that llama.cpp gives a meaning, without the architecture."""
    from gguf.constants import Keys

    def templates(of: type) -> Iterator[str]:
        for value in vars(of).values():
            if isinstance(value, type):
                yield from templates(value)
            elif isinstance(value, str) and value.startswith("{arch}."):
                yield value.removeprefix("{arch}.")

    return frozenset(templates(Keys))


class Metadata:
    """The key-value pairs of a GGUF file, each checked as it is read. `tensors`: shapes by name, widths first."""

    def __init__(self, reader: Any, file: str, tensors: dict[str, tuple[int, ...]]) -> None:
        self._reader, self.who, self.tensors = reader, f"The file {file}", tensors
        self.architecture = ""

    def plain(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of a key. Raises Refused where it is missing, without a default, or of another kind."""
        field = self._reader.get_field(key)
        value = default if field is None else self._value(field)
        if isinstance(value, list):
            if len(set(value)) != 1:
                why = f"gives its {key} layer by layer, and they differ, which is not built"
                raise Refused(self.who, why, ELSEWHERE)
            value = value[0]
        if (
            value is None
            or not isinstance(value, (int, float) if kind is float else kind)
            or (isinstance(value, bool) and kind is not bool)
        ):
            raise Refused(self.who, f"does not say its {key}", AGAIN)
        if isinstance(value, float) and not math.isfinite(value):
            raise Refused(self.who, f"gives its {key} as {value}", AGAIN)
        return value

    def _value(self, field: Any) -> Any:
        """A field's value; of an array of numbers, all of them."""
        from gguf import GGUFReader, GGUFValueType

        if not field.types or field.types[0] != GGUFValueType.ARRAY:
            return field.contents()
        kind = GGUFReader.gguf_scalar_to_np.get(field.types[-1])
        raw = field.parts[-1]
        if kind is None or raw.dtype != np.uint8 or raw.nbytes < 12:  # of strings, or read by gguf's own reader
            return None if kind is None else field.contents()
        return raw[12:].view(np.dtype(kind)).tolist()

    def read(self, key: str, kind: type = int, default: Any = None) -> Any:
        return self.plain(f"{self.architecture}.{key}", kind, default)

    def has(self, key: str) -> bool:
        return self._reader.get_field(f"{self.architecture}.{key}") is not None

    def positive(self, key: str, kind: type = int, default: Any = None) -> Any:
        """As `read`, for what must be larger than zero."""
        value = self.read(key, kind, default)
        if value <= 0:
            raise Refused(self.who, f"gives its {self.architecture}.{key} as {value}", AGAIN)
        return value

    def refuse(self, key: str, value: object, why: str = "which the lab does not build") -> Refused:
        said = f"{value:.4g}" if isinstance(value, float) else str(value)[:20]
        return Refused(self.who, f"says {self.architecture}.{key} = {said}, {why}", ELSEWHERE)

    def require_known(self) -> None:
        """Raise Refused for a key that llama.cpp gives a meaning and that nothing here reads, unless it is idle."""
        usual = {*READ, *HARMLESS, "attention.scale"}
        at = f"{self.architecture}."
        for name, field in self._reader.fields.items():
            key = name.removeprefix(at)
            if key == name or key in usual or key not in _defined():
                continue
            value = self._value(field)
            neutral = NEUTRAL.get(key, False)
            zero = not any(value) if isinstance(value, list) else not value
            if value != neutral and (not zero or neutral is True):
                raise self.refuse(key, value)

    def token(self, name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        return None if self._reader.get_field(key) is None else int(self.plain(key, int))


def config_from(meta: Metadata, factors: dict[str, list[float]]) -> Any:
    """The transformers config. `factors`: the values of the tensors in FACTORS, by "long" and "short"."""
    from transformers import AutoConfig

    meta.require_known()
    heads, width = meta.positive("attention.head_count"), meta.positive("embedding_length")
    kv_heads = meta.positive("attention.head_count_kv", default=heads)
    if heads % kv_heads:
        raise meta.refuse("attention.head_count_kv", kv_heads, f"which does not divide its {heads} heads")
    head_size, layers = _head_size(meta, width, heads), meta.positive("block_count")
    if layers > DEEPEST:
        raise meta.refuse("block_count", layers, "which nothing has")
    kind, window = _window(meta)
    biases = {f"{part}_bias": f"blk.0.{name}.bias" in meta.tensors for part, name in _BIASES.items()}
    try:
        return AutoConfig.for_model(
            kind,
            vocab_size=_vocabulary(meta),
            hidden_size=width,
            intermediate_size=meta.positive("feed_forward_length"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_size,
            max_position_embeddings=meta.positive("context_length"),
            rms_norm_eps=meta.positive("attention.layer_norm_rms_epsilon", float),
            rope_parameters=_rotation(meta, head_size, factors),
            tie_word_embeddings="output.weight" not in meta.tensors,
            bos_token_id=meta.token("bos"),
            eos_token_id=meta.token("eos"),
            pad_token_id=None,
            **window,
            **{name: True for name, there in biases.items() if there and meta.architecture != "qwen2"},
        )
    except Refused:
        raise
    except Exception as e:  # transformers checks some sizes against each other
        said = [line.strip() for line in str(e).splitlines() if line.strip()]
        why = f"gives sizes that do not go together: {said[-1][:120] if said else type(e).__name__}"
        raise Refused(meta.who, why, ELSEWHERE) from e


_BIASES = {"attention": "attn_q", "mlp": "ffn_up"}


def _vocabulary(meta: Metadata) -> int:
    table = meta.tensors.get("token_embd.weight")
    if table is None or len(table) != 2:
        raise Refused(meta.who, "misses its embedding table", AGAIN)
    said = meta.read("vocab_size", default=table[1])
    if said != table[1]:
        raise meta.refuse("vocab_size", said, f"and its embedding table has {table[1]} rows")
    return table[1]


def _head_size(meta: Metadata, width: int, heads: int) -> int:
    size: int = meta.positive("attention.key_length", default=width // heads or 1)
    value = meta.positive("attention.value_length", default=size)
    if value != size:
        raise meta.refuse("attention.value_length", value, f"where keys have {size}, which is not built")
    scale = meta.read("attention.scale", float, 0.0)
    if scale and not math.isclose(scale, size**-0.5, rel_tol=1e-4):
        raise meta.refuse("attention.scale", scale, f"not 1/√{size}, which is not built")
    return size


def _window(meta: Metadata) -> tuple[str, dict[str, Any]]:
    """The transformers family, and what it is told of a window: Mistral is the llama with one."""
    window = meta.read("attention.sliding_window", default=0)
    if window <= 0:
        return meta.architecture, {}
    if meta.architecture == "llama":
        return "mistral", {"sliding_window": window}
    return meta.architecture, {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}


def _rotation(meta: Metadata, head_size: int, factors: dict[str, list[float]]) -> dict[str, Any]:
    """transformers' `rope_parameters`."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": meta.positive("rope.freq_base", float, 10000.0)}
    turned = meta.positive("rope.dimension_count", default=head_size)
    if turned != head_size:
        # llama.cpp refuses this for llama too: the order of a llama file's rows has no meaning for it.
        if turned > head_size or turned % 2 or meta.architecture == "llama":
            raise meta.refuse("rope.dimension_count", turned, f"where heads have {head_size}")
        rope["partial_rotary_factor"] = turned / head_size
    if factors:
        return rope | _longrope(meta, factors, turned)
    kind = meta.read("rope.scaling.type", str, "linear")
    # 0 is how llama.cpp says that there is none.
    factor = meta.read("rope.scaling.factor", float, meta.read("rope.scale_linear", float, 0.0)) or 1.0
    if factor < 0:
        raise meta.refuse("rope.scaling.factor", factor)
    if kind == "longrope":
        raise meta.refuse("rope.scaling.type", kind, f"and holds no {FACTORS['long']} and {FACTORS['short']}")
    if kind not in ("none", "linear", "yarn"):
        raise meta.refuse("rope.scaling.type", kind)
    attention = meta.read("rope.scaling.attn_factor", float, 1.0)
    if kind == "yarn":
        return rope | _yarn(meta, factor, attention)
    if attention != 1.0:
        raise meta.refuse("rope.scaling.attn_factor", attention, f"and its positions are scaled by the {kind} rule")
    return rope if kind == "none" or factor == 1.0 else rope | {"rope_type": "linear", "factor": factor}


def _yarn(meta: Metadata, factor: float, attention: float) -> dict[str, Any]:
    """YaRN (arXiv 2309.00071). llama.cpp multiplies its factor of attention by `attn_factor`, and divides it by that
    of `yarn_log_multiplier` where there is one."""

    def scale(multiplier: float) -> float:
        return 0.1 * multiplier * math.log(factor) + 1.0 if factor > 1 else 1.0

    original = meta.positive("rope.scaling.original_context_length", default=meta.positive("context_length"))
    multiplier = meta.read("rope.scaling.yarn_log_multiplier", float, 0.0)
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "attention_factor": attention * scale(1.0) / (scale(multiplier) if multiplier else 1.0),
        "beta_fast": meta.positive("rope.scaling.yarn_beta_fast", float, 32.0),
        "beta_slow": meta.positive("rope.scaling.yarn_beta_slow", float, 1.0),
    }


def _longrope(meta: Metadata, factors: dict[str, list[float]], turned: int) -> dict[str, Any]:
    """LongRoPE (arXiv 2402.13753): divisors for texts up to the original context, and for longer ones."""
    kind = meta.read("rope.scaling.type", str, "longrope")
    if kind == "yarn" or "rope_freqs.weight" in meta.tensors:
        raise Refused(meta.who, "scales its positions by two rules at once, rope_factors beside another", ELSEWHERE)
    for which, name in FACTORS.items():
        if len(factors.get(which, ())) != turned // 2:
            raise Refused(meta.who, f"holds no {name} of {turned // 2} numbers", AGAIN)
    factor = meta.read("rope.scaling.factor", float, meta.read("rope.scale_linear", float, 0.0)) or 1.0
    if factor != 1.0:
        raise meta.refuse("rope.scaling.factor", factor, "besides its rope_factors, which is not built")
    return {
        "rope_type": "longrope",
        "long_factor": factors["long"],
        "short_factor": factors["short"],
        "original_max_position_embeddings": meta.positive(
            "rope.scaling.original_context_length", default=meta.positive("context_length")
        ),
        "attention_factor": meta.positive("rope.scaling.attn_factor", float, 1.0),
    }

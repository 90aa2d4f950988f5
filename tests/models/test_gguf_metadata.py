"""GGUF metadata: every key that llama.cpp gives a meaning is followed, or refused by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from llmlab.errors import Refused
from llmlab.lab.model_cache import ModelCache
from llmlab.models.building import build
from llmlab.models.loading.gguf.file import PER_LAYER, GgufFile
from llmlab.models.loading.sources import locate
from tests import made
from tests.laws import laws

SIZES: dict[str, Any] = {
    **{"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256},
    **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
}
CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
TOKENS = list(range(3, 60, 2))


def reference(kind: str = "llama", **more: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](**SIZES, **more)).float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(
                1 if "norm" in name else 0, 1.0 if "embed" in name else 0.3 if p.dim() < 2 else p.shape[-1] ** -0.5
            )
    return model


def ours(name: str) -> str:
    """A tensor's GGUF name."""
    once = {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}
    stem, _, kind = name.rpartition(".")
    if stem in once:
        return f"{once[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{ {v: k for k, v in PER_LAYER.items()}[part] }.{kind}"


def write(
    path: Path,
    model: Any,
    architecture: str = "llama",
    keys: Callable[[gguf.GGUFWriter], object] = lambda w: None,
    tensors: dict[str, Sequence[float]] | None = None,
    leave_out: Sequence[str] = (),
    **split: Any,
) -> Path:
    """A GGUF file as convert_hf_to_gguf.py writes it, in float32; `keys` adds metadata."""
    c, writer = model.config, gguf.GGUFWriter(path, architecture, **split)
    usual: dict[str, Callable[[], None]] = {
        "context_length": lambda: writer.add_context_length(c.max_position_embeddings),
        "embedding_length": lambda: writer.add_embedding_length(c.hidden_size),
        "block_count": lambda: writer.add_block_count(c.num_hidden_layers),
        "feed_forward_length": lambda: writer.add_feed_forward_length(c.intermediate_size),
        "head_count": lambda: writer.add_head_count(c.num_attention_heads),
        "head_count_kv": lambda: writer.add_head_count_kv(c.num_key_value_heads),
        "eps": lambda: writer.add_layer_norm_rms_eps(c.rms_norm_eps),
        "rope": lambda: writer.add_rope_freq_base(c.rope_parameters["rope_theta"]),
    }
    for name, add in usual.items():
        if name not in leave_out:
            add()
    keys(writer)
    for name, value in model.state_dict().items():
        array = value.numpy().copy()
        for part, heads in (("q_proj", c.num_attention_heads), ("k_proj", c.num_key_value_heads)):
            if part in name and architecture == "llama":  # LlamaModel.permute, which biases pass through as well
                array = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(ours(name), array)
    for name, numbers in (tensors or {}).items():
        writer.add_tensor(name, np.array(numbers, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def same(path: Path, model: Any) -> bool:
    with torch.inference_mode():
        want = model(torch.tensor([TOKENS])).logits[0]
    got = laws.logits(build(GgufFile(path), "dense-fp32"), TOKENS, [len(TOKENS)])
    return torch.allclose(got, want, atol=2e-4, rtol=1e-3)


def yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(64)


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
FOLLOWED: dict[str, tuple[str, str, dict[str, Any], Callable[[gguf.GGUFWriter], object]]] = {
    "plain": ("llama", "llama", {}, lambda w: None),
    "linear": (
        *("llama", "llama", {"rope_parameters": LINEAR}),
        lambda w: (w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR), w.add_rope_scaling_factor(2.0)),
    ),
    "a factor without a type": (
        "llama",
        "llama",
        {"rope_parameters": LINEAR},
        lambda w: w.add_rope_scaling_factor(2.0),
    ),
    "the old key": (
        *("llama", "llama", {"rope_parameters": LINEAR}),
        lambda w: w.add_float32("llama.rope.scale_linear", 2.0),
    ),
    "the old key of another": (
        *("qwen2", "qwen2", {"rope_parameters": LINEAR}),
        lambda w: w.add_float32("qwen2.rope.scale_linear", 2.0),
    ),
    "the old key beside the new": (
        *("llama", "llama", {"rope_parameters": LINEAR}),
        lambda w: (w.add_float32("llama.rope.scale_linear", 8.0), w.add_rope_scaling_factor(2.0)),
    ),
    "a factor of none": ("llama", "llama", {}, lambda w: w.add_float32("llama.rope.scale_linear", 0.0)),
    "none, whatever the factor": (
        *("llama", "llama", {}),
        lambda w: (w.add_rope_scaling_type(gguf.RopeScalingType.NONE), w.add_rope_scaling_factor(2.0)),
    ),
    "yarn": ("llama", "llama", {"rope_parameters": YARN}, yarn),
    "yarn of another": ("qwen3", "qwen3", {"rope_parameters": YARN}, yarn),
    "yarn's betas": (
        *("llama", "llama", {"rope_parameters": {**YARN, "beta_fast": 8.0, "beta_slow": 2.0}}),
        lambda w: (yarn(w), w.add_rope_scaling_yarn_beta_fast(8.0), w.add_rope_scaling_yarn_beta_slow(2.0)),
    ),
    "yarn's factor of attention": (
        *("llama", "llama", {"rope_parameters": {**YARN, "attention_factor": 1.5 * (1 + 0.1 * float(np.log(4)))}}),
        lambda w: (yarn(w), w.add_rope_scaling_attn_factors(1.5)),
    ),
    "yarn's multiplier": (
        *("llama", "llama", {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}}),
        lambda w: (yarn(w), w.add_rope_scaling_yarn_log_mul(0.5)),
    ),
    "a window": ("mistral", "llama", {"sliding_window": 7}, lambda w: w.add_sliding_window(7)),
    "a window of qwen2": (
        *("qwen2", "qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0}),
        lambda w: w.add_sliding_window(7),
    ),
    "no window": ("llama", "llama", {}, lambda w: w.add_sliding_window(0)),
    "lengths": ("llama", "llama", {}, lambda w: (w.add_key_length(16), w.add_value_length(16), w.add_vocab_size(96))),
    "all of a head turned": ("llama", "llama", {}, lambda w: w.add_rope_dimension_count(16)),
    "the usual scale": ("llama", "llama", {}, lambda w: w.add_attention_scale(0.25)),
    "scales of one": ("llama", "llama", {}, lambda w: (w.add_logit_scale(1.0), w.add_residual_scale(1.0))),
    "no experts": ("llama", "llama", {}, lambda w: (w.add_expert_count(0), w.add_expert_used_count(0))),
    "a key of somebody's own": ("llama", "llama", {}, lambda w: w.add_string("llama.my_note", "hello")),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_key_is_followed_as_transformers_does(tmp_path: Path, name: str) -> None:
    kind, architecture, settings, keys = FOLLOWED[name]
    model = reference(kind, **settings)
    assert same(write(tmp_path / "a.gguf", model, architecture, keys), model)


def test_heads_layer_by_layer_are_read_where_they_agree(tmp_path: Path) -> None:
    model = reference()
    path = write(
        *(tmp_path / "a.gguf", model, "llama"),
        lambda w: (w.add_head_count([4, 4]), w.add_head_count_kv([2, 2])),
        leave_out=("head_count", "head_count_kv"),
    )
    assert same(path, model)


def test_half_a_head_turned_is_in_the_config(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", reference("qwen2"), "qwen2", lambda w: w.add_rope_dimension_count(8))
    assert GgufFile(path).config.rope_parameters["partial_rotary_factor"] == 0.5


@pytest.mark.parametrize("typed", [True, False])
def test_longrope_is_in_the_config_as_transformers_has_it(tmp_path: Path, typed: bool) -> None:
    """With the type, as converters write it for most, and without, as for Phi-3."""
    long, short = [1.0 + i for i in range(8)], [1.0 + 0.1 * i for i in range(8)]

    def keys(w: gguf.GGUFWriter) -> None:
        if typed:
            w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        w.add_rope_scaling_orig_ctx_len(64)
        w.add_rope_scaling_attn_factors(1.25)

    tensors = {"rope_factors_long.weight": long, "rope_factors_short.weight": short}
    file = GgufFile(write(tmp_path / "a.gguf", reference(), "llama", keys, tensors))
    assert not any("rope_factors" in n for n in file.names()), "they are told by the config"
    for length, factors in ((64, short), (65, long)):
        angles, scale = ROPE_INIT_FUNCTIONS["longrope"](file.config, torch.device("cpu"), length)
        want = 1 / (torch.tensor(factors) * 10000.0 ** (torch.arange(0, 16, 2) / 16))
        assert torch.allclose(angles, want)
        assert scale == 1.25


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_biases_are_visible_in_transformers_order(tmp_path: Path, architecture: str) -> None:
    settings = {} if architecture == "qwen2" else {"attention_bias": True}
    model = reference(architecture, **settings)
    file = GgufFile(write(tmp_path / "a.gguf", model, architecture))
    state = model.state_dict()
    assert set(file.names()) == set(state)
    biases = [n for n in state if n.endswith("bias")]
    assert biases
    for name in [*biases, "model.layers.1.self_attn.k_proj.weight", "model.layers.0.self_attn.q_proj.weight"]:
        assert torch.equal(torch.as_tensor(file.get(name)), state[name]), name
    assert getattr(file.config, "attention_bias", False) == (architecture != "qwen2")


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_biases_count(tmp_path: Path, architecture: str) -> None:
    model = reference(architecture, **({} if architecture == "qwen2" else {"attention_bias": True}))
    assert same(write(tmp_path / "a.gguf", model, architecture), model)


@pytest.mark.parametrize("original", [16, 64])
def test_longrope_counts_below_and_above_its_limit(tmp_path: Path, original: int) -> None:
    long, short = [1.0 + i for i in range(8)], [1.0 + 0.1 * i for i in range(8)]
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "attention_factor": 1.25}
    rope |= {"long_factor": long, "short_factor": short, "original_max_position_embeddings": original}
    model = reference(rope_parameters=rope)

    def keys(w: gguf.GGUFWriter) -> None:
        w.add_rope_scaling_orig_ctx_len(original)
        w.add_rope_scaling_attn_factors(1.25)

    assert same(write(tmp_path / "a.gguf", model, "llama", keys, {LONG: long, SHORT: short}), model)


def test_half_a_head_turned_changes_the_text(tmp_path: Path) -> None:
    """Pairs are those of the first half, which turn by the angles of a head of that size; the rest stays."""
    model = reference("qwen2")
    path = write(tmp_path / "a.gguf", model, "qwen2", lambda w: w.add_rope_dimension_count(8))
    angles = build(GgufFile(path), "dense-fp32").rotary.angles
    assert torch.allclose(angles[:4], 10000.0 ** -(torch.arange(0, 8, 2) / 8))
    assert not angles[4:].any()


def test_tensors_that_no_family_has_keep_their_own_name(tmp_path: Path) -> None:
    more = {"blk.0.attn_sinks.weight": [1.0, 2.0], "blk.1.attn_rot_embd.weight": [1.0], "cls.weight": [3.0]}
    file = GgufFile(write(tmp_path / "a.gguf", reference(), tensors=more))
    assert {"blk.0.attn_sinks.weight", "cls.weight"} <= set(file.names())
    assert "blk.1.attn_rot_embd.weight" not in file.names(), "llama.cpp skips it too"
    assert torch.equal(torch.as_tensor(file.get("blk.0.attn_sinks.weight")), torch.tensor([1.0, 2.0]))
    with pytest.raises(Refused, match=r"blk.0.attn_sinks.weight.*would not be read"):
        build(file, "dense-fp32")


LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
REFUSED: dict[str, tuple[str, Callable[[gguf.GGUFWriter], object]]] = {
    "experts": ("llama.expert_count = 8", lambda w: w.add_expert_count(8)),
    "a logit scale": ("llama.logit_scale = 8", lambda w: w.add_logit_scale(8.0)),
    "an embedding scale": ("llama.embedding_scale = 12", lambda w: w.add_embedding_scale(12.0)),
    "a residual scale": ("llama.residual_scale = 0.22", lambda w: w.add_residual_scale(0.22)),
    "a scale of attention": ("llama.attention.scale", lambda w: w.add_attention_scale(0.0078)),
    "another length of values": ("attention.value_length = 8", lambda w: w.add_value_length(8)),
    "soft capping": ("attn_logit_softcapping = 50", lambda w: w.add_attn_logit_softcapping(50.0)),
    "final soft capping": ("final_logit_softcapping", lambda w: w.add_final_logit_softcapping(30.0)),
    "clamped": ("attention.clamp_kqv", lambda w: w.add_clamp_kqv(8.0)),
    "ALiBi": ("max_alibi_bias", lambda w: w.add_max_alibi_bias(8.0)),
    "not causal": ("attention.causal = False", lambda w: w.add_causal_attention(False)),
    "a parallel residual": ("use_parallel_residual", lambda w: w.add_parallel_residual(True)),
    "latent attention": ("kv_lora_rank", lambda w: w.add_kv_lora_rank(16)),
    "several tokens at once": ("nextn_predict_layers", lambda w: w.add_nextn_predict_layers(1)),
    "sections": ("rope.dimension_sections", lambda w: w.add_rope_dimension_sections([4, 2, 2, 0])),
    "another vocabulary": ("vocab_size = 90.*96 rows", lambda w: w.add_vocab_size(90)),
    "half a head of llama": ("rope.dimension_count = 8", lambda w: w.add_rope_dimension_count(8)),
    "more than a head": ("rope.dimension_count = 32", lambda w: w.add_rope_dimension_count(32)),
    "longrope without factors": (LONG, lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)),
    "an unknown rule": ("rope.scaling.type = dynamic", lambda w: w.add_string("llama.rope.scaling.type", "dynamic")),
    "yarn's other factor": ("yarn_ext_factor", lambda w: (yarn(w), w.add_rope_scaling_yarn_ext_factor(0.5))),
    "attention scaled without a rule": ("attn_factor = 1.2", lambda w: w.add_rope_scaling_attn_factors(1.25)),
    "a scale that is no number": ("rope.scaling.factor as nan", lambda w: w.add_rope_scaling_factor(float("nan"))),
    "an adapter": ("holds no model but its adapter", lambda w: w.add_type("adapter")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_key_that_is_not_built_is_refused_by_name(tmp_path: Path, name: str) -> None:
    says, keys = REFUSED[name]
    path = write(tmp_path / "a.gguf", reference(), keys=keys)
    with pytest.raises(Refused, match=says) as e:
        ModelCache().load(str(path), "dense-fp32", "cpu")
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 400


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("head_count", [4, 2], "head_count layer by layer"),
        ("head_count_kv", [2, 1], "head_count_kv layer by layer"),
        ("feed_forward_length", [96, 64], "feed_forward_length layer by layer"),
        ("head_count", 0, "head_count as 0"),
        ("head_count_kv", 3, "head_count_kv = 3"),
        ("block_count", 0, "block_count as 0"),
        ("context_length", 0, "context_length as 0"),
    ],
)
def test_figures_that_cannot_be_are_refused(tmp_path: Path, key: str, value: Any, says: str) -> None:
    path = write(tmp_path / "a.gguf", reference(), keys=lambda w: getattr(w, f"add_{key}")(value), leave_out=[key])
    with pytest.raises(Refused, match=says):
        ModelCache().load(str(path), "dense-fp32", "cpu")


@pytest.mark.parametrize("tensors", [{LONG: [1.0] * 8}, {LONG: [1.0] * 8, SHORT: [1.0] * 4}])
def test_factors_that_do_not_fit_are_refused(tmp_path: Path, tensors: dict[str, list[float]]) -> None:
    path = write(tmp_path / "a.gguf", reference(), tensors=tensors)
    with pytest.raises(Refused, match=r"holds no rope_factors_short.weight of 8 numbers"):
        ModelCache().load(str(path), "dense-fp32", "cpu")


# Several parts ----------------------------------------------------------------------------------------------


def parts(tmp_path: Path, model: Any, name: str = "tiny") -> list[Path]:
    write(tmp_path / f"{name}.gguf", model, split_max_tensors=8)
    made_here = sorted(tmp_path.glob(f"{name}-*.gguf"))
    assert len(made_here) > 2
    return made_here


def test_any_part_opens_all(tmp_path: Path) -> None:
    model = reference()
    made_here = parts(tmp_path, model)
    for part in made_here:
        assert same(part, model)
        assert locate.find(str(part)).path == made_here[0]
    found = locate.find(str(tmp_path))
    assert (found.kind, found.path) == ("gguf", made_here[0])


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    made_here = parts(tmp_path, reference())
    for i, gone in enumerate(made_here):
        kept = gone.rename(tmp_path / "kept")
        with pytest.raises(Refused, match=f"{gone.name} is missing beside"):
            locate.find(str(made_here[i - 1]))
        kept.rename(gone)


def test_a_foreign_part_is_named(tmp_path: Path) -> None:
    made_here = parts(tmp_path, reference())
    second = made_here[1].read_bytes()
    made_here[1].write_bytes(made_here[2].read_bytes())
    with pytest.raises(Refused, match=f"{made_here[1].name} is no part of the model"):
        locate.find(str(made_here[0]))
    made_here[1].write_bytes(b"GGUF")
    with pytest.raises(Refused, match=f"{made_here[1].name} is damaged"):
        locate.find(str(made_here[0]))
    write(made_here[1], reference())  # a whole model under the name of a part
    with pytest.raises(Refused, match=f"{made_here[1].name} is no part of the model"):
        locate.find(str(made_here[0]))
    made_here[1].write_bytes(second)
    locate.find(str(made_here[0]))


def test_a_part_under_another_name_says_how_to_name_it(tmp_path: Path) -> None:
    part = parts(tmp_path, reference())[1].rename(tmp_path / "b.gguf")
    with pytest.raises(Refused, match=r"is part 2 of .*NAME-00002-of"):
        locate.find(str(part))


def test_a_part_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    made.gguf(tmp_path / "whole.gguf")
    made_here = split_of(tmp_path / "whole.gguf")
    cache = ModelCache()
    first = cache.load(str(made_here[0]), "dense-fp32", "cpu")
    assert cache.load(str(made_here[0]), "dense-fp32", "cpu") is first
    made_here[-1].write_bytes(made_here[-1].read_bytes())
    assert cache.load(str(made_here[0]), "dense-fp32", "cpu") is not first


def split_of(path: Path) -> list[Path]:
    """A GGUF file in two parts: all metadata and half of the tensors in the first, as gguf-split leaves them."""
    reader = gguf.GGUFReader(path)
    half = len(reader.tensors) // 2
    out = [path.with_name(f"cut-0000{i}-of-00002.gguf") for i in (1, 2)]
    for i, tensors in enumerate((reader.tensors[:half], reader.tensors[half:])):
        writer = gguf.GGUFWriter(out[i], "llama")
        for field in reader.fields.values():
            if i == 0 and not field.name.startswith("GGUF.") and field.name != "general.architecture":
                kind = field.types[0]
                writer.add_key_value(
                    field.name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None
                )
        for key, value in (("split.no", i), ("split.count", 2), ("split.tensors.count", len(reader.tensors))):
            writer.add_uint16(key, value)
        for t in tensors:
            writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return out

"""The referee at the door: what would be read wrongly is handed to transformers, or refused by name, before it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.architectures import config_of_kind
from llmlab.errors import Refused
from llmlab.models.building import build as build_decoder
from llmlab.models.loading.contents import checkpoint, read_config
from llmlab.models.loading.route import route
from llmlab.models.loading.sources.found import Found
from llmlab.models.loading.sources.locate import find
from llmlab.models.wrapped import admission as door
from llmlab.models.wrapped.admission import admission, sibling_model
from llmlab.models.wrapped.loading import build as build_wrapped
from llmlab.models.wrapped.model import Wrapped
from llmlab.models.wrapped.seams import ModelMask
from llmlab.models.wrapped.small import small
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import make
from tests import tiny
from tests.laws import laws

TOKENS = tiny.prompts(1, 40)[0]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path_factory.mktemp("cache")))


def saved(folder: Path, config: Any) -> Any:
    """A model with random weights in `folder`; the model."""
    made = sibling_model(config)
    made.save_pretrained(folder)
    return made


def opened(folder: Path, weights: str = "dense-fp32") -> Any:
    """As the lab opens a folder, without a tokenizer."""
    found = find(str(folder))
    if route(found).decodes:
        return build_decoder(checkpoint(found), weights)
    return build_wrapped(str(folder), read_config(found), weights, "cpu")


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Save the folder's weights again with a change."""
    file = folder / "model.safetensors"
    tensors = {name: t.clone() for name, t in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


# What nobody would read --------------------------------------------------------------------------------------------

STRANGERS = (
    "model.layers.0.self_attn.q_proj.bias",
    "model.layers.1.self_attn.o_proj.bias",
    "model.layers.2.mlp.down_proj.bias",
    "model.layers.3.self_attn.q_norm.weight",
    "model.layers.0.mlp.experts.gate_up_proj",
    "model.layers.9.mlp.up_proj.weight",
    "model.norm.bias",
    "lm_head.bias",
    "visual.patch_embed.weight",
)


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_a_tensor_that_nobody_reads_is_refused_by_name(tmp_path: Path, family: str, name: str) -> None:
    saved(tmp_path, tiny._config(family))
    changed(tmp_path, lambda tensors: tensors.update({name: torch.ones(3)}))
    with pytest.raises(Refused, match=f"The tensor {name}".replace(".", r"\.")):
        opened(tmp_path)


def test_what_follows_from_the_config_may_be_there(tmp_path: Path) -> None:
    made = saved(tmp_path, tiny._config("llama-plain"))
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    changed(tmp_path, lambda tensors: tensors.update({name: torch.ones(8)}))
    assert laws.reference(opened(tmp_path), made, TOKENS, [len(TOKENS)]) < 1e-4


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox", "gemma3"])
def test_a_missing_tensor_is_refused_by_name(tmp_path: Path, family: str) -> None:
    saved(tmp_path, tiny._config(family))
    gone = sorted(n for n in load_file(tmp_path / "model.safetensors") if ".2." in n and n.endswith("weight"))[0]
    changed(tmp_path, lambda tensors: tensors.pop(gone))
    with pytest.raises(Refused, match=gone.split(".2.")[1].replace(".", r"\.")):
        opened(tmp_path)


BIASED = {
    "llama": {"attention_bias": True},
    "llama-plain": {"attention_bias": True, "mlp_bias": True},
    "llama-yarn": {"mlp_bias": True},
    "qwen3": {"attention_bias": True},
}


@pytest.mark.parametrize("family", BIASED)
def test_biases_that_a_config_asks_for_are_read(tmp_path: Path, family: str) -> None:
    config = tiny._config(family)
    for name, value in BIASED[family].items():
        setattr(config, name, value)
    made = saved(tmp_path, config)
    model = opened(tmp_path)
    assert not isinstance(model, Wrapped)
    for pieces in ([len(TOKENS)], [5, 1, 1, 3, *[1] * 30]):
        assert laws.reference(model, made, TOKENS, pieces) < 1e-4


# What transformers runs --------------------------------------------------------------------------------------------

KINDS = {
    "bloom": "cache",  # positions as a bias of the scores
    "falcon": "cache",
    "mpt": "cache",
    "gpt_neo": "cache",
    "diffllama": "cache",  # attention with arithmetic of its own
    "roberta": "attention",  # counts positions for itself
    "bart": "attention",
    "deepseek_v2": "attention",  # values narrower than keys
    "deepseek_v3": "attention",
    "minicpm3": "attention",
    "gpt_oss": "attention",  # sinks
    "gemma2": "attention",  # softcap
    "gemma3n_text": "attention",  # layers that share keys and values
    "gemma4_text": "attention",  # sizes that differ from layer to layer
    "llama4_text": "attention",  # chunks
    "stablelm": "attention",
    "nemotron": "attention",
}


@pytest.fixture(scope="module")
def models() -> dict[str, Wrapped]:
    return {}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def model_of(kind: str, models: dict[str, Wrapped]) -> Wrapped:
    if kind not in models:
        config = config_of_kind(kind)
        verdict = admission(config)
        models[kind] = Wrapped(sibling_model(config), "dense-fp32", verdict.kind, verdict.positioned)
    return models[kind]


def test_the_seam_is_the_one_that_the_model_needs(models: dict[str, Wrapped], kind: str) -> None:
    assert model_of(kind, models).seam.name == KINDS[kind]


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
def test_speculation_is_exact(models: dict[str, Wrapped], kind: str, tree: bool) -> None:
    wrong, seen = laws.scripted(model_of(kind, models), Stack(), tiny.prompts(1, 21), 24, tree)
    assert wrong == []
    assert max(accepted for _, accepted in seen) >= 3


@pytest.mark.parametrize("policy", ["h2o", "streaming-llm"])
def test_eviction_runs_or_is_refused(models: dict[str, Wrapped], kind: str, policy: str) -> None:
    free = {"reposition": False} if policy == "streaming-llm" else {}
    stack = Stack([make(policy, budget=12, every=5, **free)])
    model = model_of(kind, models)
    if KINDS[kind] == "cache":
        with pytest.raises(Refused, match="needs"):
            stack.require(model.capabilities, kind)
    else:
        assert laws.scripted(model, stack, tiny.prompts(1, 21), 20, False)[0] == []


def test_every_byte_of_the_rows_is_reported(models: dict[str, Wrapped], kind: str) -> None:
    model = model_of(kind, models)
    memory = model.memory()
    laws.logits(model, TOKENS, [len(TOKENS)])
    assert memory.nbytes == laws.tensor_bytes(memory)


@pytest.mark.parametrize("weights", ["dense-bf16", "nf4", "bnb-int8"])
@pytest.mark.parametrize("kind", ["gpt2", "bloom", "gemma2", "mixtral"])
def test_other_formats_pass_the_check_too(tmp_path: Path, kind: str, weights: str) -> None:
    config = config_of_kind(kind)
    for name in ("n_inner", "intermediate_size"):
        if getattr(config, name, None):
            setattr(config, name, 128)
    saved(tmp_path, config)
    assert len(laws.text(opened(tmp_path, weights), TOKENS[:10], 4)) == 4


@pytest.mark.parametrize(("weights", "inner"), [("nf4", 96), ("nf4", 100), ("bnb-int8", 102)])
@pytest.mark.parametrize("kind", ["gemma2", "gpt2", "starcoder2"])
def test_widths_that_bitsandbytes_reads_wrongly_are_refused(
    tmp_path: Path, kind: str, weights: str, inner: int
) -> None:
    config = config_of_kind(kind)
    setattr(config, "n_inner" if kind == "gpt2" else "intermediate_size", inner)
    saved(tmp_path, config)
    with pytest.raises(Refused, match=f"{inner} inputs"):
        opened(tmp_path, weights)


# What is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["falcon_h1", "mamba", "rwkv", "jamba", "recurrent_gemma", "lfm2", "zamba2", "qwen3_next"]
)
def test_recurrent_states_are_refused_before_there_are_weights(tmp_path: Path, kind: str) -> None:
    config_of_kind(kind).save_pretrained(tmp_path)
    with pytest.raises(Refused, match="recurrent state"):
        route(Found(kind, kind, "hub", tmp_path))


@pytest.mark.parametrize("kind", ["bert", "electra", "roberta", "rembert", "big_bird"])
def test_reading_in_both_directions_is_refused(tmp_path: Path, kind: str) -> None:
    config = config_of_kind(kind)
    config.is_decoder = False
    config.save_pretrained(tmp_path)
    with pytest.raises(Refused, match="later tokens"):
        route(Found(kind, kind, "hub", tmp_path))


@pytest.mark.parametrize("kind", ["gemma3_text", "llama4_text", "cohere2", "gpt_oss"])
def test_a_mask_that_is_not_heeded_is_noticed(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The check has teeth: a window or a chunk that our side forgets makes the first seam fail."""
    monkeypatch.setattr(ModelMask, "visible", lambda self, q, k, layer, head: k <= q)
    assert admission(config_of_kind(kind)).seam != "attention"


@pytest.mark.parametrize("kind", ["phi3", "llama"])
def test_a_length_that_is_not_heeded_is_noticed(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    config = config_of_kind(kind)
    pairs = 8
    config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * pairs,
        "long_factor": [1.0 + i for i in range(pairs)],
        "original_max_position_embeddings": 32,
        "factor": 4.0,
    }
    assert admission(config).seam == "attention"
    monkeypatch.setattr(door, "_sources", lambda: "other code")
    monkeypatch.setattr("llmlab.models.wrapped.length.LENGTH_RULES", ())
    assert admission(config).refusal


# The verdict -------------------------------------------------------------------------------------------------------


def test_a_verdict_is_kept_until_config_or_transformers_change(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny._config("gpt2")
    verdict = admission(config)
    tried: list[Any] = []
    monkeypatch.setattr(door, "_tried", lambda c: tried.append(c) or verdict)
    assert admission(config) == verdict
    assert not tried
    config.n_head = 2
    admission(config)
    monkeypatch.setattr("transformers.__version__", "5.99.0")
    admission(config)
    assert len(tried) == 2


def test_a_verdict_that_was_cut_short_is_made_anew() -> None:
    from llmlab.models.loading.environment import cache_folder

    config = tiny._config("gpt2")
    verdict = admission(config)
    (kept,) = (cache_folder() / "admissions").glob("*.json")
    for text in ("", kept.read_text()[:10], "[]", json.dumps({"other": 1})):
        kept.write_text(text)
        assert admission(config) == verdict


def test_trying_out_leaves_the_process_as_it_was() -> None:
    torch.manual_seed(5)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    admission(tiny._config("opt"))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("kind", ["gemma3_text", "gemma3n_text", "gemma4_text", "deepseek_v3", "gpt_oss"])
def test_a_small_sibling_shows_every_kind_of_layer(kind: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    full = CONFIG_MAPPING[kind]().get_text_config(decoder=True)
    made = small(full)
    assert set(getattr(made, "layer_types", None) or ()) == set(getattr(full, "layer_types", None) or ())
    assert sum(p.numel() for p in sibling_model(made).parameters()) < 1_000_000


# Configs that say more than they seem ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mistral", "phi3", "qwen2", "qwen3"])
def test_layer_types_count_where_transformers_heeds_them(tmp_path: Path, family: str) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    saved(tmp_path, CONFIG_MAPPING[family](**{**tiny.SIZES, "sliding_window": None}))
    file = tmp_path / "config.json"
    raw = json.loads(file.read_text())
    raw |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 7, "use_sliding_window": True}
    file.write_text(json.dumps(raw))
    made = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    assert laws.reference(opened(tmp_path), made, TOKENS, [20, 1, 19]) < 1e-4


def test_a_rotation_that_our_decoder_does_not_compute_is_left_to_transformers(tmp_path: Path) -> None:
    config = tiny._config("llama-plain")
    config.rope_parameters = {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    made = saved(tmp_path, config)
    model = opened(tmp_path)
    assert isinstance(model, Wrapped)
    assert laws.reference(model, made, TOKENS, [20, 1, 19]) < 1e-4


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("value", ["flash_attention_2", "owner/kernel"])
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_an_implementation_that_a_config_names_is_not_heeded(
    tmp_path: Path, family: str, value: str, name: str
) -> None:
    made = saved(tmp_path, tiny._config(family))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    assert laws.reference(opened(tmp_path), made, TOKENS, [len(TOKENS)]) < 1e-4


@pytest.mark.parametrize("layers", [30_000_000, 2**31, -1, 1e9])
def test_absurd_depths_are_refused_at_once(tmp_path: Path, layers: float) -> None:
    saved(tmp_path, tiny._config("qwen2"))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": layers}))
    with pytest.raises(Refused, match="num_hidden_layers"):
        find(str(tmp_path))


@pytest.mark.parametrize("context", [4, 16, 32])
def test_short_contexts_run(tmp_path: Path, context: int) -> None:
    config = tiny._config("gpt2")
    config.n_positions = context
    made = saved(tmp_path, config)
    assert laws.reference(opened(tmp_path), made, TOKENS[:context], [context]) < 1e-4


@pytest.mark.parametrize("weights", ["dense-fp32", "dense-bf16"])
def test_weights_that_give_no_numbers_are_refused(tmp_path: Path, weights: str) -> None:
    saved(tmp_path, tiny._config("gpt2"))
    changed(tmp_path, lambda tensors: tensors["transformer.h.1.mlp.c_fc.weight"].fill_(torch.nan))
    with pytest.raises(Refused, match="logits"):
        opened(tmp_path, weights)

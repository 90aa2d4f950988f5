"""A random campaign over models: architecture × sizes × windows × rotations × types × container.

    python -m tests.campaign [--minutes 20] [--seed 0]

Each model is opened as the lab opens it. In float32 its logits in pieces and its greedy text must be transformers';
in the other formats it must run and stay near; a refusal must be one sentence. Prints what does not hold and its seed.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import gguf as lib
import numpy as np
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from benchmarks.architectures import config_of_kind
from llmlab.errors import Refused
from llmlab.models.building import build as build_decoder
from llmlab.models.loading.architectures import architectures
from llmlab.models.loading.contents import checkpoint, read_config
from llmlab.models.loading.route import route
from llmlab.models.loading.sources.locate import find
from llmlab.models.wrapped.admission import sibling_model
from llmlab.models.wrapped.loading import build as build_wrapped
from llmlab.models.wrapped.referee import plain_logits
from llmlab.runtime.stack import Stack
from tests.laws import laws

OURS = ("llama", "mistral", "qwen2", "qwen3", "phi3")
FORMATS = ("dense-fp32", "dense-fp32", "dense-fp32", "dense-bf16", "int8", "int4", "nf4", "bnb-int8")
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
}


def rotation(dice: random.Random, family: str, head: int) -> dict[str, Any] | None:
    """Parameters of a random rotation."""
    base: dict[str, Any] = {"rope_theta": dice.choice([100.0, 10000.0, 1e6])}
    longrope = {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0 + 0.1 * i for i in range(head // 2)],
        "long_factor": [1.5 + i for i in range(head // 2)],
    }
    rules = [{"rope_type": "default"}, longrope]
    if family != "phi3":
        factor = dice.choice([1.5, 2.0, 8.0])
        rules += [{"rope_type": "linear", "factor": factor}, {"rope_type": "dynamic", "factor": factor}]
        rules += [{"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": 32}]
        ramp = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
        rules += [{"rope_type": "llama3", "factor": factor} | ramp]
    return base | dice.choice(rules)


def decoders_config(dice: random.Random) -> Any:
    """A random config of one of our decoder's families."""
    family, head = dice.choice(OURS), dice.choice([8, 12, 16, 18, 32])
    kv = dice.choice([1, 2, 3])
    heads = kv * dice.choice([1, 2, 3])
    width = heads * head if family in ("phi3", "llama") else dice.choice([24, 48, 64, 72, 100, 104])
    rules = rotation(dice, family, head)
    dynamic = rules is not None and rules["rope_type"] == "dynamic"
    more: dict[str, Any] = {}
    if family in ("llama", "qwen3"):
        more["attention_bias"] = dice.random() < 0.4
    if family == "llama":
        more["mlp_bias"] = dice.random() < 0.4
    if family in ("mistral", "phi3"):
        more["sliding_window"] = dice.choice([None, 2, 5, 33])
    elif dice.random() < 0.4:
        more |= {"use_sliding_window": True, "sliding_window": dice.choice([2, 6, 40]), "max_window_layers": 1}
    if family == "llama":
        for name in ("use_sliding_window", "sliding_window", "max_window_layers"):
            more.pop(name, None)
    if family == "phi3":
        more["original_max_position_embeddings"] = 32
    config = CONFIG_MAPPING[family](
        vocab_size=dice.choice([97, 128, 320]),
        hidden_size=width,
        intermediate_size=dice.choice([40, 96, 100, 172]),
        num_hidden_layers=dice.choice([1, 2, 5]),
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=head,
        max_position_embeddings=32 if dynamic else 256,
        rope_parameters=rules,
        tie_word_embeddings=dice.random() < 0.5,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **more,
    )
    return config


def others_config(dice: random.Random) -> Any:
    """A small config of any architecture that runs, with a window and a depth of its own."""
    kind = dice.choice([a.kind for a in architectures() if a.engine != "none"])
    config = config_of_kind(kind)
    for name in ("sliding_window", "attention_chunk_size"):
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, dice.choice([3, 8, 40]))
    return config


def write_gguf(path: Path, model: Any, kind: str) -> None:
    """A GGUF file of a model of the Llama kind; the model gets the values that the file holds."""
    c, family = model.config, model.config.model_type
    architecture = "llama" if family == "mistral" else family
    writer = lib.GGUFWriter(path, architecture)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    if c.rope_parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(lib.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(c.rope_parameters["factor"])
    if family == "mistral" and c.sliding_window:
        writer.add_sliding_window(c.sliding_window)
    state = model.state_dict()
    for name, value in state.items():
        stem, ending = name.rsplit(".", 1)
        if stem == "lm_head" and c.tie_word_embeddings:
            continue
        part = stem.split(".", 3)[3] if stem.startswith("model.layers") else stem
        ours = (f"blk.{stem.split('.')[2]}." if part != stem else "") + f"{NAMES[part]}.{ending}"
        array = value.numpy().astype(np.float32)
        quantized = lib.GGMLQuantizationType[kind]
        if array.ndim == 1 or array.shape[1] % lib.GGML_QUANT_SIZES[quantized][0]:
            quantized = lib.GGMLQuantizationType.F32
        state[name].copy_(torch.from_numpy(lib.dequantize(lib.quantize(array, quantized), quantized)))
        if architecture == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
            count = c.num_attention_heads if "q_proj" in part else c.num_key_value_heads
            array = array.reshape(count, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(ours, np.ascontiguousarray(lib.quantize(array, quantized)), raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def fits_gguf(config: Any) -> bool:
    """Whether the format has words for this model."""
    if not getattr(config, "head_dim", None) or config.model_type not in ("llama", "mistral", "qwen2", "qwen3"):
        return False
    plain = config.rope_parameters["rope_type"] in ("default", "linear")
    window = getattr(config, "sliding_window", None) if config.model_type != "mistral" else None
    return plain and not window


def saved(dice: random.Random, folder: Path) -> tuple[str, Any, Path]:
    """What it is in words, the referee, and where it lies."""
    config = decoders_config(dice) if dice.random() < 0.6 else others_config(dice)
    referee = sibling_model(config)
    if dice.random() < 0.4 and config.model_type in OURS and fits_gguf(config):
        kind = dice.choice(KINDS)
        write_gguf(folder / "model.gguf", referee, kind)
        return f"{config.model_type} GGUF {kind}", referee, folder / "model.gguf"
    dtype = dice.choice(list(TYPES))
    for p in referee.parameters():
        p.data = p.data.to(TYPES[dtype]).float()  # what the file can hold
    stored = sibling_model(config)
    stored.load_state_dict(referee.state_dict())
    stored.to(TYPES[dtype]).save_pretrained(folder, max_shard_size=dice.choice(["40KB", "100KB", "1GB"]))
    return f"{config.model_type} {dtype}", referee, folder


def chosen(referee: Any, prompt: list[int], text: list[int], step_by_step: bool) -> list[int]:
    """transformers' choice at each place of `text`: by one plain pass, or step by step where rotations go by the
    length. (With a cache its own text differs from a plain pass under a window of one token.)"""
    if not step_by_step:
        logits = plain_logits(referee, torch.tensor([*prompt, *text]))[len(prompt) - 1 : -1]
        best = logits.amax(-1) - logits[torch.arange(len(text)), text]
        return [t if tie < 1e-4 else int(i) for t, tie, i in zip(text, best, logits.argmax(-1), strict=True)]
    referee.generation_config.eos_token_id = referee.config.eos_token_id = None
    ids = torch.tensor([prompt])
    out = referee.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=len(text), min_new_tokens=len(text)
    )
    return out[0, len(prompt) :].tolist()


def wrong(dice: random.Random, what: str, referee: Any, where: Path, weights: str) -> str | None:
    """What does not hold, or None. Raises Refused."""
    found = find(str(where))
    decodes = route(found).decodes
    if decodes:
        model: Any = build_decoder(checkpoint(found), weights, copies=dice.random() < 0.5)
    else:
        model = build_wrapped(str(found.path), read_config(found), weights, "cpu")
    vocab = min(97, referee.get_input_embeddings().weight.shape[0])
    prompt = [dice.randrange(3, vocab) for _ in range(dice.choice([1, 9, 31, 32, 33, 50]))]
    text = laws.text(model, prompt, min(40, model.context - len(prompt)))
    if getattr(referee.config, "pad_token_id", None) in text and not decodes:
        return None  # the encoders' kin give padding no position, in a plain pass and step by step not alike
    if weights != "dense-fp32":
        return None if len(text) else "no text"
    want = chosen(referee, prompt, text, decodes and model.rotary.rule is not None)
    if text != want:
        k = next(i for i, (a, b) in enumerate(zip(text, want, strict=False)) if a != b)
        return f"other text from token {k} of {len(text)} after {len(prompt)}"
    if not decodes or model.rotary.rule is None:
        both = [*prompt, *text]
        given = plain_logits(referee, torch.tensor(both))
        off = float((laws.logits(model, both, [len(prompt), 1, len(text) - 1]) - given).abs().max() / given.std())
        if off > 2e-4:
            return f"logits off by {off:.1e}"
    drafts = laws.scripted(
        model, Stack(), [prompt], max(1, min(16, model.context - len(prompt) - 16)), dice.random() < 0.5
    )[0]
    return f"drafts change the text: {drafts[0][:80]}" if drafts else None


def tried(seed: int) -> str:
    dice = random.Random(seed)
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory(prefix="campaign-") as scratch:
        what, referee, where = saved(dice, Path(scratch))
        weights = dice.choice(FORMATS)
        try:
            seen = wrong(dice, what, referee, where, weights)
        except Refused as e:
            seen = None if "\n" not in str(e) else "a refusal of several lines"
            return f"refused {what} {weights}: {e}" if seen is None else f"WRONG {what} {weights}: {seen}"
        except Exception as e:
            at = traceback.extract_tb(e.__traceback__)[-1]
            seen = f"{type(e).__name__}: {str(e)[:120]} at {Path(at.filename).name}:{at.lineno}"
    return f"WRONG {what} {weights}: {seen}" if seen else f"right {what} {weights}"


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=20)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    until, seed, counts = time.monotonic() + 60 * a.minutes, a.seed, {"right": 0, "refused": 0, "WRONG": 0}
    while time.monotonic() < until:
        line = tried(seed)
        counts[line.split()[0]] += 1
        if not line.startswith("right"):
            print(f"{seed}: {line}", flush=True)
        seed += 1
    print(counts)
    return counts["WRONG"]


if __name__ == "__main__":
    sys.exit(main())

"""Model files made on the spot: folders of safetensors, GGUF files, and a model hub that answers on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import torch
from transformers import GPT2Config, LlamaConfig, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCAB = 320
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}


def tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """Bytes as tokens, one pair of them merged, and four special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    vocab = {c: i for i, c in enumerate([*special, *alphabet, "Ġt"])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "t")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")
    if chat:
        fast.chat_template = CHAT
    return fast


def model(kind: str = "llama", seed: int = 0) -> Any:
    """A transformers model with random weights, large enough apart that its text wanders."""
    if kind == "llama":
        config: Any = LlamaConfig(
            **SIZES,
            num_key_value_heads=2,
            vocab_size=VOCAB,
            max_position_embeddings=512,
            eos_token_id=None,
            bos_token_id=None,
        )
    else:
        config = GPT2Config(
            vocab_size=VOCAB, n_embd=64, n_layer=3, n_head=4, n_positions=512, eos_token_id=None, bos_token_id=None
        )
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, p in made.named_parameters():
            if p.dim() > 1:
                p.normal_(0, 1.0 if "embed" in name or "wte" in name else 1.5 / p.shape[-1] ** 0.5)
    return made


def folder(path: Path, kind: str = "llama", chat: bool = True, seed: int = 0) -> Path:
    """A Hugging Face folder as `save_pretrained` leaves it."""
    model(kind, seed).save_pretrained(path)
    tokenizer(chat).save_pretrained(path)
    return path


def gguf(path: Path, architecture: str = "llama", leave_out: str = "", kind: str = "Q4_1") -> Any:
    """A GGUF file of the tiny Llama, quantized as `kind`; returns the transformers model with the same values."""
    import gguf as lib

    made = model()
    config = made.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    once = {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}
    writer = lib.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    vocab = sorted(tokenizer().get_vocab().items(), key=lambda v: v[1])
    writer.add_token_list([t for t, _ in vocab])
    writer.add_token_types([3 if t.startswith("<|") else 1 for t, _ in vocab])
    writer.add_token_merges(["Ġ t"])
    writer.add_eos_token_id(0)
    state = made.state_dict()
    for name, value in state.items():
        stem = name.removesuffix(".weight")
        if stem in once:
            ours = once[stem] + ".weight"
        else:
            _, _, layer, part = stem.split(".", 3)
            ours = f"blk.{layer}.{names[part]}.weight"
        if ours == leave_out:
            continue
        array = value.numpy().astype(np.float32)
        if value.dim() == 1:
            writer.add_tensor(ours, array)
            continue
        quantized = lib.GGMLQuantizationType[kind if stem.startswith("model.layers") else "Q8_0"]
        packed = lib.quantize(array, quantized)
        state[name].copy_(torch.from_numpy(lib.dequantize(packed, quantized)))
        for part, count in heads.items():
            if stem.endswith(part):  # the order of rows in which llama files keep queries and keys
                array = array.reshape(count, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
                packed = lib.quantize(array, quantized)
        writer.add_tensor(ours, packed, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


class Hub:
    """Repositories by id: files by name, and what is special about them ("gated", "down")."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.down = False
        self.asked: list[str] = []
        self.url = ""

    def add(self, repo: str, path: Path) -> None:
        self.repos[repo] = {f.name: f.read_bytes() for f in path.iterdir() if f.is_file()}


def _answer(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for k, v in ({"Content-Length": str(len(body))} | (headers or {})).items():
                self.send_header(k, v)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            hub.asked.append(f"{self.command} {path}")
            if hub.down:
                self._send(503, b"{}")
                return
            api = path.startswith("api/models/")
            parts = path.removeprefix("api/models/").split("/")
            repo, rest = "/".join(parts[:2]), parts[2:]
            files = hub.repos.get(repo)
            if files is None:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif repo in hub.gated and (not api or rest[:1] == ["tree"]):
                self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
            elif api and rest[:1] == ["tree"]:
                tree = [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in files.items()]
                self._send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
            elif api:
                siblings = [{"rfilename": n, "size": len(b)} for n, b in files.items()]
                value = {"id": repo, "sha": "1" * 40, "siblings": siblings, "private": False, "tags": []}
                value["gated"] = "manual" if repo in hub.gated else False
                self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})
            elif rest[:1] == ["resolve"] and rest[2] in files:
                etag = f'"{abs(hash((repo, rest[2]))):x}"'
                self._send(200, files[rest[2]], {"ETag": etag, "X-Repo-Commit": "1" * 40})
            else:
                self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

        do_HEAD = do_GET

    return Handler


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _answer(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()

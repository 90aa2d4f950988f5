"""Every causal architecture of the installed transformers, made small: does the lab read it right, or say why not?

    python -m benchmarks.architectures [KIND…] [--json OUT|-] [--keep]

A small model with random weights is saved as a folder and opened as any folder is: its logits in pieces are compared
with those of one plain pass of transformers, and its greedy text with transformers' choice at each token. `--keep`
writes what was found to assets/architectures.json, which the page shows; the same is a law in tests/laws.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from llmlab.cli.output import say, write
from llmlab.errors import Refused
from llmlab.models.batch import Batch, Span
from llmlab.models.building import build as build_decoder
from llmlab.models.loading.architectures import KEPT
from llmlab.models.loading.contents import checkpoint, read_config
from llmlab.models.loading.fit import size_of
from llmlab.models.loading.route import route
from llmlab.models.loading.sources.found import Found
from llmlab.models.loading.sources.locate import find
from llmlab.models.wrapped.admission import sibling_model
from llmlab.models.wrapped.loading import build as build_wrapped
from llmlab.models.wrapped.referee import plain_logits
from llmlab.models.wrapped.small import small
from llmlab.runtime.generate import committed_tokens, generate

NEW_TOKENS = 60
PROMPT = 30
PIECES = (7, 1, 11, 2, 30)
MLA = {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "norm_topk_prob": False}
HEADS = {"head_dim": 16}
SETTINGS: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 8, "clip_qkv": 8.0}},
    "deepseek_v2": MLA,
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "hunyuan_v1_dense": HEADS,
    "hunyuan_v1_moe": HEADS,
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": HEADS,
    "nemotron": {"num_key_value_heads": 2},
}
"""What a config needs beside its defaults, which transformers leaves empty."""
DECODERS = {"is_decoder": True, "is_encoder_decoder": False}
"""Set where there are such settings, as in a folder that holds just the decoder."""


@dataclass(frozen=True)
class Row:
    """What became of an architecture. `engine`: "decoder", "transformers" or "none"; `seam`: how transformers lets us
    in; `why`: the reason of a refusal; `off`: largest difference of a logit; `same`: whether the text is the same."""

    kind: str
    engine: str
    seam: str = ""
    why: str = ""
    off: float = 0.0
    same: bool = True


def kinds() -> list[str]:
    """The architectures that transformers has for continuing text."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def config_of_kind(kind: str) -> Any:
    """A small config; the full one where it cannot be made small, as nothing is built from it then."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    cls = CONFIG_MAPPING[kind]
    full = cls(**SETTINGS.get(kind, {}))
    if given := {name: value for name, value in DECODERS.items() if name in full.to_dict()}:
        full = cls(**SETTINGS.get(kind, {}), **given)
    try:
        made = small(full)
    except Exception:  # what its checks forbid is told when the folder is opened
        return full
    for name in ("eos_token_id", "bos_token_id"):
        if getattr(made, name, None) is not None and not isinstance(getattr(made, name), int):
            setattr(made, name, 2)
    return made


def judged(kind: str, folder: Path) -> Row:
    """Open a small model of this kind from `folder`, which is empty, and compare it with transformers."""
    config = config_of_kind(kind)
    config.save_pretrained(folder)
    try:
        without_weights = Found(kind, kind, "hub", folder)
        route(without_weights)  # what no engine runs is refused before there are weights
        size_of(read_config(without_weights))
        with torch.random.fork_rng(devices=[]):
            referee = sibling_model(config)
        referee.save_pretrained(folder)
        return _compared(kind, find(str(folder)), referee)
    except Refused as e:
        return Row(kind, "none", why=str(e))


def _compared(kind: str, found: Found, referee: Any) -> Row:
    decodes = route(found).decodes
    if decodes:
        model: Any = build_decoder(checkpoint(found), "dense-fp32")
    else:
        model = build_wrapped(str(found.path), read_config(found), "dense-fp32", "cpu")
    vocab = min(97, referee.get_input_embeddings().weight.shape[0])
    prompt = torch.randint(3, vocab, (PROMPT,), generator=torch.Generator().manual_seed(1)).tolist()
    text = committed_tokens(list(generate(model, prompt, NEW_TOKENS)))
    tokens = torch.tensor([*prompt, *text])
    want = plain_logits(referee, tokens)
    off = float((_in_pieces(model, tokens) - want).abs().max() / max(1.0, float(want.std())))
    same = want[PROMPT - 1 : -1].argmax(-1).tolist() == text
    return Row(kind, "decoder" if decodes else "transformers", "" if decodes else model.seam.name, "", off, same)


def _in_pieces(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    memory, out, at = model.memory(), [], 0
    memory.whole = len(tokens)
    for n in (*PIECES, *[1] * len(tokens)):
        piece = tokens[at : at + n]
        if len(piece):
            batch = Batch(piece, torch.arange(at, at + len(piece)), [Span(0, len(piece), memory, first=at)])
            out.append(model.forward(batch).logits)
        at += n
    return torch.cat(out)


def judge(kind: str) -> Row:
    """As `judged`, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="architectures-") as scratch:
        folder = Path(scratch) / kind
        folder.mkdir()
        return judged(kind, folder)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("kinds", nargs="*", metavar="KIND")
    p.add_argument("--json", default=None, metavar="OUT|-")
    p.add_argument("--keep", action="store_true", help="write assets/architectures.json")
    a = p.parse_args()
    torch.set_num_threads(1)  # for matrices this small, others only wait for each other
    rows, began = [], time.perf_counter()
    for kind in a.kinds or kinds():
        row = judge(kind)
        rows.append(row)
        print(f"{kind:28} {row.engine:13} {row.seam:10} {row.off:8.1e} {'' if row.same else 'OTHER TEXT'} {row.why}")
    counts = {e: sum(r.engine == e for r in rows) for e in ("decoder", "transformers", "none")}
    say(f"{len(rows)} architectures in {time.perf_counter() - began:.0f} s: {counts}")
    write([asdict(r) for r in rows], a.json)
    if a.keep:
        import transformers

        found = {r.kind: {"engine": r.engine, "seam": r.seam, "why": r.why} for r in rows}
        value = {"transformers": transformers.__version__, "kinds": found}
        KEPT.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

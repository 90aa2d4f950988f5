"""Hugging Face config and state dict to our decoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmlab.errors import Refused
from llmlab.models.block import Block
from llmlab.models.decoder import Decoder
from llmlab.models.embedding import EmbeddingAndHead
from llmlab.models.families import FAMILIES, ours, shape_of
from llmlab.models.feed_forward.gated import GatedFeedForward
from llmlab.models.formats.linear import Linear
from llmlab.models.formats.quantized_groups import Matrix, QuantizedGroups, as_dense, pick_rows, stacked
from llmlab.models.formats.registry import make_linear
from llmlab.models.loading.checkpoint import Checkpoint
from llmlab.models.mixers.attention import Attention
from llmlab.models.norm import Norm
from llmlab.models.rope import interleave, rotations


class Builder:
    """Reads a checkpoint's tensors, checks their shapes, and puts layers together in one weight format.

    A checkpoint offers `config` (a transformers PretrainedConfig), `names()` and `get(name)` (a Tensor, or codes).
    """

    def __init__(self, checkpoint: Checkpoint, weights: str, device: torch.device | str, copies: bool) -> None:
        config = checkpoint.config
        if not ours(config):
            raise Refused(
                f"The architecture {config.model_type}", "is not one that our decoder runs", "Use the wrapped path"
            )
        self.checkpoint, self.weights, self.device = checkpoint, weights, torch.device(device)
        self.copies = copies and self.device.type == "cpu"
        self.config, self.family, self.shape = config, FAMILIES[config.model_type], shape_of(config)
        self.names = set(checkpoint.names())

    def tensor(self, name: str, *shape: int) -> Matrix:
        """Raises Refused for a tensor that is missing or has another shape."""
        value = self.checkpoint.get(name)
        if tuple(value.shape) != shape:
            why = f"has the shape {tuple(value.shape)} where {shape} belongs"
            raise Refused(f"The tensor {name}", why, "Fetch the model again")
        return value if isinstance(value, QuantizedGroups) else value.to(self.device)

    def vector(self, name: str, size: int) -> Tensor:
        value = self.tensor(name, size)
        assert isinstance(value, Tensor)
        return value

    def norm(self, name: str, size: int, order: Tensor | None = None) -> Norm:
        weight = self.vector(f"{name}.weight", size)
        return Norm(weight if order is None else weight[order], self.shape.eps)

    def linear(self, parts: list[Matrix], bias: Tensor | None = None, cut: int = 1) -> Linear:
        """`cut`: into how many parts of equal rows its dense copy falls."""
        weight = stacked(parts)
        made = make_linear(weight, self.weights, bias).to(self.device)
        if self.copies:
            made.keep_copy(cut, weight)
        return made

    def attention(self, i: int) -> Attention:
        s, at = self.shape, f"model.layers.{i}.self_attn."
        qkv: list[Matrix] = []
        bias: list[Tensor] = []
        for name, heads in {"q": s.heads, "k": s.kv_heads, "v": s.kv_heads}.items():
            rows = heads * s.head_size
            order = torch.arange(rows) if name == "v" else interleave(rows, s.head_size)
            qkv.append(pick_rows(self.tensor(f"{at}{name}_proj.weight", rows, s.width), order))
            if self.family.qkv_bias:
                bias.append(self.vector(f"{at}{name}_proj.bias", rows)[order])
        head_norms = None
        if self.family.head_norms:
            pairs = interleave(s.head_size, s.head_size)
            norm_q, norm_k = (self.norm(f"{at}{n}_norm", s.head_size, pairs) for n in "qk")
            head_norms = norm_q, norm_k
        out = self.linear([self.tensor(f"{at}o_proj.weight", s.width, s.heads * s.head_size)])
        return Attention(s, s.window[i], self.linear(qkv, torch.cat(bias) if bias else None), out, head_norms)

    def block(self, i: int) -> Block:
        s, at = self.shape, f"model.layers.{i}."
        gate_up = [self.tensor(f"{at}mlp.{n}_proj.weight", s.feed_forward, s.width) for n in ("gate", "up")]
        down = self.linear([self.tensor(f"{at}mlp.down_proj.weight", s.width, s.feed_forward)])
        return Block(
            i,
            self.norm(f"{at}input_layernorm", s.width),
            self.attention(i),
            self.norm(f"{at}post_attention_layernorm", s.width),
            GatedFeedForward(self.linear(gate_up, cut=2), down),
        )

    def embedding(self) -> EmbeddingAndHead:
        """As transformers ties them (`PreTrainedModel.tie_weights`): a head that is stored and differs is used although
        the config says tied, and where one of the two is missing, the other serves for both."""
        s = self.shape
        stored = [n for n in ("model.embed_tokens.weight", "lm_head.weight") if n in self.names]
        tied = bool(self.config.tie_word_embeddings)
        if not tied and "lm_head.weight" not in stored:
            why = "is missing, and config.json does not say that it is tied to the embedding (tie_word_embeddings)"
            raise Refused("The tensor lm_head.weight", why, "Fetch the model again")
        names = stored if tied and stored else ("model.embed_tokens.weight", "lm_head.weight")
        embed, *more = (self.tensor(name, s.vocab, s.width) for name in names)
        head = more[0] if more and not (tied and torch.equal(as_dense(embed), as_dense(more[0]))) else None
        made = EmbeddingAndHead(embed, head, self.weights).to(self.device)
        if self.copies:
            made.keep_candidate_head()
        return made


def build(
    checkpoint: Checkpoint,
    weights: str,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    copies: bool = False,
) -> Decoder:
    """The decoder for a checkpoint, layer by layer, in the format called `weights`; `progress(done, total)` per layer.

    `copies`: with what `Decoder.keep_prefill_copies` keeps.

    Raises Refused for an architecture or a format that does not suit, and for tensors that are missing or misshapen.
    """
    builder = Builder(checkpoint, weights, device, copies)
    s, layers = builder.shape, []
    for i in range(s.layers):
        layers.append(builder.block(i))
        if progress:
            progress(i + 1, s.layers)
    embedding, norm = builder.embedding(), builder.norm("model.norm", s.width)
    factors = checkpoint.get("rope_freqs") if "rope_freqs" in builder.names else None
    angles, scale = rotations(builder.config, factors if isinstance(factors, Tensor) else None)
    model = Decoder(s, embedding, layers, norm, angles.to(norm.weight.device), weights)
    model.rotation_scale = scale
    return model.eval()

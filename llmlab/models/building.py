"""Hugging Face config and state dict to our decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from llmlab.errors import Refused
from llmlab.models.block import Block
from llmlab.models.decoder import Decoder
from llmlab.models.embedding import EmbeddingAndHead
from llmlab.models.families import FAMILIES, biases, ours, shape_of, tensors_of, unread
from llmlab.models.feed_forward.gated import GatedFeedForward
from llmlab.models.formats.linear import Linear
from llmlab.models.formats.quantized_groups import Matrix, QuantizedGroups, as_dense, pick_rows, stacked
from llmlab.models.formats.registry import make_linear
from llmlab.models.loading.checkpoint import Checkpoint
from llmlab.models.loading.progress import check
from llmlab.models.mixers.attention import Attention
from llmlab.models.norm import Norm
from llmlab.models.rope import Rotary, interleave, rotary


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
        self.names, self.literal = set(checkpoint.names()), checkpoint.literal
        if left := unread(config, self.names, self.literal):
            rest = f" and {len(left) - 1} more tensors" if len(left) > 1 else ""
            raise Refused(
                f"The tensor {left[0]}{rest}", "would not be read, so the text would be wrong", "Choose another"
            )
        self.biases = {n for n in tensors_of(config, self.names, self.literal) if n.endswith(".bias")}
        self.rotary = self._rotary()
        self.turning = self.rotary.turning

    def tensor(self, name: str, *shape: int) -> Matrix:
        """Raises Refused for a tensor that is missing or has another shape."""
        check()
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

    def _rotary(self) -> Rotary:
        factors = self.checkpoint.get("rope_freqs") if "rope_freqs" in self.names else None
        partial = self.family.partial or self.literal
        factors = factors if isinstance(factors, Tensor) else None
        return rotary(self.config, partial, factors).to(self.device)

    def bias(self, matrix: str, rows: int) -> Tensor | None:
        """The bias of a matrix, or None where it has none. Raises Refused where the config asks for one."""
        name = f"{matrix}.bias"
        asked = not self.literal and matrix.rsplit(".", 1)[1] in biases(self.config)
        return self.vector(name, rows) if asked or name in self.biases else None

    def joined(self, at: str, names: Sequence[str], rows: Sequence[int]) -> tuple[list[Matrix], list[Tensor | None]]:
        """Matrices (rows, E) and their biases: a tensor each, or parts of one that a family keeps joined."""
        width = self.shape.width
        if not self.family.joined:
            each = list(zip(names, rows, strict=True))
            return [self.tensor(f"{at}{n}_proj.weight", r, width) for n, r in each], [
                self.bias(f"{at}{n}_proj", r) for n, r in each
            ]
        name = "qkv" if len(names) == 3 else "_".join(names)
        whole, ends = self.tensor(f"{at}{name}_proj.weight", sum(rows), width), list(accumulate(rows))
        parts = [pick_rows(whole, torch.arange(end - r, end)) for r, end in zip(rows, ends, strict=True)]
        bias = self.bias(f"{at}{name}_proj", sum(rows))
        return parts, [None] * len(rows) if bias is None else list(bias.split(list(rows)))

    def linear(self, parts: list[Matrix], bias: Tensor | None = None, cut: int = 1) -> Linear:
        """`cut`: into how many parts of equal rows its dense copy falls."""
        check()
        weight = stacked(parts)
        made = make_linear(weight, self.weights, bias).to(self.device)
        if self.copies:
            check()
            made.keep_copy(cut, weight)
        return made

    def attention(self, i: int) -> Attention:
        s, at = self.shape, f"model.layers.{i}.self_attn."
        rows = [heads * s.head_size for heads in (s.heads, s.kv_heads, s.kv_heads)]
        orders = [interleave(n, s.head_size, self.turning) for n in rows[:2]] + [torch.arange(rows[2])]
        matrices, bias = self.joined(at, "qkv", rows)
        qkv = self.linear(
            [pick_rows(m, order) for m, order in zip(matrices, orders, strict=True)],
            _together([None if b is None else b[order] for b, order in zip(bias, orders, strict=True)], rows),
        )
        head_norms = None
        if self.family.head_norms:
            pairs = interleave(s.head_size, s.head_size, self.turning)
            norm_q, norm_k = (self.norm(f"{at}{n}_norm", s.head_size, pairs) for n in "qk")
            head_norms = norm_q, norm_k
        out = self.linear([self.tensor(f"{at}o_proj.weight", s.width, rows[0])], self.bias(f"{at}o_proj", s.width))
        return Attention(s, s.window[i], qkv, out, head_norms)

    def block(self, i: int) -> Block:
        s, at = self.shape, f"model.layers.{i}."
        rows = [s.feed_forward] * 2
        gate_up, bias = self.joined(f"{at}mlp.", ("gate", "up"), rows)
        down = self.tensor(f"{at}mlp.down_proj.weight", s.width, s.feed_forward)
        return Block(
            i,
            self.norm(f"{at}input_layernorm", s.width),
            self.attention(i),
            self.norm(f"{at}post_attention_layernorm", s.width),
            GatedFeedForward(
                self.linear(gate_up, _together(bias, rows), cut=2),
                self.linear([down], self.bias(f"{at}mlp.down_proj", s.width)),
            ),
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
        alike = tied and (not more or torch.equal(as_dense(embed).float(), as_dense(more[0]).float()))
        head = None if alike else more[0]
        made = EmbeddingAndHead(embed, head, self.weights).to(self.device)
        if self.copies:
            check()
            made.keep_candidate_head()
        return made


def _together(biases: Sequence[Tensor | None], rows: Sequence[int]) -> Tensor | None:
    """The biases of stacked matrices as one, zero for a matrix that has none; None where none has one."""
    if all(b is None for b in biases):
        return None
    device = next(b.device for b in biases if b is not None)
    return torch.cat([torch.zeros(n, device=device) if b is None else b for b, n in zip(biases, rows, strict=True)])


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
    return Decoder(s, embedding, layers, norm, builder.rotary, weights).eval()

"""Any other Hugging Face causal model, run through transformers' own seam for attention: slower, still measured.

transformers computes everything but attention; keys and values go to our memory, so eviction and speculation work as
they do on our decoder. What needs single layers or weights is refused, because the layers belong to transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmlab.errors import Refused
from llmlab.kv.memory import Memory
from llmlab.kv.rows import Rows
from llmlab.kv.storage import PlainStorage
from llmlab.models.batch import Batch, Span
from llmlab.models.capabilities import Capability
from llmlab.models.decoder import Plan
from llmlab.models.kernels.reference import attention
from llmlab.models.result import ForwardResult

NAME = "llmlab"
ABILITIES = frozenset({Capability.MANY_ROWS, Capability.ROLLBACK, Capability.EVICTION, Capability.ATTENTION})
FORMATS = ("dense-fp32", "dense-bf16", "nf4", "bnb-int8")


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    lab: Batch | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers calls this per layer with (1, heads, T, D) of the new tokens only; the rest is in our memory.

    The mask is ours as well: a name that is registered for attention and not for masks makes transformers build none.
    """
    if lab is None:
        raise RuntimeError("a wrapped model was called without its batch")
    for odd in ("softcap", "s_aux"):
        if kwargs.get(odd) is not None:
            raise Refused("This model", f"uses {odd} in its attention, which is not built", "Choose another model")
    (span,) = lab.spans
    rows = span.memory.layers[module.layer_idx]
    rows.append(torch.stack([key[0], value[0]]), span.order(lab))
    window = kwargs.get("sliding_window", getattr(module, "sliding_window", None))
    y = attention(query[0].transpose(0, 1), rows, lab.positions, span, module.layer_idx, window, scaling)
    return y.view(1, query.shape[2], query.shape[1], -1), None


class Wrapped:
    """A transformers causal model behind our decoder's `forward(batch, plan, last)`; one sequence at a time."""

    capabilities = ABILITIES

    def __init__(self, model: Any, weights: str) -> None:
        """`model` was made with `attn_implementation="llmlab"`. Refused when a layer keeps no keys and values."""
        self.hf, self.weights = model.eval(), weights
        config = model.config
        self.context = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 1024)
        self.layers = range(config.num_hidden_layers)
        self._dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        probe = [_Probe(self._dtype, self.device) for _ in self.layers]
        batch = Batch(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), [])
        batch.spans = [Span(0, 1, Memory(probe))]  # type: ignore[arg-type]
        self.forward(batch)
        shapes = [p.shape for p in probe if p.shape is not None]
        if len(shapes) < len(probe):
            raise Refused(
                "This model", "has layers that keep no keys and values, which the lab cannot measure", "Choose another"
            )
        self._shapes = shapes

    @property
    def device(self) -> torch.device:
        return torch.device(self.hf.device)

    @property
    def vocab(self) -> int:
        """V, padding included."""
        return int(self.hf.get_input_embeddings().num_embeddings)

    @property
    def nbytes(self) -> int:
        return int(self.hf.get_memory_footprint())

    def memory(self) -> Memory:
        return Memory([Rows(PlainStorage(*shape, self._dtype, self.device), self.device) for shape in self._shapes])

    @torch.inference_mode()
    def forward(self, batch: Batch, plan: Plan | None = None, last: int | None = None, best: int = 0) -> ForwardResult:
        """As `Decoder.forward`, for a batch of one sequence; a plan is refused before a run by the capabilities."""
        if plan is not None or batch.taps is not None:
            raise Refused("A wrapped model", "cannot skip layers or show its states", "Choose one of our decoder's")
        out = self.hf(
            input_ids=batch.tokens[None].to(self.device),
            position_ids=batch.positions[None].to(self.device),
            use_cache=False,
            lab=batch,
            **({"logits_to_keep": last or 1} if last is not None else {}),
        )
        return ForwardResult(out.logits[0, : 0 if last == 0 else None].float(), float(len(self.layers)))


class _Probe(Rows):
    """Rows that find out their own shape from the first keys they are given."""

    shape: tuple[int, int] | None = None

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(PlainStorage(0, 0, dtype, device), device)

    def append(self, kv: Tensor, positions: Tensor | range) -> None:
        self.shape = (kv.shape[1], kv.shape[3])
        super().__init__(PlainStorage(*self.shape, kv.dtype, kv.device), kv.device)
        super().append(kv, positions)


def build(path: str, weights: str, device: str) -> Wrapped:
    """A Wrapped model from a folder of safetensors. Refused for a format that only our decoder has."""
    from transformers import AttentionInterface, AutoModelForCausalLM, BitsAndBytesConfig

    AttentionInterface.register(NAME, _attention)
    if weights not in FORMATS:
        raise Refused(f"The {weights} format", "needs our own decoder, which does not run this model", "Choose nf4")
    kinds: dict[str, dict[str, Any]] = {
        "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "bnb-int8": {"load_in_8bit": True},
    }
    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.float32 if weights == "dense-fp32" else torch.bfloat16,
        attn_implementation=NAME,
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
        # accelerate fills the first device and offloads what is left over, so a model larger than a GPU still runs.
        device_map="auto" if device.startswith("cuda") else {"": device},
        quantization_config=BitsAndBytesConfig(**kinds[weights]) if weights in kinds else None,
    )
    return Wrapped(model, weights)

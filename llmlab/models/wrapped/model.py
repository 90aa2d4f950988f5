"""Other Hugging Face causal models, run by transformers: slower, still measured.

transformers computes everything but what a seam takes over; keys and values go to our memory, so eviction and
speculation work as they do on our decoder. What needs single layers or weights is refused, because the layers belong to
transformers.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmlab.errors import Refused
from llmlab.kv.memory import Memory
from llmlab.kv.rows import Rows
from llmlab.kv.storage import PlainStorage
from llmlab.models.batch import Batch, Span
from llmlab.models.capabilities import Capability
from llmlab.models.config import text_of
from llmlab.models.decoder import Plan
from llmlab.models.not_finite import in_modules
from llmlab.models.result import ForwardResult
from llmlab.models.rope import context_of
from llmlab.models.work import Work
from llmlab.models.wrapped.cost import PassCost
from llmlab.models.wrapped.length import LengthRotations
from llmlab.models.wrapped.seams import Pass, Seam, Unsuited, under_way


class Wrapped:
    """A transformers causal model behind our decoder's `forward(batch, plan, last)`; one sequence at a time."""

    def __init__(self, model: Any, weights: str, seam: type[Seam], positioned: bool = True) -> None:
        """`positioned`: whether it is told the position of each token, or counts for itself from its cache's length.

        Raises Unsuited for a model that this seam does not fit.
        """
        self.hf, self.weights, self.seam = model.eval(), weights, seam
        seam.enter(model)
        config = text_of(model.config)
        self.context, self.vocab = context_of(config), int(model.get_input_embeddings().weight.shape[0])
        self._lengths = LengthRotations(model)
        self._dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        taken = inspect.signature(model.forward).parameters
        if positioned and "position_ids" not in taken:
            raise Unsuited("takes no positions")
        self._positioned = positioned
        self._cache = "cache" if "cache" in taken else "past_key_values"
        if self._cache not in taken:
            raise Unsuited("takes no cache, so every token would read the whole text again", final=True)
        self._cut = "logits_to_keep" in taken
        self.layers = range(0)
        self.work, self._cost = Work(), PassCost.of(self.hf)
        self._shapes = self._probed(config)
        self._slots = {layer: slot for slot, layer in enumerate(self._shapes)}
        self.layers = range(len(self._slots))
        self.work = Work()

    def _probed(self, config: Any) -> dict[int, tuple[int, int]]:
        """The heads and their size in each layer that keeps keys and values, by the number that it goes by."""
        most = 2 * int(getattr(config, "num_hidden_layers", 0) or 0) + 256
        probe = [_Probe(self._dtype, self.device) for _ in range(most)]
        self._slots = {i: i for i in range(most)}
        token = torch.full((1,), min(3, self.vocab - 1))
        self.forward(Batch(token, torch.zeros(1, dtype=torch.long), [Span(0, 1, Memory(list(probe)), first=0)]))
        found = {i: p.shape for i, p in enumerate(probe) if p.shape is not None}
        if not found:
            raise Unsuited("keeps no keys and values", final=True)
        return found

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self.seam.abilities

    @property
    def length_limit(self) -> int | None:
        """As `Decoder.length_limit`."""
        return self._lengths.rule.limit if self._lengths.rule else None

    @property
    def rereads_at(self) -> int | None:
        """As `Decoder.rereads_at`."""
        rule = self._lengths.rule
        return rule.limit if rule and rule.rereads else None

    def not_finite(self, tokens: Sequence[int]) -> tuple[str, str, str]:
        """As `Decoder.not_finite`, by its modules."""
        return in_modules(self, tokens)

    @property
    def device(self) -> torch.device:
        return torch.device(self.hf.device)

    @property
    def nbytes(self) -> int:
        return int(self.hf.get_memory_footprint())

    @property
    def pass_bytes(self) -> int:
        """As `Decoder.pass_bytes`, without experts, of which a token takes some."""
        return self._cost.read_bytes

    def memory(self) -> Memory:
        return Memory(
            [Rows(PlainStorage(*shape, self._dtype, self.device), self.device) for shape in self._shapes.values()]
        )

    @torch.inference_mode()
    def forward(self, batch: Batch, plan: Plan | None = None, last: int | None = None, best: int = 0) -> ForwardResult:
        """As `Decoder.forward`, for a batch of one sequence; a plan is refused before a run by the capabilities."""
        if plan is not None or batch.taps is not None:
            raise Refused("A wrapped model", "cannot skip layers or show its states", "Choose one of our decoder's")
        (span,) = batch.spans
        branching = span.visible is not None and span.visible.shape[1] == len(batch.tokens)
        if branching and not (self._positioned and Capability.ATTENTION in self.capabilities):
            logits = self._branches(batch, span)
        else:
            logits = self._pass(batch, last)
        return ForwardResult(logits if last is None else logits[len(logits) - last :], float(len(self.layers)))

    def _pass(self, batch: Batch, last: int | None) -> Tensor:
        """Logits (n, V) of at least the last n tokens."""
        (span,) = batch.spans
        self._lengths.whole = span.memory.begun(batch.positions)
        more: dict[str, Any] = {"logits_to_keep": last or 1} if self._cut and last is not None else {}
        if self._positioned:
            more["position_ids"] = batch.positions[None].to(self.device)
        with under_way(Pass(batch, self._slots)) as now:
            more[self._cache] = self.seam.cache(now)
            out = self.hf(input_ids=batch.tokens[None].to(self.device), use_cache=True, **more)
        logits: Tensor = out.logits[0].float()
        self._cost.count(self.work, span.memory.layers, len(batch.tokens), len(logits))
        return logits

    def _branches(self, batch: Batch, span: Span) -> Tensor:
        """A tree's logits (N, V), for a model that reads nothing but chains: one branch after another."""
        assert span.visible is not None
        memory, N = span.memory, len(batch.tokens)
        marks, logits = memory.mark(), [torch.empty(0)] * N
        kept = [[torch.empty(0)] * N for _ in memory.layers]
        paths = [row.nonzero().flatten().tolist() for row in span.visible]
        inner = {node for path in paths for node in path[:-1]}
        for path in (p for p in paths if p[-1] not in inner):
            at = torch.tensor(path)
            first = int(batch.positions[path[0]])
            chain = Batch(batch.tokens[at], batch.positions[at], [Span(0, len(path), memory, first=first)])
            for row, node in zip(self._pass(chain, None), path, strict=True):
                logits[node] = row
            for layer, rows, mark in zip(kept, memory.layers, marks, strict=True):
                for offset, node in enumerate(path):
                    layer[node] = torch.stack([rows.k[:, mark + offset], rows.v[:, mark + offset]])
            memory.restore(marks)
        for layer, rows in zip(kept, memory.layers, strict=True):
            rows.append(torch.stack(layer, 2), batch.positions)
        return torch.stack(logits)


class _Probe(Rows):
    """Rows that find out their own shape from the first keys they are given."""

    shape: tuple[int, int] | None = None

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(PlainStorage(0, 0, dtype, device), device)

    def append(self, kv: Tensor, positions: Tensor | range) -> None:
        self.shape = (kv.shape[1], kv.shape[3])
        super().__init__(PlainStorage(*self.shape, kv.dtype, kv.device), kv.device)
        super().append(kv, positions)

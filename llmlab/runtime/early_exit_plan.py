"""How a token exits early, and what becomes of the keys and values that the layers above it lack.

"copy": they are made at once from the state it left with (state propagation: Elbayad et al., arXiv 1910.10073; CALM,
arXiv 2207.07061, section 3.3). "later": its state waits where it left, and goes up together with the next token that
goes further, in one pass of a few rows. Keys and values are then what they would have been, and each layer's weights
are read less often, though no less is computed (synchronized parallel decoding: FREE, arXiv 2310.05424, section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from llmlab.models.batch import Batch, Span, Taps
from llmlab.models.decoder import Decoder
from llmlab.models.result import PlanResult

FILLS = ("later", "copy")
ExitTest = Callable[[int, Tensor], tuple[Tensor, float] | None]
"""At the newest token's state (1, E) after so many layers: its logits (1, V) and how sure they are, if it leaves."""


class EarlyExitPlan:
    """A plan for passes of one token, which may leave after one of `layers`. `begin(batch)` makes a pass's test."""

    def __init__(self, layers: Collection[int], begin: Callable[[Batch], ExitTest], fill: str) -> None:
        self.layers, self.begin, self.fill = layers, begin, fill
        self.waiting: list[tuple[int, Tensor]] = []
        """After how many layers which states (n, E) wait, the oldest tokens first; older ones have come further."""

    def __call__(self, model: Decoder, h: Tensor, batch: Batch) -> PlanResult:
        return self._climb(model, h, batch, 0, self.begin(batch))

    def _climb(self, model: Decoder, h: Tensor, batch: Batch, ran: int, test: ExitTest) -> PlanResult:
        """On from h (n, E), which has gone through `ran` layers; its last row is the newest token's."""
        count = len(model.layers)
        while ran < count:
            if self.waiting and self.waiting[-1][0] == ran:
                return self._together(model, torch.cat([self.waiting.pop()[1], h]), batch, ran, test)
            stops = [layer for layer in self.layers if layer > ran] + [at for at, _ in self.waiting if at > ran]
            stop = min([*stops, count])
            h = model.run_layers(h, batch, ran, stop)
            ran = stop
            if ran in self.layers and (answer := test(ran, h[-1:])) is not None:
                self._leave(model, h, batch, ran)
                return PlanResult(h[-1:], float(ran), answer[0], ((ran, answer[1]),))
        return PlanResult(h[-1:], float(count))

    def _leave(self, model: Decoder, h: Tensor, batch: Batch, ran: int) -> None:
        if self.fill == "copy":
            model.run_layers(h, batch, ran, kv_only=True)
            return
        if self.waiting and self.waiting[-1][0] == ran:
            h = torch.cat([self.waiting.pop()[1], h])
        self.waiting.append((ran, h.clone()))  # a pass of a few rows changes h in place

    def _together(self, model: Decoder, states: Tensor, batch: Batch, ran: int, test: ExitTest) -> PlanResult:
        """The remaining layers for states (n, E), the last of this pass and the others postponed before."""
        (span,), n = batch.spans, len(states)
        assert span.first is not None
        first = span.first + (span.stop - span.start) - n
        places = torch.arange(first, first + n, device=states.device)
        rows = Span(0, n, span.memory, None, span.patterns, None, first)
        tokens = batch.tokens[-1:].expand(n)  # which tokens they are does not matter
        taps = batch.taps and Taps(batch.taps.layers)
        wide = Batch(tokens, places, [rows], batch.exact, taps=taps)
        model.prepare(wide)
        result = self._climb(model, states, wide, ran, test)
        if batch.taps and taps:
            batch.taps.states |= {layer: h[-1:] for layer, h in taps.states.items()}
        return result

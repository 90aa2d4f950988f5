"""Rotations that depend on the text's length, in a transformers model that reads its text in pieces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmlab.models.rope import LENGTH_RULES, LengthRule, length_rule, rereads


class LengthRotations:
    """The rotary modules of a model whose angles go by the length of the text, told that length.

    By itself such a module takes the end of each pass for the end of the text. Here rows of one pass that stand in
    texts of different lengths are turned one group after another, by the module's own code.
    """

    def __init__(self, model: Any) -> None:
        """Does nothing to a model without such modules."""
        self.whole = 0
        self.rule: LengthRule | None = None
        for module in list(model.modules()):
            kind = getattr(module, "rope_type", None)
            if isinstance(kind, str) and kind in LENGTH_RULES and hasattr(module, "inv_freq"):
                self._take_over(model, module, kind)

    def _take_over(self, model: Any, module: Any, kind: str) -> None:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        config = module.config
        made: dict[int, Tensor] = {}

        def angles(length: int) -> Tensor:
            if length not in made:
                made[length] = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=length)[0]
            return made[length]

        rule = length_rule(config, kind, angles, rereads(model.config))
        assert rule is not None
        self.rule, plain = rule, module.forward
        module.rope_type = "default"  # or its own code would set the angles by the end of each pass

        def forward(x: Tensor, position_ids: Tensor, *rest: Any, **more: Any) -> Any:
            flat = position_ids[0]
            lengths = rule.lengths(flat, self.whole)
            order, parts = [], []
            for length in lengths.unique().tolist():
                rows = (lengths == length).nonzero().flatten()
                module.inv_freq = angles(length).to(module.inv_freq.device)
                parts.append(plain(x, position_ids[:, rows], *rest, **more))
                order.append(rows)
            back = torch.cat(order).argsort()
            if isinstance(parts[0], Tensor):
                return torch.cat(parts, 1)[:, back]
            return tuple(torch.cat(each, 1)[:, back] for each in zip(*parts, strict=True))

        module.forward = forward

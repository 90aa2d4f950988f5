"""Rotary positions: the angle per position of each pair, as a model's config scales it (RoFormer, arXiv 2104.09864).

Shapes: N positions, D head size. A head of which only a part turns has pairs at the end whose angle is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.errors import Refused

KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
"""Kinds of scaling that our decoder computes; transformers has others, in single families."""
LENGTH_RULES = ("dynamic", "longrope")
"""Kinds of scaling under which the angles depend on how long the text is."""


@dataclass(frozen=True)
class LengthRule:
    """Angles that change once a text is longer than `limit` tokens: with every token more under dynamic NTK (`grows`;
    arXiv 2309.00071, appendix B.1), once and for all under LongRoPE (arXiv 2402.13753).

    As in transformers the rows of a prompt are turned by its length, every later row by the length up to it, and rows
    in memory keep their turn; but the Phi family reads a text anew where it outgrows the limit (`rereads`).
    """

    limit: int
    grows: bool
    rereads: bool
    angles: Callable[[int], Tensor]
    """The angles (D/2,) in a text of so many tokens."""

    def lengths(self, positions: Tensor, whole: int) -> Tensor:
        """Which length counts for each of positions (N,), in a text whose first `whole` tokens were read at once."""
        if self.rereads:
            longest = max(whole, int(positions.max()) + 1 if positions.numel() else 0)
            return torch.full_like(positions, self.limit if longest <= self.limit else self.limit + 1)
        lengths = (positions + 1).clamp_min(max(whole, self.limit))
        return lengths if self.grows else lengths.clamp_max(self.limit + 1)


class Rotary(nn.Module):
    """The rotations of a model's queries and keys; without a `rule`, those of the positions seen so far are kept."""

    angles: Tensor
    """(D/2,) float32: how far each pair turns per position."""
    scale: Tensor
    """(D/2,) float32: the factor on cosine and sine; 1 for pairs that do not turn."""
    turning: int
    """How many of a head's numbers turn, from the first on."""

    def __init__(self, angles: Tensor, scale: float = 1.0, rule: LengthRule | None = None, context: int = 0) -> None:
        """`context`: how many positions the table is made for at most, unless more are asked for."""
        super().__init__()
        self.turning = 2 * len(angles)
        self.register_buffer("angles", angles.float())
        self.register_buffer("scale", torch.where(angles == 0, 1.0, scale).float())
        self.rule, self.context = rule, context
        self._kept: Tensor | None = None

    def table(self, highest: int) -> Tensor:
        """(positions, D/2) complex: the rotations of the positions below at least `highest`; only without a rule."""
        table = self._kept
        if table is None or table.shape[0] < highest or table.device != self.angles.device:
            n = min(max(1024, 2 * highest), max(self.context, highest))
            positions = torch.arange(n, device=self.angles.device)
            table = self._kept = self._turned(positions, self.angles)
        return table

    @property
    def table_bytes(self) -> int:
        """Bytes of the table that is kept."""
        return 0 if self._kept is None else self._kept.nbytes

    def _turned(self, positions: Tensor, angles: Tensor) -> Tensor:
        angle = positions.float()[:, None] * angles
        return torch.polar(self.scale.expand_as(angle).contiguous(), angle)

    def at(self, positions: Tensor, whole: int = 0) -> Tensor:
        """positions (…,) to rotations (…, D/2) complex; `whole` as in `LengthRule.lengths`."""
        if self.rule is None:
            highest = int(positions.max()) + 1 if positions.numel() else 1
            return self.table(highest)[positions]
        flat = positions.flatten()
        lengths = self.rule.lengths(flat, whole)
        turned = torch.empty(len(flat), len(self.angles), dtype=torch.complex64, device=self.angles.device)
        for length in lengths.unique().tolist():
            rows = lengths == length
            turned[rows] = self._turned(flat[rows], self.rule.angles(length).to(self.angles.device))
        return turned.view(*positions.shape, -1)


def scaling(config: Any) -> dict[str, Any]:
    """The config's parameters of rotation, with their `rope_type`."""
    parameters = dict(getattr(config, "rope_parameters", None) or {})
    return {"rope_type": "default"} | parameters


def context_of(config: Any) -> int:
    """How many tokens a model reads: under dynamic NTK, `factor` times as many as it was trained for."""
    most = int(
        getattr(config, "max_position_embeddings", None)
        or getattr(config, "n_positions", None)
        or getattr(config, "max_seq_len", None)
        or 2048
    )
    parameters = scaling(config)
    return int(most * float(parameters["factor"])) if parameters["rope_type"] == "dynamic" else most


def rotary(config: Any, partial: bool = False, factors: Tensor | None = None) -> Rotary:
    """The rotations that a config asks for: default, linear, dynamic NTK, YaRN, llama3 or longrope.

    `partial`: whether `partial_rotary_factor` counts (transformers heeds it in some families only). `factors` (D/2,):
    divisors that a GGUF file carries in place of a rule.

    Raises Refused for a rule that is unknown or lacks a figure.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = scaling(config)["rope_type"]
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if kind not in KINDS:
        raise Refused(
            "This model", f"scales its positions by an unknown rule, {str(kind)[:30]}", "Choose another model"
        )

    def angles(length: int | None) -> tuple[Tensor, float]:
        if kind == "default":
            return _plain(config, size, partial), 1.0
        made, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=length)
        return made.float(), float(scale)

    def padded(turning: Tensor) -> Tensor:
        turning = turning if factors is None else turning / factors[: len(turning)]
        return F.pad(turning, (0, size // 2 - len(turning)))

    try:
        turning, scale = angles(None)
        rule = length_rule(config, kind, lambda length: padded(angles(length)[0]), rereads(config))
        made = Rotary(padded(turning), scale, rule, context_of(config))
        made.turning = 2 * len(turning)
        return made
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ZeroDivisionError) as e:
        raise Refused(
            "This model", f"lacks a figure of its rotation by the {kind} rule, or has a wrong one", "Choose another"
        ) from e


def _plain(config: Any, size: int, partial: bool) -> Tensor:
    parameters = scaling(config)
    theta = parameters.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0
    turning = int(size * (parameters.get("partial_rotary_factor") or 1.0)) if partial else size
    return 1.0 / theta ** (torch.arange(0, turning, 2, dtype=torch.float32) / turning)


def length_rule(config: Any, kind: str, angles: Callable[[int], Tensor], anew: bool) -> LengthRule | None:
    """The rule of a kind of scaling that goes by the length; None for the others. `anew`: see `LengthRule.rereads`."""
    if kind == "dynamic":
        return LengthRule(int(config.max_position_embeddings), True, False, angles)
    if kind == "longrope":
        return LengthRule(int(scaling(config)["original_max_position_embeddings"]), False, anew, angles)
    return None


def rereads(config: Any) -> bool:
    """Whether transformers' model for a config reads a text anew when it outgrows its first angles."""
    return config.model_type in ("phi3", "phi4_multimodal", "phimoe")


def interleave(rows: int, head_size: int, turning: int | None = None) -> Tensor:
    """Order that turns Hugging Face's halves (x₀…, y₀…) of each head into pairs (x₀, y₀, x₁, y₁, …).

    `turning`: how many of a head's numbers turn, all by default; those behind them keep their order.
    """
    turning = head_size if turning is None else turning
    half = torch.arange(turning).view(2, turning // 2).t().reshape(-1)
    one = torch.cat([half, torch.arange(turning, head_size)])
    return (torch.arange(rows // head_size)[:, None] * head_size + one).reshape(-1)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.models.batch import Batch
from llmlab.models.cached import cached_on
from llmlab.models.capabilities import Capability
from llmlab.models.decoder import Decoder, Plan
from llmlab.models.loading.progress import check
from llmlab.models.result import PlanResult
from llmlab.runtime.calibration import calibration_batch
from llmlab.runtime.configurable import knob
from llmlab.runtime.roles import LayerPlan
from llmlab.runtime.tools import Tools

CALIBRATION = 4096
RIDGE = 0.1


@dataclass(frozen=True, eq=False)
class Routers:
    """Per layer a linear router on x = rms(h): weights (L, E), bias (L,), and their scores on n tokens (L, n)."""

    weights: Tensor
    bias: Tensor
    scores: Tensor

    def bar(self, density: float) -> float:
        """What a router must say for its layer to run, so that this share of all layers runs on the tokens at hand."""
        L, n = self.scores.shape
        skipped = min(round((1 - density) * L * n), (L - 2) * n)
        return float(self.scores[1:-1].flatten().sort().values[skipped - 1]) if skipped > 0 else -torch.inf


@torch.inference_mode()
def fitted(model: Decoder, tokens: list[int]) -> Routers:
    """Routers that foretell from what goes into a layer how much it will turn it, ln (1 − cos): a ridge regression for
    each layer of the unchanged model."""
    batch = calibration_batch(model, tokens)
    h = model.embedding.lookup(batch.tokens)
    weights, bias, scores = [], [], []
    for i in range(len(model.layers)):
        check()
        out = model.run_layers(h, batch, i, i + 1)
        x = F.rms_norm(h, (h.shape[-1],), None, model.shape.eps)
        y = (1 - F.cosine_similarity(h.double(), out.double(), dim=-1)).clamp_min(1e-9).log().float()
        middle, level = x.mean(0), y.mean()
        A = (x - middle).t() @ (x - middle) / len(x) + RIDGE * torch.eye(x.shape[1], device=x.device)
        w = torch.linalg.solve(A, (x - middle).t() @ (y - level) / len(x))
        weights.append(w)
        bias.append(level - middle @ w)
        scores.append(x @ w + bias[-1])
        h = out
    return Routers(torch.stack(weights), torch.stack(bias), torch.stack(scores))


@dataclass(frozen=True)
class SkipLayer(LayerPlan):
    """SkipLayer.

    Idea: Not every token needs every layer, and the ones it can do without need not be the last ones. Before each layer
    a small router decides whether the token goes through it or around it.
    Method: Layer l runs where w_l · rms(h) + b_l > τ, else h goes on as it is. The first and the last layer always run.
    τ is set so that a share `density` of all layers runs on the calibration text. A layer that is passed by still makes
    its keys and values, which later tokens look at.
    What to look for: Layers run per token against the text's quality, and against early exit at equal depth: layers in
    the middle are left out, so the last layers' work on the answer stays.
    Differences from the paper: The paper trains router and model together, with straight-through gates and a loss on
    the density, from the start. Here the model is frozen, and each router is a linear regression of how much its layer
    turns a token.
    """

    covers = ("skiplayer",)
    needs = frozenset({Capability.LAYERS})
    disables = frozenset({Capability.MANY_ROWS})
    claim = "A small router before each layer lets tokens pass it by."
    claim_zh = "每层前的小路由器让词元绕过该层。"
    noop_settings = {"density": 1.0}
    biting_settings = {"density": 0.7}
    main_knob = "density"

    density: float = knob(0.9, 0.1, 1.0, "share of the layers that run, on average; 1: all")

    def prepare(self, model: Any, tools: Tools) -> None:
        self._routers(model, tools)

    def _routers(self, model: Decoder, tools: Tools | None) -> Routers:
        tools = tools or Tools()
        return tools.hold(cached_on(model, "routers", lambda: fitted(model, tools.calibration(CALIBRATION))))

    def plan(self, model: Decoder, tools: Tools) -> Plan | None:
        if self.density == 1:
            return None
        routers = self._routers(model, tools)
        bar = routers.bar(self.density)

        def plan(model: Decoder, h: Tensor, batch: Batch) -> PlanResult:
            count, ran = len(model.layers), 0
            for i in range(count):
                runs = i in (0, count - 1)
                if not runs:
                    x = F.rms_norm(h[-1], (h.shape[-1],), None, model.shape.eps)
                    runs = bool(x @ routers.weights[i] + routers.bias[i] > bar)
                h = model.run_layers(h, batch, i, i + 1, kv_only=not runs)
                ran += runs
            return PlanResult(h, float(ran))

        return plan

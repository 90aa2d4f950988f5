"""Keys for an answer cache: embeddings of questions, the nearest of them, and what a question will cost."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from llmlab.models.batch import Batch, Span
from llmlab.models.decoder import Decoder
from llmlab.studies.support.cascades import models as cascade_models


@torch.inference_mode()
def embedded(model: Decoder, tokenizer: Any, texts: Sequence[str], layer: int) -> tuple[Tensor, float, float]:
    """(keys (n, E) of length 1, ms each, GFLOPs each): mean-pooled states, less their mean over all texts."""
    layer = min(layer, len(model.layers))
    found, work = [], 0.0
    start = perf_counter()
    for text in texts:
        ids = list(tokenizer(text)["input_ids"])
        span = Span(0, len(ids), model.memory(), first=0)
        places = torch.arange(len(ids), device=model.device)
        batch = Batch(torch.tensor(ids, device=model.device), places, [span])
        model.prepare(batch)
        h = model.run_layers(model.embedding.lookup(batch.tokens), batch, 0, layer)
        found.append(h.float().mean(0).cpu())
        work += cascade_models.flops(model, 0, len(ids), 0) * layer / len(model.layers)
    took = perf_counter() - start
    x = torch.stack(found)
    x = torch.nn.functional.normalize(x - x.mean(0), dim=1)
    return x, 1000 * took / len(texts), work / len(texts) / 1e9


def nearest_finder(near: Tensor, sure: float) -> Any:
    """The kept query that is nearest in cosine, where that is at least `sure`."""
    table = near.tolist()

    def find(query: int, kept: Sequence[int]) -> int | None:
        best = max(kept, key=lambda k: table[query][k], default=None)
        return best if best is not None and table[query][best] >= sure else None

    return find


def predictor(
    x: Tensor, costs: list[list[float]], right: list[list[bool]], learn: Sequence[int], test: Sequence[int]
) -> tuple[dict[int, tuple[float, float]], float]:
    """What each problem would cost (small first, large at once), by ridge regression from its embedding.

    Learned from the problems `learn`. Also R² of the small model's own cost on `test`.
    """
    fallen = [small + (0.0 if ok else large) for small, large, ok in zip(*costs, right[0], strict=True)]
    y = torch.tensor([fallen, costs[1], costs[0]], dtype=torch.double).t()
    X = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.double)], 1)
    A, b = X[learn], y[learn]
    centre = b.mean(0)
    W = torch.linalg.solve(A.t() @ A + 0.3 * torch.eye(A.shape[1], dtype=torch.double), A.t() @ (b - centre))
    guess = X @ W + centre
    rest = (y[test, 2] - guess[test, 2]).square().sum()
    spread = (y[test, 2] - y[test, 2].mean()).square().sum().clamp_min(1e-12)
    return {i: (float(guess[i, 0]), float(guess[i, 1])) for i in range(len(x))}, float(1 - rest / spread)

"""What all methods of dropping tokens work on."""

from __future__ import annotations

from functools import cached_property

import torch.nn.functional as F
from torch import Tensor

from llmlab.lab.study import Subject
from llmlab.runtime.token_drop_plan import places
from llmlab.studies.support.classification.classify import Task
from llmlab.studies.support.token_drop.saliency import Saliency, saliency

TIMES = 5
"""How often words may be dropped, evenly up to the last layer."""
ASKED = 32
"""Training sentences whose loss is differentiated."""


class Bench:
    """What the methods share: the task, after which layers words may be dropped, and one backward pass."""

    def __init__(self, subject: Subject, t: Task, first: int = 0) -> None:
        self.subject, self.t = subject, t
        self.places = places(t.layers, first or max(1, t.layers // 2), TIMES)

    @cached_property
    def found(self) -> Saliency:
        """States, attention and the loss's slope on the first `ASKED` training sentences, on the processor."""
        t, y = self.t, self.t.y["train"][:ASKED]
        W, b = t.probes.W[-1], t.probes.b[-1]
        mean, deviation = t.scale.mean[-1], t.scale.deviation[-1]

        def loss(h: Tensor) -> Tensor:
            return F.cross_entropy((h.cpu() - mean) / deviation @ W + b, y, reduction="sum")

        def told(done: int, total: int) -> None:
            self.subject.progress("Going back through the layers", done, total)

        f = saliency(t.model, t.ids["train"][:ASKED], loss, told)
        return Saliency(f.h.cpu(), f.contribution.cpu(), f.gate.cpu(), f.received.cpu(), f.spans)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmlab.errors import Refused
from llmlab.models.auxiliary.exit_heads import HEADS, ExitHeads
from llmlab.models.batch import Batch, Span
from llmlab.models.cached import cached_on
from llmlab.models.capabilities import Capability
from llmlab.models.decoder import Decoder, Plan
from llmlab.runtime.configurable import knob
from llmlab.runtime.early_exit_plan import FILLS, EarlyExitPlan, ExitTest
from llmlab.runtime.roles import LayerPlan
from llmlab.runtime.tools import Tools
from llmlab.techniques.early_exit import hash_tables
from llmlab.techniques.early_exit.heads import exit_heads

ASSIGNMENTS = ("frequency", "random", "information", "cluster")
CALIBRATION = 4096
CLASSES = 64
"""Words that the model says most, told apart when a token's information about the next one is measured."""


@torch.inference_mode()
def answers(model: Decoder, tokens: list[int]) -> Tensor:
    """(n,): the word that the model would say after each of n tokens."""
    found = []
    for piece in torch.tensor(tokens, device=model.device).split(256):
        batch = Batch(piece, torch.arange(len(piece), device=model.device), [Span(0, len(piece), model.memory())])
        found.append(model.forward(batch).logits.argmax(-1))
    return torch.cat(found).cpu()


@dataclass(frozen=True)
class HashExit(LayerPlan):
    """Hash exit.

    Idea: How hard a token is to continue is itself hard to learn. So every word has its layer, and goes no further.
    Method: exit(x) = table[x], equal buckets of words over the layers `first`, `first` + `step`, … L. First leave
    frequent words; or those that say most about the next one (mutual information); or clusters; or chance decides.
    What to look for: The time of a pass against early exit at equal depth: this rule costs nothing.
    Differences from the paper: HashEE fine-tunes the model under its table; here the model is frozen. Its own head (or
    a trained exit) reads the answer. Frequencies come from the calibration text; words that it lacks never exit.
    """

    covers = ("hashee",)
    needs = frozenset({Capability.LAYERS})
    disables = frozenset({Capability.MANY_ROWS})
    claim = "Every word has its own exit layer, fixed beforehand."
    claim_zh = "每个词都有事先固定的退出层。"
    noop_settings = {"first": 128}
    biting_settings = {"first": 2}
    main_knob = "first"

    assign: str = knob("frequency", choices=ASSIGNMENTS, help="which words leave first")
    first: int = knob(0, 0, 128, "layers of the first bucket; 0: seven of eight; all layers and more: no exits")
    step: int = knob(1, 1, 32, "layers between buckets")
    head: str = knob("logit-lens", choices=HEADS, help="the model's own head, or exits trained for this model")
    fill: str = knob("copy", choices=FILLS, help="skipped keys and values: made later, or of a copied state")
    seed: int = knob(0, 0, 1000, "of chance, and of the clusters' beginnings", advanced=True)

    def disabled(self) -> frozenset[Capability]:
        return self.disables | ({Capability.EVICTION} if self.fill == "later" else frozenset())

    def prepare(self, model: Any, tools: Tools) -> None:
        self._ready(model, tools)

    def _ready(self, model: Decoder, tools: Tools | None) -> tuple[ExitHeads | None, hash_tables.Hash]:
        """The heads at the exits, and the table; no heads where nothing exits."""
        tools, count = tools or Tools(), len(model.layers)
        first = self.first or (1 if self.head == "trained" else count * 7 // 8)
        layers = range(first, count, self.step)
        if not layers:
            return None, hash_tables.Hash(torch.full((model.shape.vocab,), count))
        heads = exit_heads(model, tools, self.head, layers, 0, self.title)
        places = (*(layer for layer in heads.layers if first <= layer < count), count)
        if len(places) == 1:
            raise Refused(self.title, f"finds no trained exit from layer {first} on", "Give a smaller number as first")
        return heads, tools.hold(cached_on(model, (self, places), lambda: self._table(model, tools, places)))

    def _table(self, model: Decoder, tools: Tools, places: tuple[int, ...]) -> hash_tables.Hash:
        V = model.shape.vocab
        if self.assign == "random":
            return hash_tables.random_hash(V, places, self.seed)
        if self.assign == "cluster":
            embeddings = model.embedding.lookup(torch.arange(V, device=model.device)).cpu()
            return hash_tables.cluster_hash(embeddings, places, self.seed)
        text = tools.calibration(CALIBRATION)
        if self.assign == "frequency":
            return hash_tables.frequency_hash(torch.bincount(torch.tensor(text), minlength=V), places)
        predicted = answers(model, text)
        often = torch.bincount(predicted, minlength=V).argsort(descending=True, stable=True)[: CLASSES - 1]
        classes = torch.full((V,), CLASSES - 1)
        classes[often] = torch.arange(len(often))
        return hash_tables.information_hash(torch.tensor(text), classes[predicted], V, places)

    def plan(self, model: Decoder, tools: Tools) -> Plan | None:
        heads, table = self._ready(model, tools)
        if heads is None:
            return None

        def begin(batch: Batch) -> ExitTest:
            exit_at = int(table.at(batch.tokens[-1:].cpu()))

            def test(ran: int, h: Tensor) -> tuple[Tensor, float] | None:
                if ran != exit_at:
                    return None
                logits = heads.logits(ran, h)
                return heads.spread(logits), float(torch.softmax(logits, -1).amax())

            return test

        return EarlyExitPlan(heads.layers, begin, self.fill)

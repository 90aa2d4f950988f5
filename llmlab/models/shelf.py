"""Models in memory: loaded once per format, changed on private copies, the least recently used ones let go."""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from llmlab.abilities import Ability, Refused, check
from llmlab.meter import free_memory, total_memory
from llmlab.models import catalog, sources
from llmlab.models.catalog import FORMATS
from llmlab.models.decoder import Decoder
from llmlab.models.families import build as build_decoder
from llmlab.models.families import ours
from llmlab.models.sources import Report
from llmlab.models.wrapped import ABILITIES as WRAPPED
from llmlab.models.wrapped import FORMATS as WRAPPED_FORMATS
from llmlab.session import Session
from llmlab.stack import Stack
from llmlab.tools import Tools


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, with what is needed to turn text into its tokens and back."""

    name: str
    model: Any
    tokenizer: Any
    weights: str
    stop_tokens: frozenset[int]
    source: str


@dataclass(frozen=True)
class Changed:
    """A model with a stack's weight transforms applied, and what each did: (title, bytes before, after, note)."""

    model: Any
    changes: tuple[tuple[str, int, int, str], ...]


class Shelf:
    """Keeps at most `most` bytes of models. A run holds its model itself, so it never loses the one it uses."""

    def __init__(self, most: int | None = None) -> None:
        self.most = most or total_memory() // 2
        self._held: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._lock = threading.RLock()

    def abilities(self, ref: str) -> frozenset[Ability]:
        """What a model will be able to do, known from its catalogue entry or its config, before a weight is loaded."""
        entry = catalog.MODELS.get(ref)
        if entry is not None:
            return Decoder.abilities if entry.runs_on == "decoder" else WRAPPED
        return Decoder.abilities if self._decodes(sources.find(ref)) else WRAPPED

    @staticmethod
    def _decodes(found: sources.Found) -> bool:
        """Whether our own decoder runs it, rather than transformers."""
        return found.entry.runs_on == "decoder" if found.entry else ours(sources.read_config(found))

    def load(
        self,
        ref: str,
        weights: str,
        device: str = "auto",
        rows: int = 0,
        report: Report | None = None,
        copies: bool = True,
    ) -> Loaded:
        """The model called `ref` (catalogue id, Hub id, folder or GGUF file) in a weight format.

        `rows` of keys and values must fit beside it. With `copies`, what makes reading prompts quicker is kept too,
        where half of the free memory holds it. Raises Refused, before loading, for whatever cannot work.
        """
        if weights not in FORMATS:
            raise Refused(
                f"No weight format is called {weights[:20]!r};", "it is unknown", f"Choose {', '.join(FORMATS)}"
            )
        device = pick(device)
        key = ("loaded", ref, weights, device, copies)
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            tell = report or sources.quiet
            found = sources.find(ref)
            size = found.entry.size if found.entry else catalog.size_of(sources.read_config(found))
            self._make_room(catalog.weight_bytes(size, weights))
            free, decodes = free_memory(device), self._decodes(found)
            # What does not fit a GPU is spread over it and the processor's memory by accelerate.
            spread = (
                device.startswith("cuda") and found.kind != "gguf" and not catalog.fit(size, weights, rows, free).fits
            )
            if spread:
                free += free_memory()
            catalog.require_fit(size, weights, rows, free, found.name, FORMATS if decodes else WRAPPED_FORMATS)
            found = sources.fetch(found, tell)
            tell("Loading the tokenizer", 0, 0)
            tokenizer, config = sources.tokenizer(found), sources.read_config(found)
            if decodes and not spread:
                source = sources.checkpoint(found)
                roomy = copies and catalog.copy_bytes(size, weights) < free / 2
                loading = partial(tell, "Loading the weights")
                model: Any = build_decoder(source, weights, device, loading, roomy)
                origin = source.source
            else:
                from llmlab.models import wrapped

                tell("Loading the weights", 0, 0)
                model, origin = wrapped.build(str(found.path), weights, device), f"transformers, {found.name}"
            loaded = Loaded(found.name, model, tokenizer, weights, stop_tokens(tokenizer, config), origin)
            warm(model)
            self._held[key] = loaded
            return loaded

    def changed(self, loaded: Loaded, stack: Stack, tools: Tools, report: Report | None = None) -> Changed:
        """The stack's weight transforms carried out on a private copy, kept under (model, format, transforms)."""
        transforms = stack.through("WeightTransform")
        if not transforms:
            return Changed(loaded.model, ())
        for refusal in check(Stack(transforms), loaded.model.abilities, loaded.name):
            raise Refused(refusal.who, refusal.why, refusal.now)
        key = ("changed", id(loaded.model), transforms)
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            self._make_room(loaded.model.nbytes)
            model, changes = loaded.model.private(), []
            for i, transform in enumerate(transforms):
                if report:
                    report(transform.title, i, len(transforms))
                before = model.nbytes
                note = "changes nothing at these settings" if transform.lossless() else transform.apply(model, tools)
                changes.append((transform.title, before, model.nbytes, note))
            made = Changed(model, tuple(changes))
            self._held[key] = made
            return made

    def _make_room(self, wanted: int) -> None:
        def held() -> int:
            return sum(v.model.nbytes for v in self._held.values())

        while self._held and held() + wanted > self.most:
            key, gone = self._held.popitem(last=False)
            if key[0] == "loaded":  # copies of it are filed under its id, which may be given to another object
                for k in [k for k in self._held if k[0] == "changed" and k[1] == id(gone.model)]:
                    del self._held[k]
            del gone
            gc.collect()


def warm(model: Any) -> None:
    """A few passes of the widths that runs use, so that no run pays for what happens only once per process."""
    for width in (32, 1):
        session = Session(model)
        for _ in session.read([0] * (width + 1)):
            pass
        session.forward()


def pick(device: str) -> str:
    """ "auto" is CUDA where there is one. Raises Refused for a device that is not here."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise Refused(f"No device is called {device[:20]!r};", "it is unknown", "Choose auto, cpu or cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise Refused("The device cuda", "is not available on this machine", "Choose cpu or auto")
    return device


def stop_tokens(tokenizer: Any, config: Any) -> frozenset[int]:
    """The ids at which an answer ends, from the config and the tokenizer, and a chat turn's end where there is one."""
    found: set[int] = set()
    for source in (getattr(config, "eos_token_id", None), tokenizer.eos_token_id):
        found.update(source if isinstance(source, list | tuple) else [source])
    for name in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>"):
        number = tokenizer.convert_tokens_to_ids(name)
        if number is not None and number != tokenizer.unk_token_id:
            found.add(number)
    return frozenset(t for t in found if t is not None)

"""Models in memory: loaded once per format, changed on private copies, the least recently used ones let go."""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmlab.errors import Refused
from llmlab.measure.hardware import free_memory, total_memory
from llmlab.models.building import build as build_decoder
from llmlab.models.cached import kept_with
from llmlab.models.capabilities import THROUGH_ATTENTION, Capability
from llmlab.models.formats.linear import nbytes
from llmlab.models.loading import catalog, fit, progress
from llmlab.models.loading.catalog import FORMATS
from llmlab.models.loading.checkpoint import Checkpoint, Folder, as_transformers_expects
from llmlab.models.loading.contents import checkpoint, held_files, read_config, stamp_of
from llmlab.models.loading.loaded import Loaded
from llmlab.models.loading.progress import Report
from llmlab.models.loading.route import decoders, route
from llmlab.models.loading.sources import locate
from llmlab.models.loading.sources.files import Stamp
from llmlab.models.loading.sources.found import Found
from llmlab.models.loading.sources.reference import tidy
from llmlab.models.loading.tokens.ends import stop_tokens
from llmlab.models.loading.tokens.tokenizers import read_tokenizer
from llmlab.runtime.roles import WeightTransform
from llmlab.runtime.session import Session
from llmlab.runtime.stack import Stack
from llmlab.runtime.tools import Tools


@dataclass(frozen=True)
class TransformedModel:
    """A model with a stack's weight transforms applied, and what each did: (title, bytes before, after, note)."""

    model: Any
    changes: tuple[tuple[str, int, int, str], ...]
    source: Any = None
    """The model that it was made from."""


@dataclass(frozen=True)
class Files:
    """The files that a loaded model was read from, as they were then."""

    path: Path
    held: tuple[Path, ...]
    stamp: Stamp

    @classmethod
    def of(cls, found: Found, source: Checkpoint) -> Files:
        assert found.path is not None
        path, held = found.path.absolute(), tuple(f.absolute() for f in held_files(source))
        return cls(path, held, stamp_of(path, held))

    def changed(self) -> bool:
        """Whether any of them is another by now; only looks at them."""
        return stamp_of(self.path, self.held) != self.stamp


class ModelCache:
    """Keeps at most `most` bytes of models (half of the memory by default), the least recently used let go first.

    A run holds its model itself, so it never loses the one it uses.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most or total_memory() // 2
        self._held: OrderedDict[tuple[Any, ...], Any] = OrderedDict()  # `Loaded` and `TransformedModel`
        self._files: dict[tuple[Any, ...], Files] = {}  # where what is loaded was read from
        self._lock = threading.RLock()

    @property
    def nbytes(self) -> int:
        """Bytes of every model that is kept, with the networks kept with it; what a transformed copy shares, once."""
        models = [v.model for v in self._held.values()]
        modules = [m for x in models for m in (x, *kept_with(x)) if isinstance(m, nn.Module)]
        others: dict[int, int] = {id(m): m.nbytes for m in models if not isinstance(m, nn.Module)}
        return nbytes(nn.ModuleList(modules)) + sum(others.values())

    def capabilities(self, ref: str) -> frozenset[Capability]:
        """What a model will be able to do, known from its catalogue entry or its config, before a weight is loaded."""
        entry = catalog.MODELS.get(ref)
        if entry is not None:
            return decoders(None).abilities if entry.runs_on == "decoder" else THROUGH_ATTENTION
        return route(locate.find(ref)).abilities

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
        device, ref = pick_device(device), tidy(ref)
        key = ("loaded", ref, weights, device, copies)
        with self._lock:
            self._forget_changed(ref)
            if key in self._held:
                self._held.move_to_end(key)
                held: Loaded = self._held[key]
                return held
            loaded, files = self._load(ref, weights, device, rows, report or progress.quiet, copies)
            self._held[key], self._files[key] = loaded, files
            return loaded

    def _forget_changed(self, ref: str) -> None:
        """Let go of what was loaded as `ref` from files that are others by now."""
        for key in [k for k, files in self._files.items() if k[1] == ref and files.changed()]:
            self._let_go(key)

    def _load(self, ref: str, weights: str, device: str, rows: int, tell: Report, copies: bool) -> tuple[Loaded, Files]:
        found = locate.find(ref)
        size = found.entry.size if found.entry else fit.size_of(read_config(found))
        self._make_room(fit.weight_bytes(size, weights))
        free = free_memory(device)
        # What does not fit a GPU is spread over it and the processor's memory by accelerate.
        spread = device.startswith("cuda") and found.kind != "gguf" and not fit.fit(size, weights, rows, free).fits
        if spread:
            free += free_memory()
        found = self._fetched(found, weights, size, rows, free, tell)
        decodes = route(found).decodes
        tell("Loading the tokenizer", 0, 0)
        source = checkpoint(found)
        files = Files.of(found, source)  # before anything is read: what is saved meanwhile is read the next time
        tokenizer, config = read_tokenizer(found), read_config(found)
        if decodes and not spread:
            roomy = copies and fit.kept_copies(size, weights, free, device) > 0
            model: Any = build_decoder(source, weights, device, partial(tell, "Loading the weights"), roomy)
            origin = source.source
        else:
            tell("Loading the weights", 0, 0)
            model, origin = self._wrapped(source, weights, device), f"transformers, {found.name}"
        warm_up(model)
        return Loaded(found.name, model, tokenizer, weights, stop_tokens(tokenizer, config, found), origin), files

    @staticmethod
    def _wrapped(source: Checkpoint, weights: str, device: str) -> Any:
        """The model as transformers runs it, from the files that our own decoder would read."""
        from llmlab.models.wrapped.loading import build

        assert isinstance(source, Folder)
        with as_transformers_expects(source) as folder:
            model = build(str(folder), source.config, weights, device)
        for p in model.hf.parameters():
            if p.device.type == "cpu" and p.is_floating_point():
                p.data = p.data.clone()  # out of the mapped file, which may be written anew while the model runs
        return model

    @staticmethod
    def _fetched(found: Found, weights: str, size: fit.Size, rows: int, free: int, tell: Report) -> Found:
        """The model on this machine, after every check that needs no weights. Raises Refused."""
        formats = found.entry.formats if found.entry else route(found).formats
        fit.require_fit(size, weights, rows, free, found.name, formats, catalog.open_sizes())
        if weights not in formats:
            raise Refused(
                f"The {weights} format", f"needs our own decoder, which does not run {found.name}", "Choose nf4"
            )
        return locate.fetch(found, tell)

    def transformed(self, loaded: Loaded, stack: Stack, tools: Tools, report: Report | None = None) -> TransformedModel:
        """The stack's weight transforms carried out on a private copy, kept under (model, format, transforms)."""
        transforms = tuple(t for t in stack if isinstance(t, WeightTransform))
        if not transforms:
            return TransformedModel(loaded.model, ())
        Stack(transforms).require(loaded.model.capabilities, loaded.name)
        key = ("changed", id(loaded.model), transforms)
        with self._lock:
            held: TransformedModel | None = self._held.get(key)
            if held is not None and held.source is loaded.model:  # ids are given anew
                self._held.move_to_end(key)
                return held
            self._make_room(loaded.model.nbytes)
            model, changes = loaded.model.private_copy(), []
            for i, transform in enumerate(transforms):
                if report:
                    report(transform.title, i, len(transforms))
                before = model.nbytes
                note = "changes nothing at these settings" if transform.lossless() else transform.apply(model, tools)
                changes.append((transform.title, before, model.nbytes, note))
            made = TransformedModel(model, tuple(changes), loaded.model)
            self._held[key] = made
            return made

    def _make_room(self, wanted: int) -> None:
        while self._held and self.nbytes + wanted > self.most:
            self._let_go(next(iter(self._held)))

    def _let_go(self, key: tuple[Any, ...]) -> None:
        gone = self._held.pop(key)
        self._files.pop(key, None)
        if key[0] == "loaded":  # copies of it are filed under its id, which may be given to another object
            for k in [k for k in self._held if k[0] == "changed" and k[1] == id(gone.model)]:
                del self._held[k]
        del gone
        gc.collect()


def warm_up(model: Any) -> None:
    """A few passes of the widths that runs use, so that no run pays for what happens only once per process."""
    for width in (min(32, model.context - 2), 1):
        if width < 1:
            continue
        progress.check()
        session = Session(model)
        for _ in session.prefill([0] * (width + 1)):
            pass
        session.forward()


def pick_device(device: str) -> str:
    """ "auto" is CUDA where there is one. Raises Refused for a device that is not here."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise Refused(f"No device is called {device[:20]!r};", "it is unknown", "Choose auto, cpu or cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise Refused("The device cuda", "is not available on this machine", "Choose cpu or auto")
    return device

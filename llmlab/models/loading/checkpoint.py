"""What a model's weights look like before they are a model: a config, tensor names, and the tensors read one by one."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from llmlab.errors import Refused
from llmlab.models.formats.quantized_groups import QuantizedGroups
from llmlab.models.loading.sources.files import ADAPTER, CONFIGS, INDEX, SINGLE, weights_in


class Checkpoint(Protocol):
    """Names follow Hugging Face's modules ("model.layers.0.self_attn.q_proj.weight"); shapes are (outputs, inputs)."""

    @property
    def config(self) -> Any:
        """As transformers has it."""

    source: str
    """Where the weights come from, in words for the page."""
    literal: bool
    """Whether its tensors and figures alone say what the model is, as in GGUF files, and not transformers' code."""

    def names(self) -> Iterable[str]: ...

    def get(self, name: str) -> Tensor | QuantizedGroups: ...


class Folder:
    """A Hugging Face folder of safetensors files, of which only the tensor asked for is read.

    Which files are read is transformers' choice (`files.entry_file`). Of a tensor that several shards hold, the one in
    the file that the index names counts. Raises Refused where no file or several might be meant, where a file is
    damaged or missing, and where a shard lacks a tensor that the index promises.
    """

    literal = False

    def __init__(self, path: Path, config: Any, source: str) -> None:
        from safetensors import SafetensorError, safe_open

        self.config, self.source, self.path = config, source, path
        self.weights = weights_in(path, f"The folder {path.name}", getattr(config, "transformers_weights", None))
        if self.weights.entry not in (SINGLE, INDEX):
            self.source += f", {self.weights.entry}"
        self._where: dict[str, Any] = {}
        self._files: dict[str, str] = {}
        opened = {}
        for name in self.weights.files:
            try:
                opened[name] = safe_open(path / name, framework="pt", device="cpu")
                self._files.update(dict.fromkeys(opened[name].keys(), name))
            except (SafetensorError, OSError, ValueError) as e:
                raise Refused(
                    f"The file {name}", "is missing, truncated or not a safetensors file", "Fetch the model again"
                ) from e
        held = {name: set(file.keys()) for name, file in opened.items()}
        for tensor, name in self.weights.owners.items():
            if tensor not in held[name]:
                why = f"is missing from {name}, where {self.weights.entry} says that it lies"
                raise Refused(f"The tensor {tensor[:80]}", why, "Fetch the model again")
        self.disputed = {t for t, name in self.weights.owners.items() if self._files[t] != name}
        """Tensors that transformers, which lets the last file win, would take from another file than the index says."""
        self._files.update(self.weights.owners)
        self._where = {tensor: opened[name] for tensor, name in self._files.items()}

    def names(self) -> Iterable[str]:
        return self._where

    def get(self, name: str) -> Tensor:
        """Raises Refused for a tensor that is not there."""
        if name not in self._where:
            raise Refused(f"The tensor {name}", "is missing from the model's files", "Fetch the model again")
        found: Tensor = self._where[name].get_tensor(name)
        return found.clone()  # the file is mapped: whoever writes into it would change the model, or end the process


@contextmanager
def as_transformers_expects(folder: Folder) -> Iterator[Path]:
    """A folder from which transformers reads the same files as we: the model's own, or one of links to them.

    Links are needed where the file of weights has another name, where the index lacks what transformers asks of it, and
    where an adapter lies beside (transformers would load it too, if peft is here). Raises Refused where shards
    disagree about a tensor, which transformers cannot be told.
    """
    if folder.disputed:
        raise Refused(
            f"The tensor {min(folder.disputed)[:80]}",
            f"lies in several files of the folder {folder.path.name}, and transformers would read the wrong one",
            "Remove it from the files that the index does not name for it",
        )
    weights = folder.weights
    named = getattr(folder.config, "transformers_weights", None)
    whole = weights.entry in (SINGLE, INDEX) and named is None and not (folder.path / ADAPTER).exists()
    if whole and weights.owners:
        whole = isinstance(json.loads((folder.path / weights.entry).read_bytes()).get("metadata"), dict)
    if whole:
        yield folder.path
        return
    with tempfile.TemporaryDirectory(prefix="llmlab-") as scratch:
        into = Path(scratch)
        for name in CONFIGS:
            if (folder.path / name).exists():
                shutil.copyfile(folder.path / name, into / name)
        config = json.loads((into / "config.json").read_bytes())
        config.pop("transformers_weights", None)
        (into / "config.json").write_text(json.dumps(config), encoding="utf-8")
        if weights.owners:
            names = {file: f"shard-{i}.safetensors" for i, file in enumerate(weights.files)}
            owners = {tensor: names[file] for tensor, file in weights.owners.items()}
            (into / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": owners}), encoding="utf-8")
        else:
            names = {weights.entry: SINGLE}
        for file, name in names.items():
            os.symlink((folder.path / file).resolve(), into / name)
        yield into

"""What a model's weights look like before they are a model: a config, tensor names, and the tensors read one by one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from llmlab.errors import Refused
from llmlab.models.formats.quantized_groups import QuantizedGroups


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

    Raises Refused where there are none, where a file is damaged, or where the index names a file that is missing.
    """

    literal = False

    def __init__(self, path: Path, config: Any, source: str) -> None:
        from safetensors import SafetensorError, safe_open

        self.config, self.source = config, source
        index = path / "model.safetensors.index.json"
        if index.exists():
            try:
                files = sorted({str(f) for f in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
            except (ValueError, KeyError, AttributeError) as e:
                raise Refused(f"The index of {path.name}", "is damaged", "Fetch the model again") from e
        else:
            files = sorted(f.name for f in path.glob("*.safetensors"))
        if not files:
            raise Refused(f"The folder {path.name}", "holds no safetensors file", "Choose one that has its weights so")
        self._where: dict[str, Any] = {}
        for name in files:
            try:
                # The index comes with the model: a name in it must not lead out of its folder.
                file = safe_open(path / Path(name).name, framework="pt", device="cpu")
                self._where.update(dict.fromkeys(file.keys(), file))
            except (SafetensorError, OSError) as e:
                raise Refused(
                    f"The file {name}", "is missing, truncated or not a safetensors file", "Fetch the model again"
                ) from e

    def names(self) -> Iterable[str]:
        return self._where

    def get(self, name: str) -> Tensor:
        """Raises Refused for a tensor that is not there."""
        if name not in self._where:
            raise Refused(f"The tensor {name}", "is missing from the model's files", "Fetch the model again")
        found: Tensor = self._where[name].get_tensor(name)
        return found

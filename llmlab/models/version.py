"""Counting the changes of a model's matrices, so that whatever is bound to their tensors can tell."""

from __future__ import annotations

import copy
from typing import Any, Self

from torch import nn


class Version:
    """One counter per model: its blocks and their matrices share it."""

    def __init__(self) -> None:
        self.count = 0

    def bump(self) -> None:
        self.count += 1


class Versioned(nn.Module):
    """A part of a layer. Giving it another submodule counts as a change, however that is done."""

    def __init__(self) -> None:
        super().__init__()
        self.version = Version()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, nn.Module):
            self.share(self.version)
            self.version.bump()

    def share(self, version: Version) -> None:
        """Count changes, those of all parts included, in `version` from now on."""
        self.version = version
        parts: list[Any] = list(self.children())
        for part in parts:
            if isinstance(part, Versioned):
                part.share(version)
            elif hasattr(part, "version"):
                part.version = version

    def shallow(self) -> Self:
        """A copy that shares every tensor and part with this one, and may be given others."""
        twin = copy.copy(self)
        twin.__dict__["_modules"] = dict(self._modules)
        twin.__dict__["version"] = Version()
        return twin

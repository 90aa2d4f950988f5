"""What tensors were alive at once while something was computed, seen by watching every operation of PyTorch."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class Allocated(TorchDispatchMode):
    """While it is entered, `peak` follows the bytes of all tensors made inside; views and inputs are none."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in self._strided((args, kwargs))}
        for t in self._strided(out):
            storage = t.untyped_storage()
            at = storage._cdata
            if at not in given and at not in self._sizes:
                self._sizes[at] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, at)
        return out

    @staticmethod
    def _strided(values: Any) -> list[Tensor]:
        found = tree_flatten(values)[0]
        return [t for t in found if isinstance(t, Tensor) and t.layout == torch.strided]

    def _gone(self, at: int) -> None:
        self.now -= self._sizes.pop(at, 0)

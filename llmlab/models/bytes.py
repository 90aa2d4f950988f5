"""Counting the bytes of tensors that objects hold, each tensor once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from llmlab.models.formats.onednn import OneDnnWeight

OF_A_MODULE = ("_parameters", "_buffers", "_modules")
"""What is private to a module beside these are its buffers for passes, which are no weights."""
SKIPPED = (str, bytes, int, float, bool, type(None), type)


def storages(*roots: Any) -> dict[int, int]:
    """Bytes of every tensor's memory that can be reached from `roots` through attributes and containers, by address.

    A tensor that is a view counts with all of the memory behind it, once for all its views.
    """
    found: dict[int, int] = {}
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        value = waiting.pop()
        if isinstance(value, SKIPPED) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, OneDnnWeight):  # its tensor is opaque
            found[id(value.weight)] = value.nbytes
        elif isinstance(value, Tensor):
            memory = value.untyped_storage()
            if memory.nbytes():
                found[memory.data_ptr()] = memory.nbytes()
        else:
            waiting.extend(_parts(value))
    return found


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, nn.Module):
        return [v for k, v in vars(value).items() if k in OF_A_MODULE or not k.startswith("_")]
    if hasattr(value, "__dict__") and type(value).__module__.startswith(("llmlab", "bitsandbytes")):
        return list(vars(value).values())
    return ()


def nbytes(*roots: Any, beside: Iterable[Any] = ()) -> int:
    """Bytes that `roots` hold, without what can be reached from `beside`."""
    known = storages(*beside)
    return sum(n for at, n in storages(*roots).items() if at not in known)

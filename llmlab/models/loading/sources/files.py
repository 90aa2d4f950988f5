"""Which files of a model's folder are read, and a stamp that changes when one of them does.

transformers is the referee: `model.safetensors` comes first, then its index, and what lies beside them is never mixed
in (`_get_resolved_checkpoint_files` of transformers' modeling_utils.py).
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from llmlab.errors import Refused

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
CONFIGS = ("config.json", "generation_config.json")
VOCABULARIES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json")
"""Any of them may be a tokenizer's vocabulary."""
TEXTS = (
    *CONFIGS,
    *VOCABULARIES,
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json"),
)
"""What is read beside the weights: config, tokenizer, chat template."""
NO_WEIGHTS = ("adapter_*", "*lora*", "consolidated*", "optimizer*", "scheduler*", "random_states*", "training_*")
"""Files of safetensors that never hold a model as transformers writes it."""
_SHARD = re.compile(r".*-\d{5,}-of-\d{5,}\.safetensors")
_INDEX = re.compile(r".*\.safetensors\.index(\.[\w-]+)?\.json")

Stamp = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Weights:
    """Where a model's weights lie: the files, in the order of reading, and which file an index names per tensor."""

    entry: str
    files: tuple[str, ...]
    owners: Mapping[str, str]


def matching(names: Iterable[str], patterns: Iterable[str] = TEXTS) -> list[str]:
    """The names, without those in subfolders, that fit one of the patterns."""
    return [n for n in names if "/" not in n and any(fnmatch(n, p) for p in patterns)]


def entry_file(names: Iterable[str], who: str, named: Any = None, base: str | None = None) -> str:
    """The file that opens a model's weights, out of the names in its folder: one of safetensors, or an index.

    `named`: what the config calls `transformers_weights`; `base`: the model that an adapter here is for.
    Raises Refused, and says which names are expected, where none opens it or several might.
    """
    here = {n for n in names if "/" not in n}
    if named is not None:
        if isinstance(named, str) and named in here and (named.endswith(".safetensors") or _INDEX.fullmatch(named)):
            return named
        why = f"names {str(named)[:60]!r} as its weights in config.json, and there is no such safetensors file"
        raise Refused(who, why, "Fetch the model again")
    for name in (SINGLE, INDEX):
        if name in here:
            return name
    tensors = sorted(n for n in here if n.endswith(".safetensors"))
    usable = [n for n in tensors if not any(fnmatch(n.lower(), p) for p in NO_WEIGHTS)]
    indices = sorted(n for n in here if _INDEX.fullmatch(n))
    if indices:  # a variant's, or one under another name
        usable = [n for n in usable if not _SHARD.fullmatch(n)] + indices
    if len(usable) == 1 and (not _SHARD.fullmatch(usable[0]) or "-00001-of-00001." in usable[0]):
        return usable[0]
    raise _no_entry(here, tensors, usable, who, base)


def _no_entry(here: set[str], tensors: list[str], usable: list[str], who: str, base: str | None) -> Refused:
    expected = f"its weights should be called {SINGLE}, or be listed by {INDEX}"
    if ADAPTER in here or (tensors and all(n.startswith("adapter_") for n in tensors)):
        model = f"{base[:80]!r}, the model that it adapts" if base else "the model that it adapts"
        return Refused(who, "holds only an adapter, no whole model", f"Choose {model}, or merge the two and save them")
    if usable and all(_SHARD.fullmatch(n) for n in usable):
        return Refused(who, f"holds {usable[0]} but not {INDEX}, which says what lies where", "Fetch the index too")
    if len(usable) > 1:
        return Refused(who, f"holds several files of weights ({_listed(usable)})", f"Rename one: {expected}")
    if tensors:
        return Refused(who, f"holds {_listed(tensors)}, which is no model as transformers saves it", f"{expected}")
    others = sorted(n for n in here if n.endswith((".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx")))
    ggufs = sorted(n for n in here if n.lower().endswith(".gguf"))
    if ggufs:
        return Refused(who, f"holds no safetensors file, but {_listed(ggufs)}", "Give the path of the GGUF file itself")
    if others:
        why = f"holds no safetensors file but {_listed(others)}, and such files can run code when they are opened"
        return Refused(who, why, "Convert it to safetensors, or choose a model that has them")
    return Refused(who, "holds no safetensors file", f"Choose one that has its weights so; {expected}")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def weights(entry: str, who: str, read: Callable[[str], str | bytes]) -> Weights:
    """The files behind an entry file; `read` gives an index's text. Raises Refused for an index that is damaged."""
    if not _INDEX.fullmatch(entry):
        return Weights(entry, (entry,), {})
    damaged = f"The index {entry} of {who[:1].lower()}{who[1:]}"
    try:
        value = json.loads(read(entry))
    except (OSError, ValueError, RecursionError) as e:
        raise Refused(damaged, "is damaged: it is no JSON", "Fetch the model again") from e
    owners = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(owners, dict) or not owners or not all(isinstance(f, str) for f in owners.values()):
        raise Refused(damaged, "is damaged: its weight_map does not name a file per tensor", "Fetch the model again")
    files = tuple(sorted(set(owners.values())))
    for file in files:
        # The index comes with the model: a name in it must not lead out of its folder.
        path = PurePosixPath(file.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in file or "\0" in file or path.suffix != ".safetensors":
            why = f"names {file[:60]!r}, which is no safetensors file inside the model's folder"
            raise Refused(damaged, why, "Fetch the model again")
    return Weights(entry, files, owners)


def weights_in(folder: Path, who: str, named: Any = None) -> Weights:
    """The files that hold a folder's weights. Raises Refused where they are ambiguous, missing or badly indexed.

    `named`: what the config calls `transformers_weights`.
    """
    try:
        names = [f.name for f in folder.iterdir() if f.is_file()]
    except OSError as e:
        raise Refused(who, f"cannot be read ({type(e).__name__})", "Check the path") from e
    entry = entry_file(names, who, named, adapted(folder))
    found = weights(entry, who, lambda name: (folder / name).read_bytes())
    for file in found.files:
        if not (folder / file).is_file():
            raise Refused(
                f"The file {file[:80]}", f"is missing from {who}, whose {found.entry} names it", "Fetch it again"
            )
    return found


def whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    try:
        with open(file, "rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            size = file.stat().st_size
            header = json.loads(f.read(length)) if length < size else {}
        ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
    except (OSError, ValueError, TypeError, LookupError, AttributeError, struct.error):
        return False
    return bool(size == 8 + length + max(ends, default=0))


def adapted(folder: Path) -> str | None:
    """The model that a folder's adapter says it is for; None where there is no adapter."""
    try:
        value = json.loads((folder / ADAPTER).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    base = value.get("base_model_name_or_path") if isinstance(value, dict) else None
    return base if isinstance(base, str) and base else None


def stamp(paths: Iterable[Path]) -> Stamp:
    """What tells that files are the same as before: place, size and times of each, without reading any."""

    def each() -> Iterator[tuple[Any, ...]]:
        for path in sorted(paths):
            try:
                s = path.stat()
            except OSError:
                yield (str(path),)
            else:
                yield str(path), s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns

    return tuple(each())


def counting(folder: Path, held: Iterable[str]) -> list[Path]:
    """The files that a model loaded from `folder` depends on: those `held`, its texts, and what would come first."""
    try:
        names = [f.name for f in folder.iterdir()]
    except OSError:
        names = []
    return [folder / n for n in {*held, *matching(names), SINGLE, INDEX}]

"""Whether transformers can run an architecture for the lab, and by which seam: tried on a small sibling, before any
weight of the model itself is read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from llmlab.errors import Refused
from llmlab.models.capabilities import Capability
from llmlab.models.config import figure, text_of
from llmlab.models.loading.environment import cache_folder
from llmlab.models.loading.whole import whole_file
from llmlab.models.rope import context_of
from llmlab.models.wrapped.model import Wrapped
from llmlab.models.wrapped.referee import TEXT, difference, looks_ahead, plain_logits, some_tokens
from llmlab.models.wrapped.seams import INDEX, SEAMS, STATE, Seam, Unsuited
from llmlab.models.wrapped.small import small

WORDS = 97
"""Tokens of a small sibling's vocabulary at most, as far as its check is concerned."""


@dataclass(frozen=True)
class Admission:
    """How an architecture runs: by the seam of this name, told each token's position or not; or why it does not."""

    seam: str = ""
    positioned: bool = True
    refusal: str = ""

    @property
    def kind(self) -> type[Seam]:
        return next(s for s in SEAMS if s.name == self.seam)

    @property
    def abilities(self) -> frozenset[Capability]:
        return self.kind.abilities

    def require(self, config: Any) -> None:
        """Raises Refused with the reason where the architecture does not run."""
        if self.refusal:
            raise Refused(f"The architecture {config.model_type}", self.refusal, "Choose another model")


def admission(config: Any) -> Admission:
    """The verdict on a config's architecture and rules; kept on disk by the config and the version of transformers."""
    import transformers

    text = config.to_json_string(use_diff=False)
    what = f"{transformers.__version__} {torch.__version__} {_sources()} {text}"
    key = hashlib.sha256(what.encode()).hexdigest()[:32]
    kept = cache_folder() / "admissions" / f"{key}.json"
    try:
        return Admission(**json.loads(kept.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # not there, or not whole
        verdict = _tried(config)
    _keep(kept, verdict)
    return verdict


def _keep(file: Path, verdict: Admission) -> None:
    with contextlib.suppress(OSError):  # a cache that cannot be written costs a moment at the next start
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as part:
            part.write_text(json.dumps(asdict(verdict)), encoding="utf-8")


@cache
def _sources() -> str:
    """A sum over the code that decides: a verdict does not outlive it."""
    here, models = Path(__file__).parent, Path(__file__).parent.parent
    files = [*sorted(here.glob("*.py")), models / "rope.py", models / "batch.py", models / "kernels" / "reference.py"]
    files += sorted((models.parent / "kv").glob("*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]


def _tried(config: Any) -> Admission:
    from transformers import AutoModelForCausalLM

    if getattr(AutoModelForCausalLM._model_mapping[type(config)], "_is_stateful", False):
        return Admission(refusal=STATE)
    if "indexed_attention" in (figure(text_of(config), "layer_types") or ()):
        return Admission(refusal=INDEX)
    try:
        sibling = small(config)
        with _quietly():
            model = sibling_model(sibling)
            words, most = model.get_input_embeddings().weight.shape[0], context_of(text_of(sibling))
            tokens = some_tokens(min(WORDS, words), min(TEXT, most))
            want = plain_logits(model, tokens)
            if looks_ahead(model, tokens):
                return Admission(refusal="looks at later tokens too, so it does not continue text token by token")
    except Exception as e:  # a stranger's architecture fails in as many ways as there are
        return Admission(refusal=f"cannot be tried out in a small form ({first_words(e)})")
    return _by_seams(sibling, tokens, want)


def _by_seams(sibling: Any, tokens: torch.Tensor, want: torch.Tensor) -> Admission:
    """The first seam by which a small sibling says what it says in one pass; else why the last one that ran did not."""
    reasons = []
    for seam in SEAMS:
        for positioned in (True, False):
            try:
                with _quietly():
                    wrapped = Wrapped(sibling_model(sibling), "dense-fp32", seam, positioned)
                    found = difference(wrapped, tokens, want)
                if found is None:
                    return Admission(seam.name, positioned)
                reasons.append((2, str(found)))
            except Unsuited as e:
                reasons.append((3 if e.final else 0, str(e)))
            except Exception as e:
                reasons.append((1, f"fails in transformers when its text comes in pieces ({first_words(e)})"))
    return Admission(refusal=max(reasons, key=lambda r: r[0])[1])


def first_words(e: Exception) -> str:
    """What an error of transformers says, short enough for a sentence."""
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    if not lines:
        return type(e).__name__
    said = lines[-1] if lines[0].endswith(":") and "Error" in lines[-1] else f"{type(e).__name__}: {lines[0]}"
    return said if len(said) <= 110 else f"{said[:110]}…"


_alone = threading.Lock()
"""Visitors may ask at once, and what is changed meanwhile belongs to the whole process."""


@contextmanager
def _quietly() -> Iterator[None]:
    """Without touching the process's own dice, without transformers' warnings, and on one thread: for matrices this
    small others only wait for each other."""
    from transformers.utils import logging

    with _alone, torch.random.fork_rng(devices=[]):
        level, threads = logging.get_verbosity(), torch.get_num_threads()
        logging.set_verbosity_error()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            logging.set_verbosity(level)


def sibling_model(config: Any) -> Any:
    """A transformers model in float32 whose every parameter is random, the same each time."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=dice)
            if p.dim() > 1:
                p.copy_(noise if "embed" in path or "wte" in path else noise * 1.5 / p.shape[-1] ** 0.5)
            else:
                p.copy_(0.2 * noise if path.endswith("bias") else p + 0.2 * noise)
    return model

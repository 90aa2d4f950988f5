"""transformers' own `generate` as a contestant of `llmlab.measure.benchmark`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from llmlab.lab.model_cache import pick_device
from llmlab.measure.hardware import use_threads
from llmlab.models.loading.sources import locate

LABELS = {"dense-fp32": "float32", "dense-bf16": "bfloat16", "nf4": "NF4"}


class Transformers:
    """transformers' own `generate` on the same files, a GGUF's tensors unpacked as they stand in it."""

    def __init__(self, ref: str, threads: int = 0, weights: str = "dense-fp32", device: str = "auto") -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()

        use_threads(threads)
        self.name = f"transformers {LABELS[weights]}"
        self.version = transformers.__version__
        found = locate.fetch(locate.find(ref))
        self.device = pick_device(device)
        dtype = torch.float32 if weights == "dense-fp32" else torch.bfloat16
        assert found.path is not None
        at: dict[str, Any] = {"gguf_file": found.path.name} if found.kind == "gguf" else {}
        folder = found.path.parent if found.kind == "gguf" else found.path
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, local_files_only=True, trust_remote_code=False, **at
        )
        if weights == "nf4":
            _quantize(model)
        self.model = model.to(self.device).eval()
        self.model.generation_config.eos_token_id = None

    def _ids(self, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
        ids = torch.tensor([list(p) for p in prompts], device=self.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _generate(self, prompts: Sequence[Sequence[int]], count: int) -> tuple[float, float]:
        """Seconds up to the first new token, and per token after it."""
        clock = _Ticks()
        with torch.inference_mode():
            self.model.generate(
                **self._ids(prompts),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                logits_processor=[clock],
                pad_token_id=0,
            )
        end = time.perf_counter()
        return clock.at[0] - clock.start, (end - clock.at[0]) / max(1, count - 1)

    def ready(self, tokens: Sequence[int]) -> None:
        self.prompt = tokens

    def decode(self, count: int) -> float:
        return self._generate([self.prompt], count + 1)[1]

    @torch.inference_mode()
    def verify(self, tokens: Sequence[int], count: int) -> float:
        cache = self.model(**self._ids([self.prompt]), use_cache=True, logits_to_keep=1).cache
        total, ids = 0.0, torch.tensor([list(tokens)], device=self.device)
        for _ in range(count):
            start = time.perf_counter()
            self.model(input_ids=ids, cache=cache, use_cache=True).logits.argmax(-1).tolist()
            cache.crop(-len(tokens))
            total += time.perf_counter() - start
        return total / count

    verify_fast = verify

    def prefill(self, tokens: Sequence[int]) -> float:
        return self._generate([tokens], 1)[0]

    def batch(self, prompts: Sequence[Sequence[int]], count: int) -> float:
        return self._generate(prompts, count + 1)[1]


class TransformersBfloat16(Transformers):
    def __init__(self, ref: str, threads: int = 0) -> None:
        super().__init__(ref, threads, "dense-bf16")


class TransformersNf4(Transformers):
    def __init__(self, ref: str, threads: int = 0) -> None:
        super().__init__(ref, threads, "nf4")


class _Ticks:
    """Notes when `generate` has logits: transformers calls it once for each new token."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.at: list[float] = []

    def __call__(self, ids: Any, scores: Any) -> Any:
        self.at.append(time.perf_counter())
        return scores


def _quantize(model: Any) -> None:
    """Replace the layers' matrices by bitsandbytes' own NF4 modules: transformers cannot do it to a GGUF file."""
    import bitsandbytes as bnb

    for block in model.model.layers:
        for part in (block.self_attn, block.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    new = bnb.nn.Linear4bit(
                        linear.in_features,
                        linear.out_features,
                        bias=linear.bias is not None,
                        compute_dtype=torch.bfloat16,
                        quant_type="nf4",
                    )
                    new.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
                    new.bias = linear.bias
                    setattr(part, name, new)
    model.to("cpu")  # quantizes

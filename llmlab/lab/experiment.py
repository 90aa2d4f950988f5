"""An experiment: a model, a prompt, settings and a stack. The page and the command line both run these."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch

from llmlab.errors import Refused
from llmlab.lab.detokenizer import IncrementalDetokenizer, with_text
from llmlab.lab.model_cache import ModelCache
from llmlab.lab.records import record
from llmlab.lab.settings import Settings, without_techniques
from llmlab.lab.vocabularies import require_same
from llmlab.measure import excerpts, pairs, quality, trace
from llmlab.measure.hardware import use_threads
from llmlab.measure.rates import rates
from llmlab.measure.verdict import verdict_of
from llmlab.models.decoder import Decoder
from llmlab.models.formats.onednn import bfloat16_instructions
from llmlab.models.formats.registry import FORMATS
from llmlab.models.loading.loaded import Loaded, prompt_tokens
from llmlab.models.loading.progress import Report, quiet
from llmlab.runtime.events import Committed, Compared, Event, Finished, Started, WeightsChanged
from llmlab.runtime.generate import committed_tokens, generate
from llmlab.runtime.roles import Router
from llmlab.runtime.sampling import Sampler
from llmlab.runtime.session import SHORTEN
from llmlab.runtime.tools import Tools

LONGEST_TEXT = 400_000
"""Characters of a prompt that are tokenized at all; no model in the catalogue reads that many."""
MEASURING, PAIR = "Measuring quality", "Pair"
"""What is reported of a comparison after its two runs; the panel has them in both languages."""


def engine_paths(model: Any, verify: str) -> list[str]:
    """Which paths through the engine a run takes, for the page to say: "bitwise" or "fast", "copies", "no-bf16", …"""
    taken = [verify] if isinstance(model, Decoder) else ["wrapped"]
    if getattr(model, "copied_bytes", 0):
        taken.append("copies")
    if str(model.device) == "cpu" and getattr(model, "weights", "") != "dense-fp32" and not bfloat16_instructions():
        taken.append("no-bf16")
    return taken


def out_of_memory(error: Exception) -> str | None:
    """What to say where an error means that memory ran out, on the processor or on a GPU; None for any other error."""
    if type(error).__name__ == "OutOfMemoryError":
        torch.cuda.empty_cache()
        return "The GPU ran out of memory. Choose int4 weights, a smaller model or a shorter prompt."
    if isinstance(error, MemoryError) or "not enough memory" in str(error):
        return "The run ran out of memory. Choose int4 weights, no copies, a smaller model or a shorter prompt."
    return None


def _compared(runs: Sequence[Event], found: dict[str, Any], measured: pairs.Pairs | None) -> Compared:
    """What two runs, one after the other, come to: with the pairs that were run after them, where there are any."""
    compared = Compared(runs[-1].t, found, measured.to_json() if measured else {})
    verdict = verdict_of([*runs, compared])
    return replace(compared, verdict=verdict.to_json() if verdict else {})


@dataclass(frozen=True)
class Prepared:
    """A run that has passed every check, with its model loaded and its prompt tokenized."""

    settings: Settings
    loaded: Loaded
    prompt: list[int]
    device: str


def _require_room(settings: Settings, loaded: Loaded, prompt: int, who: str = "The prompt") -> None:
    """Raises Refused where a prompt of so many tokens and what is to follow it do not fit the model's context."""
    limit = settings.stack.text_limit(loaded.model.context)
    if limit is None:
        return
    if prompt >= limit:
        raise Refused(who, f"has {prompt} tokens to read and {loaded.name} reads at most {limit}", SHORTEN)
    if settings.max_new_tokens > limit - prompt:
        raise Refused(
            who,
            f"leaves room for {limit - prompt} new tokens in {loaded.name}'s context, not {settings.max_new_tokens}",
            "Shorten the prompt, ask for fewer new tokens, or run StreamingLLM alone, which goes past the context",
        )


class Lab:
    """Runs experiments on one cache of models. Not thread-safe: the engine carries out one run at a time."""

    def __init__(self, model_cache: ModelCache | None = None) -> None:
        self.model_cache = model_cache or ModelCache()

    def check(self, settings: Settings) -> None:
        """Everything that can be refused before a weight is loaded. Raises Refused."""
        if not settings.prompt.strip():
            raise Refused("The prompt", "is empty, so there is nothing to continue", "Write something")
        if len(settings.prompt) > LONGEST_TEXT:
            raise Refused("The prompt", f"is longer than {LONGEST_TEXT} characters", "Shorten it")
        settings.stack.require(self.model_cache.capabilities(settings.model), settings.model)

    def prepare(self, settings: Settings, report: Report | None = None) -> Prepared:
        """Check, load, tokenize. Raises Refused; nothing has been generated then."""
        self.check(settings)
        estimate = settings.stack.most_rows(len(settings.prompt) // 3 + settings.max_new_tokens)
        use_threads(settings.threads)
        loaded = self.model_cache.load(
            settings.model, settings.weights, settings.device, estimate, report, settings.copies == "auto"
        )
        prompt = self.tokens(loaded, settings)
        _require_room(settings, loaded, len(prompt))
        return Prepared(settings, loaded, prompt, str(loaded.model.device))

    def tokens(self, loaded: Loaded, settings: Settings) -> list[int]:
        return prompt_tokens(loaded, settings.prompt, settings.chat)

    def tools(self, prepared: Prepared) -> Tools:
        settings = prepared.settings

        def partner(name: str) -> Any:
            low_bit = name in FORMATS
            ref, weights = (settings.model, name) if low_bit else (name, settings.weights)
            other = self.model_cache.load(ref, weights, settings.device, copies=settings.copies == "auto")
            if low_bit:
                return other.model
            require_same(prepared.loaded.name, prepared.loaded.tokenizer, other.name, other.tokenizer)
            return other.model

        return Tools(prepared.loaded.tokenizer, partner)

    def run(
        self, prepared: Prepared, stop: threading.Event | None = None, lane: str = "", report: Report | None = None
    ) -> Iterator[Event]:
        """The events of one run, with text. `lane` defaults to "stack", or "baseline" for an empty stack."""
        settings, loaded, stack = prepared.settings, prepared.loaded, prepared.settings.stack
        tools = self.tools(prepared)
        changed = self.model_cache.transformed(loaded, stack, tools, report)
        labels = IncrementalDetokenizer(loaded.tokenizer)
        if report and len(stack):
            report("Preparing the techniques", 0, 0)
        started = self._started(prepared, changed.model, lane, labels.commit(prepared.prompt))
        events = generate(
            changed.model,
            prepared.prompt,
            settings.max_new_tokens,
            stack,
            Sampler(settings.temperature, settings.top_k, settings.top_p),
            settings.seed,
            stop,
            loaded.stop_tokens,
            tools,
            started,
            settings.verify == "bitwise",
        )
        seen: list[Event] = []
        for e in with_text(events, labels, loaded.stop_tokens):
            if isinstance(e, Finished):
                e = replace(e, metrics=trace.ledger(seen))
            seen.append(e)
            yield e
            if isinstance(e, Started):
                for who, before, after, note in changed.changes:
                    change = WeightsChanged(e.t, who, before, after, note)
                    seen.append(change)
                    yield change

    @staticmethod
    def _started(prepared: Prepared, model: Any, lane: str, prompt: list[str]) -> Started:
        settings, stack = prepared.settings, prepared.settings.stack
        return Started(
            t=0.0,
            model=settings.model,
            lane=lane or ("stack" if len(stack) else "baseline"),
            device=prepared.device,
            weights=settings.weights,
            stack=stack.to_json(),
            settings=settings.to_json(),
            prompt_tokens=len(prepared.prompt),
            layers=len(model.layers),
            weight_bytes=model.nbytes,
            lossless=stack.lossless(),
            prompt=prompt,
            rates=rates(model).to_json(),
            engine_paths=engine_paths(model, settings.verify),
        )

    def quality(
        self,
        prepared: Prepared,
        baseline: Sequence[Event],
        events: Sequence[Event],
        own_text: str | None = None,
    ) -> quality.Measuring:
        """What the stack's run cost in quality against the baseline's run of the same settings, a pass at a time."""
        loaded, stack = prepared.loaded, prepared.settings.stack
        tools = self.tools(prepared)
        changed = self.model_cache.transformed(loaded, stack, tools).model
        for technique in stack:
            technique.prepare(changed, tools)
        sides = quality.Sides(loaded.model, changed, stack, tools)
        texts = committed_tokens(baseline), committed_tokens(events)
        return quality.measured(sides, prepared.prompt, *texts, loaded.tokenizer, own_text)

    def route(
        self, prepared: Prepared, stop: threading.Event | None = None, report: Report | None = None
    ) -> Iterator[Event]:
        """As `run`; and as long as the stack's router names another model, that model's run of the same prompt.

        Raises Refused where a model that the router names cannot be had.
        """
        router, stop, answers = prepared.settings.stack.one("Router"), stop or threading.Event(), list[str]()
        while True:
            text = []
            for e in self.run(prepared, stop, report=report):
                text += e.text if isinstance(e, Committed) else []
                yield e
            answers.append("".join(text))
            asked = router.next(answers) if isinstance(router, Router) and not stop.is_set() else None
            if asked is None:
                return
            prepared = self.prepare(replace(prepared.settings, model=asked), report)

    def compare(
        self,
        prepared: Prepared,
        stop: threading.Event | None = None,
        report: Report | None = None,
        own_text: str | None = None,
    ) -> Iterator[Event]:
        """As `compared_in_slices`, at one go."""
        return (e for e in self.compared_in_slices(prepared, stop, report, own_text) if e is not None)

    def compared_in_slices(
        self,
        prepared: Prepared,
        stop: threading.Event | None = None,
        report: Report | None = None,
        own_text: str | None = None,
    ) -> Iterator[Event | None]:
        """The baseline's events, then the stack's, then what the stack gained and cost; a stop ends it where it is.

        Both runs are followed by a first `Compared`, which says what they alone tell; then by further pairs, of which
        only the speeds are kept, and by quality, on `own_text` where there is one; then by the whole `Compared`. Each
        None is a place where another run may go first: nothing of this comparison is left on any model there. Raises
        Refused for an own text that is too short.
        """
        stop, report = stop or threading.Event(), report or quiet
        if own_text is not None:
            excerpts.excerpts(
                prepared.loaded.tokenizer, prepared.loaded.model.context, prepared.settings.stack, own_text
            )
        _require_room(
            without_techniques(prepared.settings), prepared.loaded, len(prepared.prompt), "The baseline of an A/B"
        )
        runs: dict[str, list[Event]] = {}
        for lane in pairs.LANES:
            runs[lane] = []
            for e in self._lane(prepared, lane, stop, report):
                runs[lane].append(e)
                yield e
            if stop.is_set():
                return
        baseline, text = (committed_tokens(runs[lane]) for lane in pairs.LANES)
        both = [*runs["baseline"], *runs["stack"]]
        yield _compared(both, quality.unmeasured(baseline, text, "unfinished"), None)
        report(MEASURING, 0, 0)
        yield None
        found: pairs.Pairs | None = None
        for so_far in self._pairs(prepared, runs, stop, report):
            found = so_far
            yield None
        if stop.is_set():
            return
        measuring = self.quality(prepared, runs["baseline"], runs["stack"], own_text)
        try:
            while not stop.is_set():
                report(MEASURING, *next(measuring))
                yield None
        except StopIteration as end:
            yield _compared(both, end.value, found)

    def _lane(
        self, prepared: Prepared, lane: str, stop: threading.Event, report: Report, most: int | None = None
    ) -> Iterator[Event]:
        """A run of the baseline or of the stack, of at most so many new tokens."""
        settings = prepared.settings if lane == "stack" else without_techniques(prepared.settings)
        if most is not None:
            settings = replace(settings, max_new_tokens=most)
        return self.run(replace(prepared, settings=settings), stop, lane, report)

    def _pairs(
        self, prepared: Prepared, runs: dict[str, list[Event]], stop: threading.Event, report: Report
    ) -> Iterator[pairs.Pairs]:
        """The pairs so far, after each further one, the stack's run first in every other."""
        tokens = pairs.length_of(runs)
        found = pairs.first_pair(runs, tokens)
        spent = 0.0  # on pairs alone: others may go first between two of them
        while tokens and found is not None and len(found) < pairs.MOST and not stop.is_set():
            if len(found) >= pairs.LEAST and spent * len(found) / (len(found) - 1) > pairs.SECONDS:
                break
            report(PAIR, len(found) + 1, pairs.MOST)
            speeds, begun = {}, perf_counter()
            for lane in pairs.LANES[:: -1 if len(found) % 2 else 1]:
                speeds[lane] = pairs.decode_speed(list(self._lane(prepared, lane, stop, quiet, tokens)))
            spent += perf_counter() - begun
            if stop.is_set() or not all(speeds.values()):
                break
            found = pairs.Pairs((*found.baseline, speeds["baseline"]), (*found.stack, speeds["stack"]), tokens)
            yield found

    def record(self, prepared: Prepared, events: Sequence[Event]) -> dict[str, Any]:
        """The run as JSON, schema llmlab.run/1."""
        return record(events, prepared.loaded.tokenizer)

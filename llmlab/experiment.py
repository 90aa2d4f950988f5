"""An experiment: a model, a prompt, settings and a stack. The page and the command line both run these."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from llmlab import quality, trace
from llmlab.abilities import Refused, check
from llmlab.draft import Sampler
from llmlab.events import Committed, Compared, Drafted, Event, Failed, Finished, Started, WeightsChanged
from llmlab.loop import generate, text_of
from llmlab.meter import cores, least_seconds, use_threads
from llmlab.models.decoder import Decoder
from llmlab.models.linears import FORMATS, bfloat16_instructions
from llmlab.models.shelf import Loaded, Report, Shelf
from llmlab.stack import Stack
from llmlab.tools import Tools

LONGEST_TEXT = 400_000
"""Characters of a prompt that are tokenized at all; no model in the catalogue reads that many."""
CHOICES = {"verify": ("bitwise", "fast"), "copies": ("auto", "none")}
"""Settings with a few named values, the default first."""


def within(name: str, value: Any, low: float, high: float, kind: type) -> Any:
    """`value` as a number of `kind` from `low` to `high`. Raises Refused for anything else."""
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or number != float(value) or not low <= number <= high:
        shown = name.replace("_", " ")
        raise Refused(f"The setting {shown}", f"cannot be {str(value)[:20]}", f"Give {low} to {high}")
    return number


@dataclass(frozen=True)
class Settings:
    """Everything that determines a run. `chat` None means: as a chat where the model has a chat template."""

    model: str = "smollm2-135m"
    prompt: str = ""
    chat: bool | None = None
    max_new_tokens: int = 64
    weights: str = "dense-fp32"
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    device: str = "auto"
    verify: str = "bitwise"
    """"bitwise": a pass over several tokens computes, to the bit, what passes over one token each would. "fast": its
    rows share products, and below float32 a near tie may fall the other way."""
    copies: str = "auto"
    """"auto": weights are kept a second time, in a form that is quicker to read prompts with, where half of the free
    memory holds them. "none": never."""
    threads: int = 0
    """Of the processor; 0: as many as were found best when the lab started."""
    stack: Stack = field(default_factory=Stack)

    def __post_init__(self) -> None:
        limits = {
            "max_new_tokens": (1, 4096, int),
            "temperature": (0.0, 5.0, float),
            "top_k": (0, 1_000_000, int),
            "top_p": (0.01, 1.0, float),
            "seed": (0, 2**31 - 1, int),
            "threads": (0, cores(), int),
        }
        for name, (low, high, kind) in limits.items():
            object.__setattr__(self, name, within(name, getattr(self, name), low, high, kind))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                value = str(getattr(self, name))[:20]
                raise Refused(f"The setting {name}", f"cannot be {value!r}", f"Give {' or '.join(choices)}")

    def to_json(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "chat": self.chat,
            "max_new_tokens": self.max_new_tokens,
            "weights": self.weights,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "seed": self.seed,
            "device": self.device,
            "verify": self.verify,
            "copies": self.copies,
            "threads": self.threads,
        }


def ways(model: Any, verify: str) -> list[str]:
    """Which ways of the engine a run takes, for the page to say: "bitwise" or "fast", "copies", "no-bf16", …"""
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


def as_tokens(loaded: Loaded, prompt: str, chat: bool | None = None) -> list[int]:
    """A prompt as the model reads it; `chat` as in `Settings`. Raises Refused where nothing comes of it."""
    tokenizer = loaded.tokenizer
    if chat and not tokenizer.chat_template:
        raise Refused(loaded.name, "has no chat template", "Switch chat off")
    if chat or (chat is None and tokenizer.chat_template):
        messages = [{"role": "user", "content": prompt}]
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])
    ids = list(tokenizer(prompt)["input_ids"])
    if not ids:
        raise Refused("The prompt", "holds nothing that this model's vocabulary knows", "Write something else")
    return ids


class Labeller:
    """Token ids to the text each adds, where one character may take several tokens."""

    def __init__(self, tokenizer: Any, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(context[-8:])
        self._text = self._read(self._ids)

    def _read(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _added(self, ids: Sequence[int], before: list[int], old: str) -> tuple[list[str], list[int], str]:
        """What each of `ids` adds after `before`, which reads `old`; and what to go on from, with its text."""
        texts = []
        for token in ids:
            before = [*before, token]
            new = self._read(before)
            # An unfinished character decodes to U+FFFD; its text belongs to the token that completes it.
            stem = old.rstrip("\ufffd")
            whole = new.rstrip("\ufffd")
            texts.append(whole[len(stem) :] if whole.startswith(stem) else new[len(old) :])
            old = new
            if len(before) > 24 and not new.endswith("\ufffd"):  # reading takes a part of every token's time
                before = before[-8:]
                old = self._read(before)
        return texts, before, old

    def commit(self, ids: Sequence[int]) -> list[str]:
        texts, self._ids, self._text = self._added(ids, self._ids, self._text)
        return texts

    def guess(self, tokens: Sequence[int], parents: Sequence[int]) -> list[str]:
        """The text of a draft's nodes, each read after its ancestors."""
        texts: list[str] = []
        for i, token in enumerate(tokens):
            line, p = [], parents[i]
            while p >= 0:
                line.insert(0, tokens[p])
                p = parents[p]
            before = [*self._ids, *line]
            texts.append(self._added([token], before, self._read(before))[0][0])
        return texts


@dataclass(frozen=True)
class Prepared:
    """A run that has passed every check, with its model loaded and its prompt tokenized."""

    settings: Settings
    loaded: Loaded
    prompt: list[int]
    device: str


class Lab:
    """Runs experiments on one shelf of models. Not thread-safe by itself: the engine lets one run in at a time."""

    def __init__(self, shelf: Shelf | None = None) -> None:
        self.shelf = shelf or Shelf()

    def check(self, settings: Settings) -> None:
        """Everything that can be refused before a weight is loaded. Raises Refused."""
        if not settings.prompt.strip():
            raise Refused("The prompt", "is empty, so there is nothing to continue", "Write something")
        if len(settings.prompt) > LONGEST_TEXT:
            raise Refused("The prompt", f"is longer than {LONGEST_TEXT} characters", "Shorten it")
        for refusal in check(settings.stack, self.shelf.abilities(settings.model), settings.model):
            raise Refused(refusal.who, refusal.why, refusal.now)

    def prepare(self, settings: Settings, report: Report | None = None) -> Prepared:
        """Check, load, tokenize. Raises Refused; nothing has been generated then."""
        self.check(settings)
        estimate = len(settings.prompt) // 3 + settings.max_new_tokens
        use_threads(settings.threads)
        loaded = self.shelf.load(
            settings.model, settings.weights, settings.device, estimate, report, settings.copies == "auto"
        )
        prompt = self.tokens(loaded, settings)
        room = loaded.model.context - len(prompt)
        if room < 1:
            raise Refused(
                "The prompt",
                f"has {len(prompt)} tokens and {loaded.name} reads at most {loaded.model.context}",
                "Shorten it or choose a model with a longer context",
            )
        if settings.max_new_tokens > room:
            raise Refused(
                "The prompt",
                f"leaves room for {room} new tokens in {loaded.name}'s context, not {settings.max_new_tokens}",
                "Shorten it or ask for fewer new tokens",
            )
        return Prepared(settings, loaded, prompt, str(loaded.model.device))

    def tokens(self, loaded: Loaded, settings: Settings) -> list[int]:
        return as_tokens(loaded, settings.prompt, settings.chat)

    def tools(self, prepared: Prepared) -> Tools:
        settings = prepared.settings

        def partner(name: str) -> Any:
            low_bit = name in FORMATS
            ref, weights = (settings.model, name) if low_bit else (name, settings.weights)
            other = self.shelf.load(ref, weights, settings.device, copies=settings.copies == "auto")
            if low_bit:
                return other.model
            mine, theirs = prepared.loaded.tokenizer.get_vocab(), other.tokenizer.get_vocab()
            if mine != theirs:
                raise Refused(
                    f"The draft model {other.name}",
                    f"has another vocabulary than {prepared.loaded.name}",
                    "Choose one of the same family",
                )
            return other.model

        return Tools(prepared.loaded.tokenizer, partner)

    def run(
        self, prepared: Prepared, stop: threading.Event | None = None, lane: str = "", report: Report | None = None
    ) -> Iterator[Event]:
        """The events of one run, with text. `lane` defaults to "stack", or "baseline" for an empty stack."""
        settings, loaded, stack = prepared.settings, prepared.loaded, prepared.settings.stack
        tools = self.tools(prepared)
        changed = self.shelf.changed(loaded, stack, tools, report)
        for technique in stack:
            technique.prepare(changed.model, tools)
        labels = Labeller(loaded.tokenizer)
        prompt_text = labels.commit(prepared.prompt)
        started = Started(
            t=0.0,
            model=settings.model,
            lane=lane or ("stack" if len(stack) else "baseline"),
            device=prepared.device,
            weights=settings.weights,
            stack=stack.to_json(),
            settings=settings.to_json(),
            prompt_tokens=len(prepared.prompt),
            layers=len(changed.model.layers),
            weight_bytes=changed.model.nbytes,
            lossless=stack.lossless(),
            prompt=prompt_text,
            least_seconds=least_seconds(changed.model, len(prepared.prompt)),
            ways=ways(changed.model, settings.verify),
        )
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
        for e in events:
            if isinstance(e, Drafted):
                e = replace(e, text=labels.guess(e.tokens, e.parents))
            elif isinstance(e, Committed):
                e = replace(e, text=labels.commit(e.tokens))
            elif isinstance(e, Finished):
                e = replace(e, metrics=trace.ledger(seen))
            seen.append(e)
            yield e
            if isinstance(e, Started):
                for who, before, after, note in changed.changes:
                    change = WeightsChanged(e.t, who, before, after, note)
                    seen.append(change)
                    yield change

    def quality(self, prepared: Prepared, baseline: Sequence[Event], events: Sequence[Event]) -> dict[str, Any]:
        """What the stack's run cost in quality against the baseline's run of the same settings."""
        loaded, stack = prepared.loaded, prepared.settings.stack
        tools = self.tools(prepared)
        changed = self.shelf.changed(loaded, stack, tools).model
        for technique in stack:
            technique.prepare(changed, tools)
        return quality.compare(
            loaded.model, changed, stack, prepared.prompt, text_of(baseline), text_of(events), loaded.tokenizer
        )

    def compare(
        self, prepared: Prepared, stop: threading.Event | None = None, report: Report | None = None
    ) -> Iterator[Event]:
        """The baseline's events, then the stack's, then what the stack cost; a stop ends it where it is."""
        stop = stop or threading.Event()
        runs: dict[str, list[Event]] = {"baseline": [], "stack": []}
        for lane, settings in (("baseline", plain(prepared.settings)), ("stack", prepared.settings)):
            for e in self.run(replace(prepared, settings=settings), stop, lane, report):
                runs[lane].append(e)
                yield e
            if stop.is_set():
                return
        if report:
            report("Measuring quality", 0, 0)
        yield Compared(runs["stack"][-1].t, self.quality(prepared, runs["baseline"], runs["stack"]))

    def record(self, prepared: Prepared, events: Sequence[Event]) -> dict[str, Any]:
        """The run as JSON, schema llmlab.run/1."""
        return record(events, prepared.loaded.tokenizer)


def record(events: Sequence[Event], tokenizer: Any = None) -> dict[str, Any]:
    """A run's events as JSON of schema llmlab.run/1; without a tokenizer the text is put together from the events."""
    started = next(e for e in events if isinstance(e, Started))
    ids = text_of(events)
    text = "".join(t for e in events if isinstance(e, Committed) for t in e.text)
    if tokenizer is not None:
        text = tokenizer.decode(ids, skip_special_tokens=True)
    value: dict[str, Any] = {
        "schema": "llmlab.run/1",
        "model": started.model,
        "stack": started.stack,
        "settings": started.settings,
        "device": started.device,
        "text": text,
        "token_ids": ids,
        "metrics": trace.ledger(events),
        "quality": trace.quality(events),
    }
    failed = [e.message for e in events if isinstance(e, Failed)]
    if failed:
        value["failed"] = failed[0]
    return value


def plain(settings: Settings) -> Settings:
    """The same run without any technique."""
    return replace(settings, stack=Stack())

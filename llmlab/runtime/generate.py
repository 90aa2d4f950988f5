"""The playground's loop: read the prompt, then step after step, and yield events of each."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from llmlab.models.work import Work
from llmlab.runtime.clock import Clock
from llmlab.runtime.events import Committed, Drafted, Event, Evicted, Exited, Finished, Prefilled, Started
from llmlab.runtime.prompt import Prompt
from llmlab.runtime.roles import ForwardPatch
from llmlab.runtime.sampling import Sampler, SeededRandom
from llmlab.runtime.session import Session
from llmlab.runtime.stack import Stack
from llmlab.runtime.step import Lane, verify
from llmlab.runtime.step import Work as Share
from llmlab.runtime.tally import Tally
from llmlab.runtime.tools import Tools


def generate(
    model: Any,
    prompt: Sequence[int],
    limit: int,
    stack: Stack | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    stop: threading.Event | None = None,
    stop_tokens: Collection[int] = (),
    tools: Tools | None = None,
    started: Started | None = None,
    exact: bool = True,
) -> Iterator[Event]:
    """Continue `prompt` (token ids) by at most `limit` tokens; the engine knows token ids and nothing of text.

    `model` already carries the stack's weight transforms (see `ModelCache`). `stop` is looked at once per pass.
    `started` is a filled-in first event; without it a bare one is made. `exact`: see `Session`.

    Raises Refused, before anything is computed, when the stack cannot run on this model.
    """
    stack, stop, tools = stack or Stack(), stop or threading.Event(), tools or Tools()
    stack.require(model.capabilities)
    for technique in stack:
        technique.prepare(model, tools)
    given = stack.compressed(Prompt(tuple(prompt)), tools)
    clock = Clock(model.device)
    session = stack.session(model, tools, sampler=sampler or Sampler(), random=SeededRandom(seed), exact=exact)
    weights = tools.weight_bytes(model)
    first = started or bare_start(model, stack, given)
    copies = getattr(model, "copied_bytes", 0)
    yield replace(first, t=clock(), weight_bytes=model.nbytes + weights, auxiliary_bytes=weights, copies_bytes=copies)
    tally = Tally(model, tools)
    with ExitStack() as undo:
        for patch in stack:
            if isinstance(patch, ForwardPatch):
                undo.enter_context(patch.installed(session))
        for event in _prefill(session, given, clock, tally):
            yield event
            if stop.is_set():
                yield Finished(clock(), "stopped")
                return
        yield from _decode(stack.lane(session, tools, limit, stop_tokens), clock, stop, tally)


def _prefill(session: Session, prompt: Prompt, clock: Clock, tally: Tally) -> Iterator[Event]:
    pieces, memory, whole = session.prefill(prompt), session.memory, Work()
    while True:
        with tally:
            piece = next(pieces, None)
        if piece is None:
            break
        done, evicted = piece
        if evicted:
            yield Evicted(clock(), *evicted)
            continue
        work = tally.take()
        whole += work
        fields = {"activation_bytes": work.held, **_counted(whole)}
        yield Prefilled(clock(), done, len(prompt) - 1, memory.nbytes, memory.rows(), **fields)
    if len(prompt) == 1:
        yield Prefilled(clock(), 0, 0, memory.nbytes, memory.rows())


def _counted(work: Work) -> dict[str, Any]:
    """The fields of an event that say what was computed and read."""
    return {
        "layer_rows": work.layer_rows,
        "kv_only_rows": work.kv_only_rows,
        "drafter_rows": work.drafter_rows,
        "flops": work.flops,
        "read_bytes": work.read_bytes,
    }


def _decode(lane: Lane, clock: Clock, stop: threading.Event, tally: Tally) -> Iterator[Event]:
    session, layers, reason = lane.session, len(lane.session.memory.layers), "limit"
    while lane.produced < lane.limit:
        if stop.is_set():
            reason = "stopped"
            break
        if lane.context_full:
            reason = "context full"
            break
        start = clock()
        with tally:
            draft = lane.propose()
        if len(draft):
            drafted = clock()
            yield Drafted(drafted, list(draft.tokens), list(draft.parents), drafted - start)
        with tally:
            ((_, result),) = verify(session.model, [Share(lane, draft)])
            done = lane.commit(draft, result)
        now, work = clock(), tally.take()
        for layer, confidence in done.exits:
            yield Exited(now, layer, layers, confidence)
        kv_bytes = session.memory.nbytes + lane.tools.kv_bytes()
        tokens, path, rows = list(done.tokens), list(done.path), session.memory.rows()
        fields = {"activation_bytes": work.held, **_counted(work)}
        yield Committed(now, tokens, path, now - start, rows, kv_bytes, done.layers_run, **fields)
        if done.evicted:
            yield Evicted(now, *done.evicted)
        if done.ended:
            reason = "stop token"
            break
    lane.close()
    yield Finished(clock(), reason)


def bare_start(model: Any, stack: Stack, prompt: Sequence[int] | Prompt) -> Started:
    """A first event for a run that no experiment describes: tests and short scripts."""
    return Started(
        t=0.0,
        model=type(model).__name__,
        lane="stack" if len(stack) else "baseline",
        device=str(model.device),
        weights=getattr(model, "weights", ""),
        stack=stack.to_json(),
        settings={},
        prompt_tokens=len(prompt),
        layers=len(model.layers),
        weight_bytes=model.nbytes,
        lossless=stack.lossless(),
    )


def committed_tokens(events: Sequence[Event]) -> list[int]:
    """The token ids that a run committed, in order."""
    return [t for e in events if isinstance(e, Committed) for t in e.tokens]

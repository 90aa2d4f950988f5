"""The one generation loop: propose a tree, forward, accept a path, commit, emit. Plain decoding has an empty draft."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from llmlab.models.kernels.topk import argmax
from llmlab.runtime.clock import Clock
from llmlab.runtime.draft import Draft, Verdict
from llmlab.runtime.events import Committed, Drafted, Event, Evicted, Exited, Finished, Prefilled, Started
from llmlab.runtime.sampling import Sampler, SeededRandom, accept, accept_greedy
from llmlab.runtime.stack import Stack
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

    `model` already carries the stack's weight transforms (see `shelf`). `stop` is looked at once per pass.
    `started` is a filled-in first event; without it a bare one is made. `exact`: see `Session`.

    Raises Refused, before anything is computed, when the stack cannot run on this model.
    """
    stack, sampler, stop, tools = stack or Stack(), sampler or Sampler(), stop or threading.Event(), tools or Tools()
    stack.require(model.capabilities)
    clock = Clock(model.device)
    session = stack.session(model)
    session.sampler, session.random, session.exact, session.tools = sampler, SeededRandom(seed), exact, tools
    yield replace(started or bare_start(model, stack, prompt), t=clock())
    drafter, acceptor = stack.one("Drafter"), stack.one("Acceptor")
    if drafter and (taps := drafter.taps(model, tools)):
        session.tap(taps)
    with ExitStack() as undo:
        for patch in stack.with_role("ForwardPatch"):
            undo.enter_context(patch.installed(session))
        for done, evicted in session.prefill(prompt):
            if evicted:
                yield Evicted(clock(), *evicted)
            else:
                yield Prefilled(clock(), done, len(prompt) - 1, session.memory.nbytes, session.memory.rows())
            if stop.is_set():
                yield Finished(clock(), "stopped")
                return
        if len(prompt) == 1:
            yield Prefilled(clock(), 0, 0, session.memory.nbytes, session.memory.rows())
        proposals = drafter.drafts(session, tools) if drafter else None
        verdict: Verdict | None = None
        produced, reason = 0, "limit"
        while produced < limit:
            if stop.is_set():
                reason = "stopped"
                break
            if session.memory.next_position >= model.context:
                reason = "context full"
                break
            start = clock()
            draft = Draft()
            if proposals:
                draft = next(proposals) if verdict is None else proposals.send(verdict)
                draft = draft.clipped(min(session.max_draft_depth(), limit - produced - 1))
                if len(draft):
                    drafted = clock()
                    yield Drafted(drafted, list(draft.tokens), list(draft.parents), drafted - start)
            logits = session.forward(draft)
            exits = list(session.exits)
            layers_run = session.layers_run
            best = argmax(logits) if proposals or sampler.greedy else []
            if acceptor and len(draft):
                path, bonus = acceptor.accept(draft, logits, sampler, session.random, tools)
            elif sampler.greedy:
                path, bonus = accept_greedy(draft, best)
            else:
                path, bonus = accept(draft, sampler.distribution(logits), session.random)
            tokens = [draft.tokens[i] for i in path] + [bonus]
            for i, token in enumerate(tokens):
                if token in stop_tokens:
                    tokens, reason = tokens[: i + 1], "stop token"
                    break
            evicted = session.commit(path, bonus, draft)
            if proposals:
                verdict = Verdict(path, tuple(tokens), draft, tuple(best))
            produced += len(tokens)
            now = clock()
            for layer, confidence in exits:
                yield Exited(now, layer, len(session.memory.layers), confidence)
            path = path[: len(tokens)]
            yield Committed(
                now,
                tokens,
                list(path),
                now - start,
                session.memory.rows(),
                session.memory.nbytes + tools.kv_bytes(),
                layers_run,
            )
            if evicted:
                yield Evicted(now, *evicted)
            if reason == "stop token":
                break
        if proposals:
            proposals.close()
        yield Finished(clock(), reason)


def bare_start(model: Any, stack: Stack, prompt: Sequence[int]) -> Started:
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

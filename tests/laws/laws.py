"""The laws, as functions that return what breaks them: the tests want none, the teeth (test_teeth.py) want some."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from llmlab.kv.memory import Memory
from llmlab.kv.rows import Rows
from llmlab.kv.storage import PlainStorage
from llmlab.models.batch import Batch, Span
from llmlab.models.decoder import Decoder
from llmlab.models.formats.linear import Linear
from llmlab.models.mixers.attention import Attention
from llmlab.runtime.draft import Draft
from llmlab.runtime.events import Committed, Drafted, Event, Evicted, Finished, Prefilled
from llmlab.runtime.generate import committed_tokens, generate
from llmlab.runtime.roles import Drafter
from llmlab.runtime.sampling import Sampler, accept
from llmlab.runtime.session import Session
from llmlab.runtime.stack import Stack
from llmlab.runtime.technique import Technique, make, registry
from llmlab.runtime.tools import Tools
from tests import tiny

T = TypeVar("T")
Tokens = Sequence[int]

# What there is to test ------------------------------------------------------------------------------------------


def sharp(id: str) -> Technique:
    """A technique at the settings at which it shows on a tiny model."""
    return make(id, **(registry()[id].biting_settings or {}))


def accompanied(*techniques: Technique) -> Stack:
    """A stack of these, and of a drafter where one of them has nothing to do without it."""
    stack = Stack(techniques)
    lacking = any(t.requires and not stack.with_role(t.requires.role) for t in techniques)
    return Stack([*techniques, sharp("prompt-lookup")]) if lacking else stack


def alone(id: str) -> Stack:
    """The technique as `sharp` sets it, and a drafter where it has nothing to do without one."""
    return accompanied(sharp(id))


def exact_ids() -> list[str]:
    return [id for id, cls in registry().items() if cls.exact]


def lossy_ids() -> list[str]:
    return [id for id, cls in registry().items() if not cls.exact]


def lossy_stacks() -> list[Stack]:
    """The empty stack, every lossy technique alone, and every pair of them that goes together on our decoder.

    Without rules of acceptance: what they write depends on the drafts, so no drafter is exact beside them.
    """
    alone = [Stack([sharp(id)]) for id in lossy_ids() if registry()[id].role != "Acceptor"]
    pairs = [Stack([*a, *b]) for a, b in itertools.combinations(alone, 2)]
    return [Stack(), *alone, *(s for s in pairs if not s.refusals(Attention.capabilities))]


def ends(id: str) -> list[Technique]:
    """The technique with each knob at each end of its range, or at each of its choices, the others at defaults."""
    made = []
    for k in registry()[id].knobs():
        values = {"bool": (False, True), "choice": k.choices}.get(k.kind, (k.low, k.high))
        made += [make(id, **{k.name: v}) for v in values if v != "*"]
    return list(dict.fromkeys(made))


# Running --------------------------------------------------------------------------------------------------------


def changed(model: Any, stack: Stack, tools: Tools) -> Any:
    """The model as the stack's weight transforms leave a private copy of it."""
    transforms = stack.with_role("WeightTransform")
    if not transforms:
        return model
    copy = model.private_copy()
    for transform in transforms:
        transform.apply(copy, tools)
    return copy


def run(model: Any, prompt: Tokens, limit: int, stack: Stack | None = None, **rest: Any) -> list[Event]:
    """The events of a run on a model that already carries the stack's transforms."""
    tools = rest.pop("tools", None) or tiny.tools()
    return list(generate(model, prompt, limit, stack or Stack(), tools=tools, **rest))


def text(model: Any, prompt: Tokens, limit: int, stack: Stack | None = None, **rest: Any) -> list[int]:
    return committed_tokens(run(model, prompt, limit, stack, **rest))


# Exactness ------------------------------------------------------------------------------------------------------


def texts(
    model: Any, stack: Stack, prompts: Iterable[Tokens], limit: int, tools: Callable[[], Tools]
) -> list[list[int]]:
    """What `stack` writes after each prompt, greedy; `model` carries the stack's transforms already."""
    return [text(model, prompt, limit, stack, tools=tools()) for prompt in prompts]


def differences(want: Iterable[Tokens], got: Iterable[Tokens]) -> list[str]:
    return [f"prompt {i}: {g} is not {w}" for i, (w, g) in enumerate(zip(want, got, strict=True)) if g != w]


def exactness(
    model: Any, lossy: Stack, exact: Technique, prompts: Iterable[Tokens], limit: int, tools: Callable[[], Tools]
) -> list[str]:
    """Where text(lossy + exact) differs from text(lossy), greedy."""
    prompts, model = list(prompts), changed(model, lossy, tools())
    both = Stack([*lossy, exact])
    return differences(texts(model, lossy, prompts, limit, tools), texts(model, both, prompts, limit, tools))


@dataclass(frozen=True)
class Script(Drafter):
    """A drafter that knows the truth.

    It drafts up to `most` steps of it, corrupted at a random place, as chains or random trees; it asks nobody for room.
    """

    truth: tuple[int, ...] = ()
    seed: int = 0
    tree: bool = False
    most: int = 8

    def drafts(self, session: Session, tools: Tools) -> Iterator[Draft]:
        dice = random.Random(self.seed)
        while True:
            ahead = self.truth[len(session.tokens) :][: dice.randint(0, self.most)]
            yield (self._tree if self.tree else self._chain)(dice, ahead)

    def _wrong(self, dice: random.Random, right: int) -> int:
        return (right + dice.randint(1, tiny.VOCAB - 1)) % tiny.VOCAB

    def _chain(self, dice: random.Random, ahead: Tokens) -> Draft:
        at = dice.randint(0, len(ahead))
        return Draft.chain([self._wrong(dice, t) if i == at else t for i, t in enumerate(ahead)])

    def _tree(self, dice: random.Random, ahead: Tokens) -> Draft:
        """The true path as deep as the dice say, grown among wrong branches, some of which hold true tokens too."""
        tokens: list[int] = []
        parents: list[int] = []
        tip, depth = -1, 0
        for _ in range(2 * len(ahead)):
            if dice.random() < 0.6 and depth < len(ahead):
                parents.append(tip)
                tokens.append(ahead[depth])
                tip, depth = len(tokens) - 1, depth + 1
            else:
                parents.append(dice.randint(-1, len(tokens) - 1))
                near = ahead[min(depth, len(ahead) - 1)]
                tokens.append(near if dice.random() < 0.2 else self._wrong(dice, near))
        return Draft(tuple(tokens), tuple(parents), (None,) * len(tokens))


def scripted(
    model: Any, lossy: Stack, prompts: Iterable[Tokens], limit: int, tree: bool, seed: int = 0, most: int = 8
) -> tuple[list[str], set[tuple[int, int]]]:
    """As `exactness` with a `Script`; and every (drafted, accepted) that occurred."""
    model = changed(model, lossy, tiny.tools())
    wrong, seen = [], set()
    for i, prompt in enumerate(prompts):
        truth = text(model, prompt, limit + 2 * most, lossy)
        script = Script(truth=(*prompt, *truth), seed=seed + i, tree=tree, most=most)
        events = run(model, prompt, limit, Stack([*lossy, script]))
        if committed_tokens(events) != truth[:limit]:
            wrong.append(f"prompt {i}: {committed_tokens(events)} is not {truth[:limit]}")
        drafted = 0
        for e in events:
            if isinstance(e, Drafted):
                drafted = len(e.tokens)
            elif isinstance(e, Committed):
                seen.add((drafted, len(e.path)))
                drafted = 0
    return wrong, seen


# Sampling -------------------------------------------------------------------------------------------------------


class Fate:
    """A chance whose first acts are given, and which notes the ways it did not take."""

    def __init__(self, given: Tokens) -> None:
        self.given = given
        self.taken: list[int] = []
        self.weight = 1.0
        self.others: list[list[int]] = []

    def _act(self, options: dict[int, float]) -> int:
        possible = [o for o, w in options.items() if w > 0]
        at = len(self.taken)
        if at < len(self.given):
            choice = self.given[at]
        else:
            choice = possible[0]
            self.others += [[*self.taken, o] for o in possible[1:]]
        self.taken.append(choice)
        self.weight *= options[choice]
        return choice

    def bernoulli(self, p: float) -> bool:
        return bool(self._act({1: p, 0: 1 - p}))

    def categorical(self, p: Tensor) -> int:
        weights = (p.double() / p.double().sum()).tolist()
        return self._act(dict(enumerate(weights)))


def outcomes(act: Callable[[Fate], T]) -> Iterator[tuple[float, T]]:
    """Every way in which `act` can turn out, with its probability."""
    open_: list[list[int]] = [[]]
    while open_:
        fate = Fate(open_.pop())
        result = act(fate)
        yield fate.weight, result
        open_ += fate.others


Law = dict[tuple[int, ...], float]
Conditional = Callable[[tuple[int, ...]], Tensor]
Rule = Callable[[Draft, Tensor, Fate], tuple[tuple[int, ...], int]]
"""What becomes of a draft, given the model's distributions (T, V) after its root and nodes: a path and a token."""


def conditional(seed: int, vocab: int, zeros: int = 0, sharp: float = 1.0) -> Conditional:
    """A random language: prefix -> (V,) probabilities, `zeros` of which are nought."""

    def p(prefix: tuple[int, ...]) -> Tensor:
        digest = hashlib.sha256(repr((seed, prefix)).encode()).digest()
        dice = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        weights = torch.softmax(sharp * torch.randn(vocab, generator=dice), -1)
        weights[torch.randperm(vocab, generator=dice)[:zeros]] = 0
        return weights / weights.sum()

    return p


def extend(law: Law, sequence: tuple[int, ...], weight: float, p: Conditional, length: int) -> None:
    """Add to `law` what follows when `sequence` is continued by p to `length` tokens."""
    if len(sequence) >= length:
        law[sequence[:length]] += weight
        return
    for x, w in enumerate(p(sequence).tolist()):
        if w > 0:
            extend(law, (*sequence, x), weight * w, p, length)


def committed(
    parents: Tokens,
    p: Conditional,
    q: Conditional | None,
    certain: Callable[[int, tuple[int, ...]], int] | None = None,
    rule: Rule = accept,
) -> Law:
    """The law of what `rule` commits, continued by p to one token more than the draft is deep.

    The draft has this topology. Node tokens are drawn from q of their prefix; where `certain(node, prefix)` is given
    instead, nodes are certain.
    """
    depths = Draft(tuple(parents), tuple(parents)).depths()
    length = max(depths, default=0) + 1

    def act(fate: Fate) -> tuple[int, ...]:
        prefixes: list[tuple[int, ...]] = []
        tokens, qs = [], []
        for i, parent in enumerate(parents):
            before = () if parent < 0 else prefixes[parent]
            if certain is not None:
                token, distribution = certain(i, before), None
            else:
                distribution = q(before)
                token = fate.categorical(distribution)
            tokens.append(token)
            qs.append(distribution)
            prefixes.append((*before, token))
        draft = Draft(tuple(tokens), tuple(parents), tuple(qs))
        path, bonus = rule(draft, torch.stack([p(()), *map(p, prefixes)]), fate)
        return (*(tokens[i] for i in path), bonus)

    got: Law = defaultdict(float)
    for weight, sequence in outcomes(act):
        extend(got, sequence, weight, p, length)
    return got


def sampling(
    parents: Tokens,
    p: Conditional,
    q: Conditional | None,
    certain: Callable[[int, tuple[int, ...]], int] | None = None,
    rule: Rule = accept,
) -> float:
    """How far the law that `committed` finds lies from p's own: the largest difference."""
    got = committed(parents, p, q, certain, rule)
    want: Law = defaultdict(float)
    extend(want, (), 1.0, p, len(next(iter(got))))
    return max(abs(got[s] - want[s]) for s in {*got, *want})


# Reference ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def logits(model: Any, tokens: Tokens, pieces: Iterable[int], best: int = 0) -> Tensor:
    """(n, V) logits of our model for `tokens`, read in pieces of these sizes; `best`: see `EmbeddingAndHead.logits`."""
    memory, out, at = model.memory(), [], 0
    for n in pieces:
        part = torch.tensor(tokens[at : at + n])
        batch = Batch(part, torch.arange(at, at + len(part)), [Span(0, len(part), memory)])
        out.append(model.forward(batch, best=best).logits)
        at += n
    return torch.cat(out)


@torch.inference_mode()
def stepwise(model: Any, tokens: Tokens) -> Tensor:
    """(n, V) logits of a session that is given one token at a time, with a rejected draft every tenth pass."""
    session = Session(model)
    list(session.prefill(tokens[:1]))
    out = []
    for i, token in enumerate(tokens):
        session.tokens[-1] = token
        wrong = Draft.chain([1, 2]) if i % 10 == 9 else Draft()
        out.append(session.forward(wrong).logits[0])
        session.commit((), token, wrong)
    return torch.stack(out)


@torch.inference_mode()
def reference_logits(reference: Any, tokens: Tokens) -> Tensor:
    return reference(torch.tensor([list(tokens)])).logits[0].float()


def reference(model: Any, referee: Any, tokens: Tokens, pieces: Iterable[int]) -> float:
    """The largest difference between our logits and transformers', in units of the logits' spread."""
    want = reference_logits(referee, tokens)
    return float((logits(model, tokens, pieces) - want).abs().max() / want.std())


# Eviction -------------------------------------------------------------------------------------------------------


def attention_given(referee: Any, tokens: Tokens, masks: list[Tensor]) -> Tensor:
    """(n, V) logits of a transformers model whose layer l attends where masks[l] (H, n, n) is true, in one pass."""
    hooks = []

    def hide(mask: Tensor) -> Callable[..., Any]:
        bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[None]
        return lambda module, args, kwargs: (args, {**kwargs, "attention_mask": bias})

    for layer, mask in zip(referee.model.layers, masks, strict=True):
        hooks.append(layer.self_attn.register_forward_pre_hook(hide(mask), with_kwargs=True))
    try:
        return reference_logits(referee, tokens)
    finally:
        for hook in hooks:
            hook.remove()


class Ledgered(Rows):
    """Rows that also remember which token each of them came from, however they are moved."""

    def _grow(self, n: int, positions: Tensor | range) -> int:
        born, start = getattr(self, "born", 0), super()._grow(n, positions)
        self.stat("token")[:, start:] = torch.arange(born, born + n).float()
        self.born = born + n
        return start

    def keep(self, rows: range | Tensor) -> None:
        if isinstance(rows, range):
            self.born -= self.count - len(rows)
        super().keep(rows)


@torch.inference_mode()
def hidden_rows(model: Decoder, referee: Any, policy: Technique, tokens: Tokens) -> tuple[float, int]:
    """Evict with `policy` along forced tokens; then hide from transformers what was dropped when each token looked.

    Returns the largest difference of the logits in units of their spread, and how many rows were dropped. Wants a
    policy that leaves positions alone.
    """
    s = model.shape
    memory = Memory(
        [
            Ledgered(PlainStorage(s.kv_heads, s.head_size, torch.float32, model.device), model.device)
            for _ in model.layers
        ]
    )
    session = Stack([policy]).session(model, memory=memory)
    n, group = len(tokens), s.heads // s.kv_heads
    masks = [torch.zeros(s.kv_heads, n, n, dtype=torch.bool) for _ in model.layers]
    dropped = 0
    got = []
    list(session.prefill(tokens[:1]))
    for t in range(n):
        got.append(session.forward().logits[0])
        for mask, rows in zip(masks, session.memory.layers, strict=True):
            mask[:, t].scatter_(1, rows.stat("token").long(), True)
        if t + 1 < n:
            evicted = session.commit((), tokens[t + 1])
            dropped += sum(evicted[0]) - sum(evicted[1]) if evicted else 0
    want = attention_given(referee, tokens, [m.repeat_interleave(group, 0) for m in masks])
    return float((torch.stack(got) - want).abs().max() / want.std()), dropped


@torch.inference_mode()
def repositioned_rows(model: Decoder, policy: Any, tokens: Tokens) -> float:
    """As `hidden_rows` where positions are counted inside the cache: against keys kept unrotated and turned afresh.

    `policy` has `sinks`, `budget` and `every`; the rule is written out again here.
    """
    session = Stack([policy]).session(model)
    list(session.prefill(tokens[:1]))
    kept: list[int] = []
    pure: list[list[tuple[Tensor, Tensor]]] = [
        [] for _ in model.layers
    ]  # per layer and token: k before rotation, and v
    worst = 0.0
    for t, token in enumerate(tokens):
        got = session.forward().logits[0]
        slot = len(kept)
        memory = model.memory()
        for rows, old in zip(memory.layers, pure, strict=True):
            if kept:
                k = torch.stack([old[i][0] for i in kept], 1)
                turn = model.rotary.at(torch.arange(slot))
                k = torch.view_as_real(torch.view_as_complex(k.unflatten(-1, (-1, 2))) * turn).flatten(-2)
                rows.append(torch.stack([k, torch.stack([old[i][1] for i in kept], 1)]), torch.arange(slot))
        want = model.forward(Batch(torch.tensor([token]), torch.tensor([slot]), [Span(0, 1, memory)])).logits[0]
        worst = max(worst, float((got - want).abs().max() / want.std()))
        for rows, old in zip(memory.layers, pure, strict=True):
            back = 1 / model.rotary.at(torch.tensor([slot]))
            pairs = torch.view_as_complex(rows.k[:, -1].clone().unflatten(-1, (-1, 2)))
            old.append((torch.view_as_real(pairs * back).flatten(-2), rows.v[:, -1].clone()))
        kept.append(t)
        if len(kept) == policy.budget + policy.every:
            kept = kept[: policy.sinks] + kept[len(kept) - (policy.budget - policy.sinks) :]
        if t + 1 < len(tokens):
            session.commit((), tokens[t + 1])
    return worst


# Traces left behind ---------------------------------------------------------------------------------------------


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Everything that a run could leave changed: every tensor's bytes, every hook, every attribute's name.

    Not among them is what a model keeps because it was computed from it and costs time; `fresh` sees that it is right.
    """
    kept = {"_table", "_made"}
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        hooks = [len(v) for k, v in vars(module).items() if k.endswith("_hooks") and isinstance(v, dict)]
        found[path] = (type(module).__name__, sum(hooks), sorted(k for k in vars(module) if k not in kept))
        tensors = [*module.named_buffers(recurse=False), *module.named_parameters(recurse=False)]
        if isinstance(module, Linear):  # oneDNN's layout is opaque, so the matrix is told apart by what it stands for
            tensors.append(("dense", module.dense()))
        for name, t in tensors:
            raw = t.detach().contiguous().view(torch.uint8).numpy().tobytes()
            found[f"{path}:{name}"] = hashlib.sha256(raw).hexdigest()
    return found


def undo(model: Any, stack: Stack, prompt: Tokens, limit: int) -> list[str]:
    """What a whole run, transforms included, leaves changed in the model it was given."""
    before = fingerprint(model)
    run(changed(model, stack, tiny.tools()), prompt, limit, stack)
    after = fingerprint(model)
    return sorted(k for k in {*before, *after} if before.get(k) != after.get(k))


def fresh(model: Any, first: Stack, second: Stack, prompts: Sequence[Tokens], limit: int) -> list[str]:
    """Where `second` writes another text, or holds other bytes, after `first` has run than alone on a new model."""

    def tell(m: Any, tools: Tools) -> list[Any]:
        events = run(changed(m, second, tools), prompts[1], limit, second, tools=tools)
        return [(e.tokens, e.path, e.kv_rows) for e in events if isinstance(e, Committed)]

    alone = tell(model.private_copy(), tiny.tools())
    shared, tools = model.private_copy(), tiny.tools()
    run(changed(shared, first, tools), prompts[0], limit, first, tools=tools)
    after = tell(shared, tools)
    return [f"pass {i}: {a} alone, {b} after" for i, (a, b) in enumerate(itertools.zip_longest(alone, after)) if a != b]


# The books ------------------------------------------------------------------------------------------------------


def tensor_bytes(*things: Any) -> int:
    """Bytes of the storages that these objects' attributes hold, each counted once; found by looking, not by asking."""
    storages: dict[int, int] = {}
    waiting: list[Any] = list(things)
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, Tensor):
            if thing.numel():
                storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, dict):
            waiting += thing.values()
        elif isinstance(thing, list | tuple):
            waiting += thing
        elif type(thing).__module__.startswith("llmlab.kv"):
            waiting += vars(thing).values()
    return sum(storages.values())


def books(
    model: Any,
    prompt: Tokens,
    limit: int,
    stack: Stack,
    memories: Callable[[], Iterable[Memory]],
    stop_tokens: Collection[int] = (),
    sampler: Sampler | None = None,
) -> list[str]:
    """What does not add up in the events of a run. `memories()` are all stores that exist while it runs."""
    wrong: list[str] = []
    drafted: Drafted | None = None
    produced, last = 0, 0.0
    reason = None
    layers = len(model.layers)
    events = generate(model, prompt, limit, stack, sampler, tools=tiny.tools(), stop_tokens=stop_tokens)
    for e in events:
        if e.t < last:
            wrong.append(f"time runs backwards at {e}")
        last = e.t
        if isinstance(e, Drafted):
            drafted = e
        if isinstance(e, Prefilled | Committed):
            held = tensor_bytes(*memories())
            if e.kv_bytes != held:
                wrong.append(f"{e.kv_bytes} bytes reported, {held} bytes exist")
        if isinstance(e, Committed):
            n = len(drafted.tokens) if drafted else 0
            if len(e.path) > n:
                wrong.append(f"{len(e.path)} accepted of {n} drafted")
            if not len(e.path) <= len(e.tokens) <= len(e.path) + 1:
                wrong.append(f"{len(e.tokens)} tokens from {len(e.path)} accepted")
            if drafted and [drafted.tokens[i] for i in e.path] != e.tokens[: len(e.path)]:
                wrong.append("the accepted nodes are not the committed tokens")
            if drafted and any(drafted.parents[b] != a for a, b in zip([-1, *e.path], e.path, strict=False)):
                wrong.append("the accepted nodes are no path")
            if len(e.kv_rows) != layers or not 0 < e.layers_run <= layers:
                wrong.append(f"{e.layers_run} of {layers} layers, {len(e.kv_rows)} row counts")
            produced += len(e.tokens)
            drafted = None
        if isinstance(e, Evicted) and not all(b <= a for a, b in zip(e.before, e.after, strict=True)):
            wrong.append(f"an eviction added rows: {e}")
        if isinstance(e, Finished):
            reason = e.reason
    if reason == "limit" and produced != limit:
        wrong.append(f"{produced} tokens where {limit} were asked for")
    if reason is None:
        wrong.append("the run does not finish")
    return wrong


def decoders(*things: Any) -> list[Decoder]:
    """The decoders among these things and what they hold."""
    seen: set[int] = set()
    out: list[Decoder] = []
    waiting = list(things)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, Decoder):
            out.append(thing)
        elif isinstance(thing, dict):
            waiting += thing.values()
        elif isinstance(thing, list | tuple):
            waiting += thing
        elif type(thing).__module__.startswith("llmlab"):
            waiting += vars(thing).values()
    return out

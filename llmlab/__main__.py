"""The command line. Status 2 and one sentence on standard error for input that cannot work."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llmlab.errors import Refused

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m llmlab", description="A laboratory for efficient LLM inference.")
    sub = p.add_subparsers(dest="command", required=True)
    for name, help in (("run", "run one stack"), ("compare", "run the baseline, then the stack, and say what differs")):
        c = sub.add_parser(name, help=help)
        c.add_argument("--model", default="smollm2-135m", help="catalogue id, Hub id, local folder or GGUF file")
        c.add_argument("--prompt", default=None)
        c.add_argument("--prompt-file", default=None, metavar="F")
        c.add_argument("--chat", action=argparse.BooleanOptionalAction, default=None, help="use the chat template")
        c.add_argument("--max-new-tokens", default=64)
        c.add_argument("--technique", action="append", default=[], metavar="NAME:knob=value,knob=value")
        weights = "dense-fp32, dense-bf16, int8, int4, or bitsandbytes' nf4 and bnb-int8"
        c.add_argument("--weights", default="dense-fp32", help=weights)
        c.add_argument("--temperature", default=0.0)
        c.add_argument("--top-k", default=0)
        c.add_argument("--top-p", default=1.0)
        c.add_argument("--seed", default=0)
        c.add_argument("--device", default="auto")
        c.add_argument("--threads", default=0, help="of the processor; 0: as many as prove best")
        c.add_argument("--verify", default="bitwise", help="bitwise, or fast: rows of a pass share products")
        c.add_argument("--copies", default="auto", help="auto: keep weights twice to read prompts faster; or none")
        c.add_argument("--json", default=None, metavar="OUT|-")
        c.add_argument("--trace", default=None, metavar="OUT.jsonl")
    c = sub.add_parser("bench", help="this engine against transformers on this machine, side by side")
    _model_options(c, "int4")
    c.add_argument("--cases", default="", help="decode,prefill-500,… (default: a small choice)")
    c.add_argument("--rounds", default=5)
    c.add_argument("--json", default=None, metavar="OUT|-")
    c = sub.add_parser("train", help="train a small part for a model, on text that the model writes itself")
    c.add_argument("part", help="eagle: a drafter; heads: draft heads; exits: exit heads")
    _model_options(c, "int4")
    c.add_argument("--tokens", default=1_000_000, help="of text to write and learn from")
    c.add_argument("--steps", default=2000)
    c.add_argument("--batch", default=4096, help="tokens of a step")
    c.add_argument("--rate", default=1e-3)
    c.add_argument("--minutes", default=0, help="end the training after so many; 0: when the steps are done")
    c.add_argument("--folder", default=None, help="where text and checkpoints are kept (default: the lab's cache)")
    c.add_argument("--out", default=None, metavar="FILE.safetensors", help="where the part goes (default: the cache)")
    c.add_argument("--json", default=None, metavar="OUT|-", help="the card")
    for name, help in (("techniques", "every technique with its knobs"), ("models", "the catalogue and what fits")):
        c = sub.add_parser(name, help=help)
        c.add_argument("--json", action="store_true")
    c = sub.add_parser("studies", help="every study with its knobs")
    c.add_argument("--json", action="store_true")
    c = sub.add_parser("study", help="carry out a study: an experiment of many runs, and what it says to the papers")
    c.add_argument("study", metavar="NAME:knob=value,knob=value")
    _study_options(c)
    c = sub.add_parser("sweep", help="quality against cost: turn the knobs of one technique or of all")
    c.add_argument(
        "--technique", default=None, metavar="NAME", help="whose knob is turned, or all (default: draft-model)"
    )
    c.add_argument("--knob", default=None, help="the knob to turn (default: the technique's main one)")
    c.add_argument("--values", default=None, metavar="V,V,…", help="what to try (default: three or four values)")
    c.add_argument("--kind", default=None, help="of held-out prompts (default: all)")
    c.add_argument("--each", default=None, help="prompts of each kind")
    c.add_argument("--tokens", default=None, help="new tokens per prompt")
    _study_options(c)
    c = sub.add_parser("replay", help="the figures of a recorded run")
    c.add_argument("trace", metavar="TRACE.jsonl")
    c.add_argument("--json", default=None, metavar="OUT|-")
    return p


def _model_options(c: argparse.ArgumentParser, weights: str) -> None:
    c.add_argument("--model", default="smollm2-135m", help="catalogue id, Hub id, local folder or GGUF file")
    c.add_argument("--weights", default=weights)
    c.add_argument("--device", default="auto")
    c.add_argument("--threads", default=0)


def _study_options(c: argparse.ArgumentParser) -> None:
    _model_options(c, "dense-fp32")
    c.add_argument("--seed", default=0)
    c.add_argument("--json", default=None, metavar="OUT|-")


def settings_of(a: argparse.Namespace) -> Any:
    from llmlab.lab.settings import Settings
    from llmlab.runtime.stack import Stack

    if a.prompt is not None and a.prompt_file is not None:
        raise Refused("The command", "gives both --prompt and --prompt-file", "Give one of them")
    prompt = a.prompt
    if a.prompt_file is not None:
        try:
            prompt = Path(a.prompt_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise Refused(f"The prompt file {a.prompt_file}", f"cannot be read ({type(e).__name__})", "Check it") from e
    return Settings(
        model=a.model,
        prompt=prompt or "",
        chat=a.chat,
        max_new_tokens=a.max_new_tokens,
        weights=a.weights,
        temperature=a.temperature,
        top_k=a.top_k,
        top_p=a.top_p,
        seed=a.seed,
        device=a.device,
        threads=a.threads,
        verify=a.verify,
        copies=a.copies,
        stack=Stack.from_arguments(a.technique),
    )


def say(text: str = "") -> None:
    print(text, file=sys.stderr, flush=True)


def report(what: str, done: int, total: int) -> None:
    """Progress on one line of standard error, only where somebody is watching."""
    if sys.stderr.isatty():
        share = f" {done}/{total}" if total else ""
        if total > 1 << 20:
            share = f" {done / total:4.0%} of {total / 1e6:.0f} MB"
        print(f"\r\033[K{what}{share}", end="", file=sys.stderr, flush=True)
        if total and done >= total:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def write(value: Any, where: str | None) -> None:
    if where is None:
        return
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    if where == "-":
        sys.stdout.write(text)
        return
    save(where, text)


def save(where: str, text: str) -> None:
    try:
        Path(where).write_text(text, encoding="utf-8")
    except OSError as e:
        raise Refused(f"The file {where}", f"cannot be written ({e.strerror})", "Give another path") from e


def figures(m: dict[str, Any]) -> str:
    parts = [
        f"{m['new_tokens']} tokens in {m['passes']} passes ({m['tokens_per_pass']:.2f} a pass)",
        f"{m['decode_tokens_per_second']:.1f} tokens/s",
        f"first token after {m['ttft_seconds'] or 0:.2f} s",
        f"weights {m['weight_bytes'] / 1e6:.0f} MB",
        f"KV at most {m['kv_bytes_peak'] / 1e6:.1f} MB in {m['kv_rows_peak']} rows",
    ]
    if m["drafted"]:
        parts.insert(1, f"{m['accepted']} of {m['drafted']} drafted tokens accepted")
    return " · ".join(parts)


def show(events: Iterable[Any], prepared: Any, quiet: bool, headings: bool = False) -> list[Any]:
    """The events as a list, told while they come: what became of the weights, a heading per lane, the text."""
    from llmlab.runtime.events import Committed, Finished, Started, WeightsChanged

    seen, ends, stack = [], prepared.loaded.stop_tokens, prepared.settings.stack
    for e in events:
        seen.append(e)
        if isinstance(e, WeightsChanged):
            say(f"{e.technique}: {e.note}")
        if quiet:
            continue
        if isinstance(e, Started) and headings:
            print("--- baseline" if e.lane == "baseline" else "--- with " + (" ".join(stack.arguments()) or "nothing"))
        if isinstance(e, Committed):
            print("".join(t for i, t in zip(e.tokens, e.text, strict=True) if i not in ends), end="", flush=True)
        if isinstance(e, Finished):
            print(flush=True)
    return seen


def run(a: argparse.Namespace) -> None:
    from llmlab.lab.experiment import Lab
    from llmlab.measure import trace

    lab = Lab()
    prepared = lab.prepare(settings_of(a), report)
    events = show(lab.run(prepared, report=report), prepared, a.json == "-")
    value = lab.record(prepared, events)
    say(figures(value["metrics"]))
    write(value, a.json)
    if a.trace:
        save(a.trace, trace.dumps(events))


def compare(a: argparse.Namespace) -> None:
    from llmlab.lab.experiment import Lab
    from llmlab.measure import trace

    lab = Lab()
    prepared = lab.prepare(settings_of(a), report)
    events = show(lab.compare(prepared, report=report), prepared, a.json == "-", headings=True)
    lanes = trace.lanes(events)
    value = lab.record(prepared, lanes["stack"])
    value["baseline"] = lab.record(prepared, lanes["baseline"])
    old, new, q = value["baseline"]["metrics"], value["metrics"], value["quality"]
    say("baseline: " + figures(old))
    say("stack:    " + figures(new))
    faster = new["decode_tokens_per_second"] / max(old["decode_tokens_per_second"], 1e-9)
    same = "the same text" if q["identical"] else f"another text from token {q['first_difference']} on"
    kl = "" if q["kl_mean"] is None else f"KL {q['kl_mean']:.2g}, "
    cost = f"{kl}top-1 agreement {q['top1_agreement']:.1%}"
    say(f"{faster:.2f}× the baseline's tokens/s, {same}; {cost}")
    write(value, a.json)
    if a.trace:
        save(a.trace, trace.dumps(events))


def described(name: str, kind: Any, **more: Any) -> dict[str, Any]:
    """A technique or a study as a row of its listing."""
    from llmlab.runtime.configurable import title

    knobs = [
        {"name": k.name, "kind": k.kind, "default": k.default, "low": k.low, "high": k.high, "help": k.help}
        | ({"choices": list(k.choices)} if k.choices else {})
        for k in kind.knobs()
    ]
    about = {"title": title(kind), "claim": kind.claim, "knobs": knobs, "speed": kind.speed}
    return {"id": name, **more, **about, "covers": list(kind.covers)}


def show_knobs(knobs: Iterable[dict[str, Any]]) -> None:
    for k in knobs:
        span = " | ".join(k.get("choices", ())) or (f"{k['low']}…{k['high']}" if k["low"] is not None else "")
        print(f"{'':4}{k['name']} = {k['default']}  {span}  {k['help']}")


def studies(a: argparse.Namespace) -> None:
    from llmlab.lab import study

    rows = [described(name, s, bench=s.bench) for name, s in study.studies().items()]
    if a.json:
        write(rows, "-")
        return
    for r in rows:
        print(f"{r['id']:22} {r['bench']:14} {r['title']}: {r['claim']}")
        show_knobs(r["knobs"])


def study(a: argparse.Namespace) -> None:
    from llmlab.runtime.stack import parsed

    name, knobs = parsed(a.study)
    carried_out(name, knobs, a)


def sweep(a: argparse.Namespace) -> None:
    given = {"technique": a.technique, "turn": a.knob, "values": a.values}
    given |= {"kind": a.kind, "each": a.each, "tokens": a.tokens}
    carried_out("sweep", {k: v for k, v in given.items() if v is not None}, a)


def carried_out(name: str, knobs: dict[str, Any], a: argparse.Namespace) -> None:
    """Carry out a study and say what it found: a table, then its word on each claim."""
    from llmlab.lab.experiment import Lab
    from llmlab.lab.settings import Settings
    from llmlab.lab.study import Subject, carry_out, make_study
    from llmlab.ui.findings import table, verdicts

    chosen = make_study(name, **knobs)
    settings = Settings(model=a.model, weights=a.weights, device=a.device, threads=a.threads, seed=a.seed)
    value = carry_out(chosen, Subject(Lab(), settings, report))
    if a.json != "-":
        print(table(value))
        for line in [*verdicts(value), *value["notes"]]:
            print(line)
    write(value, a.json)


def techniques(a: argparse.Namespace) -> None:
    from llmlab.runtime.technique import registry

    rows = [described(name, t, role=t.role, door=t.role, exact=t.exact) for name, t in registry().items()]
    if a.json:
        write(rows, "-")
        return
    for r in rows:
        print(f"{r['id']:18} {r['role']:16} {'exact' if r['exact'] else 'lossy':6} {r['speed']:10} {r['title']}")
        show_knobs(r["knobs"])


def models(a: argparse.Namespace) -> None:
    from llmlab.measure.hardware import free_memory
    from llmlab.models.loading import catalog, fit, locate

    free = free_memory()
    rows = []
    for name, e in catalog.MODELS.items():
        fits = {w: fit.fit(e.size, w, 1024, free).fits for w in e.formats}
        rows.append(
            {
                "id": name,
                "title": e.title,
                "repo": e.repo,
                "parameters": e.parameters,
                "licence": e.licence,
                "gated": e.gated,
                "runs_on": e.runs_on,
                "drafts": list(e.drafts),
                "downloaded": locate.downloaded(e),
                "fits": fits,
            }
        )
    if a.json:
        write(rows, "-")
        return
    print(f"{free / 1e9:.1f} GB of memory are free; a model fits with 1024 tokens of keys and values.")
    for r in rows:
        fits = ", ".join(w for w, ok in r["fits"].items() if ok) or "nothing fits"
        here = "here" if r["downloaded"] else "—"
        print(f"{r['id']:24} {r['parameters'] / 1e6:6.0f} M  {r['licence']:14} {here:5} {fits}")


def replay(a: argparse.Namespace) -> None:
    from llmlab.lab.records import record
    from llmlab.measure import trace

    values = {}
    for lane, events in trace.lanes(trace.load(a.trace)).items():
        values[lane] = record(events)
        if a.json != "-":
            print(f"--- {lane}: {values[lane]['model']}\n{values[lane]['text']}")
        say(f"{lane}: {figures(values[lane]['metrics'])}")
    write(values, a.json)


def bench(a: argparse.Namespace) -> None:
    from llmlab.lab.contestants.own_engine import Ours
    from llmlab.lab.contestants.side_by_side import against_transformers
    from llmlab.lab.settings import Settings, within
    from llmlab.measure.benchmark import SMALL, text_table

    cases = [c for c in str(a.cases).split(",") if c] or SMALL
    settings = Settings(model=a.model, weights=a.weights, device=a.device, threads=a.threads)
    rounds = within("rounds", a.rounds, 1, 1000, int)
    rest = (settings.model, settings.weights, settings.device, settings.threads, cases, rounds, say)
    value = against_transformers(*rest)
    if a.json != "-":
        print(text_table(value["cases"], Ours.name))
    write(value, a.json)


def train(a: argparse.Namespace) -> None:
    from llmlab.cli import train

    card = train.main(a, report)
    say(
        f"{card['file']}: {card['steps']} steps on {card['tokens_of_text']} tokens; on texts kept back "
        + ", ".join(
            f"{name} {f'{value:.1%}' if value <= 1 else f'{value:.1f}'}" for name, value in card["held_out"].items()
        )
    )
    write(card, a.json)


def main(arguments: Sequence[str] | None = None) -> int:
    a = parser().parse_args(arguments)
    try:
        globals()[a.command](a)
    except Refused as e:
        say(str(e))
        return 2
    except KeyboardInterrupt:
        return 130
    except (MemoryError, RuntimeError) as e:  # PyTorch's own out-of-memory errors are RuntimeErrors
        from llmlab.lab.experiment import out_of_memory

        message = out_of_memory(e)
        if message is None:
            raise
        say(message)
        return 2
    except BrokenPipeError:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Greedy text of our engine beside transformers' in float32, on 50 prompts: the same up to ties?

    python -m benchmarks.text [--weights int4] [--tokens 48] [--json OUT|-]

Where the texts part, the margin is how far apart transformers' two best tokens were there, in nats: a tie if it is
within what the format's rounding moves a logit by.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch

from llmlab.cli.output import say, write
from llmlab.lab.contestants.own_engine import Ours
from llmlab.lab.contestants.transformers_engine import Transformers
from llmlab.measure.quality import first_difference
from llmlab.models.loading.loaded import prompt_tokens
from llmlab.runtime.generate import committed_tokens, generate

SUBJECTS = ("rain", "bread", "the moon", "a violin", "glass", "bees", "salt", "maps", "sleep", "a lighthouse")
ASKED = (
    "Explain {} to a child in two sentences.",
    "Write a short poem about {}.",
    "List five facts about {}.",
    "Why would somebody want to know more about {}?",
    "Translate the sentence 'I like {}' into French and say how it is pronounced.",
)
PROMPTS = [ask.format(subject) for ask in ASKED for subject in SUBJECTS]


def compare(ours: Ours, theirs: Transformers, tokens: int) -> list[dict[str, Any]]:
    """Per prompt: the first differing token, None where there is none, and the margin there."""
    rows = []
    for prompt in PROMPTS:
        ids = prompt_tokens(ours.loaded, prompt, chat=True)
        mine = committed_tokens(list(generate(ours.model, ids, tokens)))
        given = torch.tensor([ids])
        with torch.inference_mode():
            out = theirs.model.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, do_sample=False
            )
            want = out[0, len(ids) :].tolist()
            at, margin = first_difference(want, mine), None
            if at is not None:
                logp = theirs.model(out[:, : len(ids) + at]).logits[0, -1].log_softmax(-1)
                margin = float(logp[want[at]] - logp[mine[at]])
        rows.append({"prompt": prompt, "first_difference": at, "margin": margin})
    return rows


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="smollm2-135m")
    p.add_argument("--weights", default="int4")
    p.add_argument("--tokens", type=int, default=48)
    p.add_argument("--json", default=None, metavar="OUT|-")
    a = p.parse_args()
    rows = compare(Ours(a.model, 0, a.weights), Transformers(a.model), a.tokens)
    parted = [r for r in rows if r["first_difference"] is not None]
    say(f"{len(rows) - len(parted)} of {len(rows)} texts of {a.tokens} tokens are the same in {a.weights}")
    if parted:
        at = statistics.median(r["first_difference"] for r in parted)
        margins = sorted(r["margin"] for r in parted)
        say(f"the others part at token {at:g} (median), at margins of {statistics.median(margins):.3f} (median)")
        say(f"to {margins[-1]:.3f} nats (largest)")
    for r in parted:
        say(f"  {r['first_difference']:4} {r['margin']:.3f}  {r['prompt']}")
    write({"weights": a.weights, "tokens": a.tokens, "prompts": rows}, a.json)


if __name__ == "__main__":
    main()

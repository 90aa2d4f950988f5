"""Make the recorded runs that ship in `assets/runs` anew, on this machine, and print their figures.

`python -m benchmarks.recordings [ID …]`: each is `python -m llmlab compare` of its example with the arguments that
`assets/runs/index.json` gives. Do it on a quiet machine: what a recording says of speed is what visitors see.
"""

from __future__ import annotations

import sys

from llmlab.__main__ import main as command
from llmlab.errors import unknown_name
from llmlab.ui.playground.samples import RUNS, examples, recordings


def main(wanted: list[str]) -> int:
    """Record those with these ids, or all; the exit status of the first that fails, else 0."""
    known = {r["id"]: r for r in recordings()}
    prompts = {e["id"]: e["prompt"] for e in examples()}
    for name in wanted or known:
        if name not in known:
            print(unknown_name("recorded run", name, known), file=sys.stderr)
            return 2
        item = known[name]
        given = ["--prompt", prompts[item["example"]], *item["arguments"], "--trace", str(RUNS / item["file"])]
        if status := command(["compare", *given]):
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

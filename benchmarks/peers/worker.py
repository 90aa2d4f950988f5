"""One engine in a process of its own: commands come as JSON lines, each is answered by one JSON line.

python worker.py MODULE FILE THREADS        MODULE of this folder, or "llmlab.lab.contestants.MODULE:CLASS"
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any


def peak_bytes() -> int:
    """The most memory that this process has had in use."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    module, path, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever an engine prints must not come between the answers

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        if ":" in module:
            file, name = module.split(":")
            engine = getattr(importlib.import_module(file), name)(path, threads)
        else:
            sys.path.insert(0, str(Path(__file__).parent))
            engine = importlib.import_module(module).ENGINE(path, threads)
        answer({"name": engine.name, "version": engine.version})
    except Exception as e:
        answer({"error": f"{type(e).__name__}: {e}"})
        return
    for line in sys.stdin:
        verb, *rest = json.loads(line)
        try:
            answer({"value": peak_bytes() if verb == "peak" else getattr(engine, verb)(*rest)})
        except Exception as e:
            answer({"error": f"{type(e).__name__}: {e}"})


if __name__ == "__main__":
    main()

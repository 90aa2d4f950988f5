"""Engines in processes of their own, and the Python environment of those that are no part of the lab's requirements."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmlab.models.loading.environment import cache_folder

HERE = Path(__file__).parent
WORKER = HERE / "peers" / "worker.py"


class Worker:
    """An engine in another process. Raises RuntimeError with what the engine said."""

    def __init__(self, python: str, module: str, file: str, threads: int) -> None:
        command = [python, str(WORKER), module, file, str(threads)]
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if ":" in module:
            env["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), env.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
        )
        self.about = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        value = json.loads(line) if line else {"error": "it ended without an answer"}
        if "error" in value:
            raise RuntimeError(value["error"])
        return value

    def __call__(self, verb: str, arguments: Sequence[Any] = ()) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([verb, *arguments]) + "\n")
        self.process.stdin.flush()
        return self._answer()["value"]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def peers_environment(tell: Callable[[str], None]) -> str:
    """The Python of the peers' environment, made once; a peer that cannot be installed is named and left out."""
    folder = cache_folder() / "peers"
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        tell(f"Making an environment for the peers in {folder}")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    lines = (HERE / "requirements-peers.txt").read_text(encoding="utf-8").splitlines()
    for wanted in [line.split("#")[0].strip() for line in lines]:
        if not wanted:
            continue
        name, version = wanted.split("==")
        ask = f"import importlib.metadata as m; raise SystemExit(m.version({name!r}) != {version!r})"
        if subprocess.run([str(python), "-c", ask], capture_output=True, check=False).returncode == 0:
            continue
        tell(f"Installing {wanted} (llama.cpp is built from source: minutes)")
        env = {**os.environ, "CMAKE_ARGS": "-DGGML_NATIVE=ON"}
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "-q", wanted], capture_output=True, text=True, env=env, check=False
        )
        if done.returncode:
            tell(f"{wanted} cannot be installed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return str(python)


def python_of(module: str, python: str) -> str:
    """Who runs a contestant: this Python for a class of the lab ("module:Class"), the peers' for the others."""
    return sys.executable if ":" in module else python

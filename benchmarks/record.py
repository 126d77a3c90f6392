"""Writes a benchmark's result with the command that reproduces it."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from pyro_vae.runtime.environment import environment
from pyro_vae.runtime.whole_file import write_whole

RESULTS = Path(__file__).parent / "results"
_BEGAN = time.perf_counter()


def _git(*words: str) -> str | None:
    """Returns the output of a git command in this project; None without git or a repository."""
    try:
        command = ("git", "-C", str(Path(__file__).parents[1]), *words)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _commit() -> str | None:
    """Returns the commit of the code, with a + if the code has uncommitted changes."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--", "pyro_vae", "benchmarks", ":!benchmarks/results")
    return f"{commit}+" if commit and changed else commit


COMMIT = _commit()  # of the loaded code; later commits do not change it


def circumstances(device: str, command: str) -> dict[str, Any]:
    """Returns machine, versions and commit of a result; the commit has a + if files differ from it.

    Arguments:
        device: Device of the computation.
        command: Command that reproduces the result.
    """
    return {**environment(torch.device(device), command), "commit": COMMIT}


def write(name: str, result: dict[str, Any], device: str = "cpu") -> Path:
    """Writes ``results/<name>.json`` (``<name>_cuda.json`` on CUDA) and returns its path; nan and infinity become null.

    The file contains ``wall_seconds``, the time of this process so far.

    Arguments:
        name: Name of the benchmark's module.
        result: Result, ready for JSON.
        device: Device of the computation.
    """
    command = shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
    seconds = round(time.perf_counter() - _BEGAN, 1)
    content = {"environment": circumstances(device, command), "wall_seconds": seconds, **_plain(result)}
    suffix = "" if device == "cpu" else f"_{torch.device(device).type}"
    path = RESULTS / f"{name}{suffix}.json"
    write_whole(path, f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode())
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Writes a benchmark's result with the command that gives it again."""

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

RESULTS = Path(__file__).parent / "results"
_BEGAN = time.perf_counter()


def _git(*words: str) -> str | None:
    """What git says of this project; None where there is no git, or no repository."""
    try:
        command = ("git", "-C", str(Path(__file__).parents[1]), *words)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _commit() -> str | None:
    """The commit of the code, with a + if some of it is not in there."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--", "pyro_vae", "benchmarks", ":!benchmarks/results")
    return f"{commit}+" if commit and changed else commit


COMMIT = _commit()  # of the code that was loaded, whatever is committed while it runs


def circumstances(device: str, command: str) -> dict[str, Any]:
    """Returns where and with what a result was computed, the commit included, with a + if files differ from it.

    Arguments:
        device: On which it ran.
        command: That gives the result again.
    """
    return {**environment(torch.device(device), command), "commit": COMMIT}


def write(name: str, result: dict[str, Any], device: str = "cpu") -> Path:
    """Writes ``results/<name>.json`` (``<name>_cuda.json`` on CUDA) and returns its path; nan and infinity become null.

    With ``wall_seconds``, of this process up to here.

    Arguments:
        name: Of the benchmark's module.
        result: Ready for JSON.
        device: On which it ran.
    """
    command = shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
    seconds = round(time.perf_counter() - _BEGAN, 1)
    content = {"environment": circumstances(device, command), "wall_seconds": seconds, **_plain(result)}
    suffix = "" if device == "cpu" else f"_{torch.device(device).type}"
    path = RESULTS / f"{name}{suffix}.json"
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

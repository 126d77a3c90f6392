"""What `import pyro_vae` and `pyro-vae --help` cost: CPU seconds of new processes.

    python -m benchmarks.startup                # or: make startup
    python -m benchmarks.startup --runs 15      # on a machine that does other work

Each program runs in a process of its own, user and system time together, the programs by turns. A first round, which is
not counted, writes Python's bytecode. The table shows medians and ranges over the rounds, and by how much a program
costs more than `import torch, pyro`, the median of the differences within a round. Nothing is written.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

BASE = "import torch, pyro"
PROGRAMS = {
    BASE: ("-c", BASE),
    "and import pyro_vae": ("-c", f"{BASE}, pyro_vae"),
    "and from pyro_vae import VAE, fit": ("-c", f"{BASE}; from pyro_vae import VAE, fit"),
    "pyro-vae --help": ("-m", "pyro_vae", "--help"),
}


def cpu_seconds(arguments: Sequence[str]) -> float:
    """Returns the CPU seconds of a new Python process.

    Arguments:
        arguments: Of the interpreter.

    Raises:
        CalledProcessError: Where it fails.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_utime + usage.ru_stime


def measured(programs: Mapping[str, Sequence[str]], runs: int) -> dict[str, list[float]]:
    """Returns the CPU seconds of each program in each round, after one that is not counted.

    Arguments:
        programs: The arguments of the interpreter, by what a program is called.
        runs: Number of rounds.
    """
    rounds = [{name: cpu_seconds(arguments) for name, arguments in programs.items()} for _ in range(runs + 1)]
    return {name: [seconds[name] for seconds in rounds[1:]] for name in programs}


def table(seconds: Mapping[str, Sequence[float]]) -> Table:
    """Returns the table of what `measured` returns; the first program is the one to compare with."""
    first, *_ = seconds
    shown = Table(title="CPU seconds of a new process, median (range)")
    shown.add_column("program")
    shown.add_column("seconds", justify="right")
    shown.add_column(f"beyond {first}", justify="right")
    for name, each in seconds.items():
        more = statistics.median(mine - base for mine, base in zip(each, seconds[first], strict=True))
        beyond = f"{more:+.2f}" if name.startswith("and ") else ""
        shown.add_row(name, f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})", beyond)
    return shown


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="number of rounds (default: 7)")
    given = parser.parse_args()
    if given.runs < 1:
        parser.error("--runs: expected a positive number of rounds")
    Console().print(table(measured(PROGRAMS, given.runs)))


if __name__ == "__main__":
    main()

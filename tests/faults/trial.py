"""One trial: a call in a forked process of its own, with limits, which may be killed; and the table of all trials."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pyro_vae.errors import InputError, WriteError

# Seconds after which a trial hangs.
PATIENCE = 20.0


class Ended(NamedTuple):
    """How a process ended: exit code (negative: a signal), what it said, seconds, and whether it hung."""

    code: int
    out: str
    err: str
    seconds: float
    hung: bool = False


def attempt(
    call: Callable[[], object],
    folder: Path,
    *,
    kill_after: float | None = None,
    patience: float = PATIENCE,
    memory: int | None = None,
    file_size: int | None = None,
) -> Ended:
    """Returns how a call ends in a forked process, in a folder.

    Arguments:
        call: The call.
        folder: Working folder.
        kill_after: Seconds after which it is killed, if it still runs.
        patience: Seconds after which it hangs.
        memory: Bytes of memory that it may take beyond what this process has.
        file_size: Largest size of a file that it may write.
    """
    pipes = [os.pipe() for _ in range(2)]
    for reader, _ in pipes:
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 2**20)
    sys.stdout.flush()
    sys.stderr.flush()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()
        for (_, writer), standard in zip(pipes, (1, 2), strict=True):
            os.dup2(writer, standard)
        sys.stdout, sys.stderr = (os.fdopen(standard, "w", closefd=False) for standard in (1, 2))  # not pytest's
        os.chdir(folder)
        _limit(memory, file_size)
        os._exit(_code_of(call))
    for _, writer in pipes:
        os.close(writer)
    deadline = start + (patience if kill_after is None else kill_after)
    status = None
    while status is None and time.monotonic() < deadline:
        done, found = os.waitpid(child, os.WNOHANG)
        if done:
            status = found
        else:
            time.sleep(0.002)
    hung = status is None and kill_after is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # the process, or what it has left: compilers
    if status is None:
        _, status = os.waitpid(child, 0)
    out, err = (_drained(reader) for reader, _ in pipes)
    return Ended(os.waitstatus_to_exitcode(status), out, err, time.monotonic() - start, hung)


def _limit(memory: int | None, file_size: int | None) -> None:
    if memory is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size,) * 2)  # Python ignores the signal: an error arises


def _code_of(call: Callable[[], object]) -> int:
    """Calls, and returns the exit code that a process of its own would have."""
    code: object = 0
    try:
        call()
    except SystemExit as end:
        code = end.code
    except (InputError, WriteError) as error:  # as `main` does
        sys.stderr.write(f"{error}\n")
        code = 2
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return 120
    return code if isinstance(code, int) else int(code is not None)


def _drained(reader: int) -> str:
    os.set_blocking(reader, False)
    parts = []
    with contextlib.suppress(BlockingIOError):
        while part := os.read(reader, 2**16):
            parts.append(part)
    os.close(reader)
    return b"".join(parts).decode(errors="replace")


COLUMNS = ("right", "refused by name", "silent", "traceback", "hang", "left behind")
GOOD = COLUMNS[:2]


@dataclass
class Part:
    """The trials of one kind.

    Attributes:
        name: What is tried.
        counts: Number of trials in each of `COLUMNS`.
        faults: What went wrong, in words.
        seconds: Wall time of all trials.
    """

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def judge(
        self, ended: Ended, right: bool, names: Sequence[str], left: Iterable[object] = (), about: str = ""
    ) -> None:
        """Counts a trial.

        Arguments:
            ended: How it ended.
            right: Whether its result is that of an undisturbed run, or what else it may be.
            names: Words of which a refusal must say one.
            left: Files that it has left behind.
            about: What was done, for a fault.
        """
        said = ended.err.strip()
        if ended.hung:
            verdict = "hang"
        elif ended.code == 0 and "Traceback" not in said:
            verdict = "right" if right else "silent"
        elif ended.code == 2 and "Traceback" not in said and any(name in said for name in names):
            verdict = "refused by name"
        else:
            verdict = "traceback"
        left = [str(each) for each in left]
        if left:
            verdict = "left behind"
        self.counts[verdict] += 1
        if verdict not in GOOD:
            self.faults.append(f"{self.name}: {verdict}: {about} (exit {ended.code}; left {left}) {said[-1500:]}")

    @property
    def trials(self) -> int:
        """Number of trials."""
        return sum(self.counts.values())

    def row(self) -> str:
        """Returns the row of a table in Markdown."""
        cells = (self.name, self.trials, *(self.counts[column] for column in COLUMNS), round(self.seconds))
        return f"| {' | '.join(map(str, cells))} |"


def table(parts: Sequence[Part]) -> str:
    """Returns the table of all parts in Markdown."""
    head = ("part", "trials", *COLUMNS, "seconds")
    total = Part("all", sum((part.counts for part in parts), Counter()), [], sum(part.seconds for part in parts))
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *(part.row() for part in (*parts, total))])

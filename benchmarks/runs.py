"""Runs of a benchmark in one file, which is rewritten after each of them.

After an interruption, the same command continues. Two processes with the same command share the runs.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.curves import forget
from benchmarks.record import RESULTS, circumstances
from pyro_vae.evaluation.intervals import Interval, interval
from pyro_vae.runtime.whole_file import write_whole

Run = Callable[[str], dict[str, Any]]
About = Callable[[dict[str, Any]], dict[str, Any]]

_SETTINGS = "settings.json"
QUICK = Path("runs") / "quick"  # folder of results of --quick
_PLACES = ("--output", "--restart")  # arguments that are left out of the command that reproduces a result


class Runs:
    """The runs of one benchmark by key, and the file that holds them.

    Arguments:
        name: Name of the benchmark's module; the file is ``<name>.json``, or ``<name>_full.json`` for the full
            schedule, with the suffix ``_cuda`` on CUDA.
        settings: All settings that determine a run's numbers, except its key. A file with other settings is not
            continued.
        given: Parsed arguments, with those of `add_arguments`.

    Attributes:
        path: Path of the file.
        unfinished: Folder for the files of unfinished runs: pass `fit_with_curve` the place ``unfinished / key``.
        by_key: Results of the runs.
    """

    def __init__(self, name: str, settings: dict[str, Any], given: argparse.Namespace) -> None:
        full = "_full" if getattr(given, "full", False) else ""
        device = "" if given.device == "cpu" else f"_{torch.device(given.device).type}"
        self.name, self.settings, self.device = name, _plain(settings), given.device
        output = Path(given.output)
        if getattr(given, "quick", False) and output == RESULTS:
            output = QUICK  # these numbers mean nothing
        self.path = output / f"{name}{full}{device}.json"
        self.unfinished = self.path.with_suffix(".unfinished")
        self.by_key: dict[str, Any] = {}
        self.environment: dict[str, Any] | None = None
        if given.restart:
            self.require_nobody("stop it before --restart")
            shutil.rmtree(self.unfinished, ignore_errors=True)
            if self.path.exists():
                os.replace(self.path, self.path.with_suffix(".json.before"))
        self.read()
        self._check_unfinished()

    def read(self) -> None:
        """Reads the runs in the file.

        Raises:
            SystemExit: If they have other settings.
        """
        if not self.path.exists():
            self.by_key = {}
            return
        found = json.loads(self.path.read_text(encoding="utf-8"))
        self._require_same(found["settings"], self.path)
        self.by_key, self.environment = found["runs"], found["environment"]

    def require_nobody(self, therefore: str) -> None:
        """Raises `SystemExit` if another process is working on a run.

        Arguments:
            therefore: Advice for the message.
        """
        for place in self.unfinished.glob("*.lock"):
            with place.open("a") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise SystemExit(f"another process is at work on {place.stem}: {therefore}.") from None

    def _check_unfinished(self) -> None:
        """Raises `SystemExit` if unfinished runs have other settings."""
        with suppress(FileNotFoundError):  # there are none, or no more
            noted = json.loads((self.unfinished / _SETTINGS).read_text(encoding="utf-8"))
            self._require_same(noted, self.unfinished)

    def _require_same(self, found: dict[str, Any], place: Path) -> None:
        def agrees(key: str) -> bool:
            return key in found and key in self.settings and found[key] == self.settings[key]

        other = {key for key in found | self.settings if not agrees(key)}
        if other:
            raise SystemExit(
                f"{place} holds runs with other settings ({', '.join(sorted(other))}); pass --restart to put them "
                "aside, or --output for another folder."
            )

    def complete(self, keys: Iterable[str], run: Run, about: About) -> None:
        """Runs what is missing, and writes the file after each run.

        Arguments:
            keys: Keys of the runs, in the order of execution.
            run: Function from a key to its result, ready for JSON.
            about: Function from all results to further entries of the file.
        """
        keys = list(keys)
        for key in keys:
            with self._claimed(key) as mine:
                if not mine:
                    continue
                done = sum(other in self.by_key for other in keys)
                print(f"[{time.strftime('%H:%M:%S')}] {key}: {done + 1} of {len(keys)}", flush=True)
                start = time.perf_counter()
                result = run(key)
                result = _plain(
                    {
                        **result,
                        "wall_seconds": round(time.perf_counter() - start, 1),
                        "processes": self._claims(key),
                        "made_by": self._made_by(),
                    }
                )
                with self._alone():
                    self.read()
                    self.by_key[key] = result
                    first = [key for key in keys if key in self.by_key]  # in the order of the keys
                    self.by_key = {key: self.by_key[key] for key in (*first, *self.by_key)}
                    self.environment = circumstances(self.device, _command(self.name))
                    self.write(about(self.by_key))
                forget(self.unfinished / key)
        with self._alone():
            self.read()
            if self.by_key:
                self.write(about(self.by_key))
            with suppress(OSError):  # the folder still has runs of other processes
                if [file.name for file in self.unfinished.iterdir()] == [_SETTINGS]:
                    (self.unfinished / _SETTINGS).unlink()
                self.unfinished.rmdir()

    def _made_by(self) -> dict[str, Any]:
        """Returns the origin of a run: the runs of a file may come from several commands."""
        found = circumstances(self.device, _command(self.name))
        return {name: found[name] for name in ("command", "commit", "date", "device", "threads")}

    def _claims(self, key: str) -> int:
        """Returns the number of processes that worked on a run; ``wall_seconds`` is the time of the last."""
        return len((self.unfinished / f"{key}.lock").read_text(encoding="utf-8").splitlines())

    @contextmanager
    def _claimed(self, key: str) -> Iterator[bool]:
        """Yields whether this process should run a key: the key is neither done, nor run by another process.

        The block holds a lock file; the system releases the lock if the process is killed.
        """
        self.read()
        if key in self.by_key:
            yield False
            return
        place = self.unfinished / f"{key}.lock"
        with self._alone():
            self.unfinished.mkdir(parents=True, exist_ok=True)
            self._check_unfinished()
            write_whole(self.unfinished / _SETTINGS, f"{json.dumps(self.settings)}\n".encode())
            file = place.open("a")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            file.write(f"{os.getpid()}\n")
            file.flush()
            self.read()
            yield key not in self.by_key
            place.unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """A block that holds the lock of the results' folder."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def write(self, about: dict[str, Any]) -> None:
        """Writes the file."""
        content = {
            "environment": self.environment,
            "settings": self.settings,
            "wall_seconds_of_all_runs": round(sum(run["wall_seconds"] for run in self.by_key.values()), 1),
            **_plain(about),
            "runs": self.by_key,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode())


def device(name: str) -> str:
    """Returns the name of an available device; for `argparse`."""
    if name not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"cpu or cuda, not {name}")
    if name == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("there is no CUDA device here; nothing was run")
    return name


def positive(text: str) -> float:
    """Returns a positive number; for `argparse`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"a positive number, not {text}")
    return value


def at_least(least: int) -> Callable[[str], int]:
    """Returns a function that parses an integer of at least ``least``; for `argparse`."""

    def integer(text: str) -> int:
        with suppress(ValueError):
            if (value := int(text)) >= least:
                return value
        raise argparse.ArgumentTypeError(f"an integer of at least {least}, not {text}")

    return integer


def short(samples: int) -> str:
    """Returns a number of samples as text for a key: ``"2e7"``, or all digits if it has more than three."""
    text = f"{samples:.3g}".replace("e+0", "e").replace("e+", "e")
    return text if float(text) == samples else str(samples)


def add_arguments(parser: argparse.ArgumentParser, seeds: bool = True) -> None:
    """Adds the common arguments of benchmarks with several runs; ``--seeds`` if ``seeds``."""
    parser.add_argument("--device", default="cpu", type=device, help="cpu or cuda")
    parser.add_argument("--threads", type=at_least(1), default=torch.get_num_threads())
    if seeds:
        text = "number of seeds 0, 1, ...; existing runs are kept"
        parser.add_argument("--seeds", type=at_least(1), default=3, help=text)
    parser.add_argument("--output", default=str(RESULTS), help="folder of the result")
    parser.add_argument("--restart", action="store_true", help="put existing runs aside")
    parser.add_argument(
        "--quick", action="store_true", help="seconds instead of minutes, into runs/quick; the numbers mean nothing"
    )


def over_seeds(values: Iterable[float]) -> dict[str, Any]:
    """Returns the mean over seeds and the half width of its Student-t 95 % interval, with the values."""
    values = list(values)
    summary: Interval = interval(values)
    return {"mean": summary.mean, "half_width": summary.half_width, "seeds": values}


def command_of(seeds: dict[int, dict[str, Any]]) -> str:
    """Returns the commands that reproduce the runs of these seeds.

    For runs of equal length, the command of the highest seed is enough, since it gives the lower seeds too.
    """
    by_length = {seeds[seed].get("samples"): seeds[seed]["made_by"]["command"] for seed in sorted(seeds)}
    return " && ".join(dict.fromkeys(by_length.values()))


def _command(name: str) -> str:
    words, rest = [], iter(sys.argv[1:])
    for word in rest:
        if word == "--output":
            next(rest, None)
        elif not word.startswith(_PLACES):
            words.append(word)
    return shlex.join(["python", "-m", f"benchmarks.{name}", *words])


def _plain(value: Any) -> Any:
    """Returns a value as JSON restores it, with None for nan and infinity."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)

r"""Times a step of a `Program` under `pyro_vae.fit` against a step of Pyro's `SVI`, on five Pyro programs.

    python -m benchmarks.programs              # CPU, one thread
    python -m benchmarks.programs --table      # the table, from the committed result

The programs are those of `benchmarks.program_models`. All contenders have the same initial weights, data, minibatches'
size and Adam, and work as in an epoch: shuffle once, gather a minibatch at each step. They take turns, A B C A B C ...;
a ratio is within one turn, and the first contender changes from turn to turn.

* ``pyro``: `pyro.infer.SVI` with `Trace_ELBO` and `pyro.optim.Adam`, validation off.
* ``pyro-validated``: the same with validation on, which is Pyro's default.
* ``eager``, ``compiled``: the loop of `pyro_vae.fit` on AEVB, which is `Trace_ELBO`, and `torch.optim.Adam`,
  uncompiled and compiled. The first step is validated, others are not.

Before the timing, all contenders take the first steps on the same minibatches at the same noise. Their losses must be
equal to rounding: then they compute the same loss and gradient, and the same update. Compilation is not part of a step;
its seconds are those without a cache on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.utils import _pytree as pytree

from benchmarks.program_models import PROGRAMS, Written, written
from benchmarks.record import RESULTS
from benchmarks.runs import Runs, at_least, positive
from benchmarks.step_problem import RATE
from benchmarks.step_time import processor, ratios, spread
from benchmarks.step_worker import calibrated, timed
from pyro_vae import Batch, Program, Training
from pyro_vae.inference import AEVB
from pyro_vae.runtime.interrupts import deferrable
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.training.fit import prepared
from pyro_vae.training.stacked_minibatches import Minibatch

ROWS, BATCH = 5000, 100
TURNS, TURN_SECONDS = 15, 0.3
COMPARED, TOLERANCE = 5, 1e-4  # first steps whose losses are compared, and the relative difference due to rounding


class PyroSVI:
    """A program trained by `pyro.infer.SVI`, with a param store of its own.

    Arguments:
        program: The program with its data.
        batch: Number of data in a minibatch.
        validated: Whether Pyro validates each step.
    """

    compile_seconds = 0.0

    def __init__(self, program: Written, batch: int, validated: bool = False) -> None:
        self.program, self.batch, self.validated = program, batch, validated
        self.svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": RATE}), Trace_ELBO())
        self.store: Any = {"params": {}, "constraints": {}}
        self.minibatches = self._epochs()

    def _epochs(self) -> Iterator[Any]:
        rows = len(pytree.tree_leaves(self.program.data)[0])
        for _ in count():
            for each in torch.randperm(rows).split(self.batch):
                yield self.program.rows(each)

    def _take(self, minibatches: Iterator[Any]) -> float:
        """Takes a step for each minibatch; returns the last loss."""
        loss = float("nan")
        with pyro.get_param_store().scope(self.store) as self.store, pyro.validation_enabled(self.validated):
            for minibatch in minibatches:
                loss = self.svi.step(minibatch)
        return loss

    def loss_and_step(self, minibatch: Any) -> float:
        """Takes a step on a minibatch; returns the loss before it in nats per datum."""
        return self._take(iter([minibatch])) / (self.program.size or self.batch)

    def steps(self, n: int) -> None:
        """Takes steps as in an epoch."""
        self._take(islice(self.minibatches, n))


class Ours:
    """A program trained by the very loop that `pyro_vae.fit` runs.

    Arguments:
        program: The program with its data.
        batch: Number of data in a minibatch.
        compile: Whether steps are compiled.
    """

    def __init__(self, program: Written, batch: int, compile: bool) -> None:
        self.model = Program(program.model, program.guide, program.rows(slice(0, 3)), size=program.size)
        training = Training(self._adam, steps=10**9, batch_size=batch, compile=compile)
        models: Any = [self.model]  # `prepared` says VAE
        self.loop = prepared(models, program.data, [AEVB()], training, [0])
        self.loop.open()

    @staticmethod
    def _adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=RATE)

    @property
    def compile_seconds(self) -> float:
        """What capturing and compiling took."""
        return self.loop.execution(self.loop.members[0])[1]

    def loss_and_step(self, minibatch: Any) -> float:
        """Takes a step on a minibatch; returns the loss before it in nats per datum."""
        batch: Batch = self.model.check(minibatch)
        self._take(lambda: self.loop.take(Minibatch(batch, [None], True)))
        return -self.loop.members[0].records.bounds[-1]

    def steps(self, n: int) -> None:
        """Takes steps as in an epoch."""
        self._take(lambda: self.loop.advance(self.loop.step + n))

    def _take(self, steps: Callable[[], None]) -> None:
        with warnings.catch_warnings(), deferrable():  # as `fit` does
            warnings.filterwarnings("ignore", message="Encountered NaN")
            steps()
            self.loop.settle()
            self.loop.check_parameters()
        (member,) = self.loop.members
        if member.stopped:
            raise RuntimeError(member.remark)

    def close(self) -> None:
        """Ends the run."""
        self.loop.close()


Contender = PyroSVI | Ours


CONTENDERS: dict[str, Callable[[str, int, int], Contender]] = {
    "pyro": lambda name, rows, batch: PyroSVI(written(name, rows, subsampled=True), batch),
    "pyro-validated": lambda name, rows, batch: PyroSVI(written(name, rows, subsampled=True), batch, validated=True),
    "eager": lambda name, rows, batch: Ours(written(name, rows), batch, compile=False),
    "compiled": lambda name, rows, batch: Ours(written(name, rows), batch, compile=True),
}
"""Makes each contender, with weights of its own, of a program's name, N, and the number of data in a minibatch."""


def compared(taking_part: dict[str, Contender], program: Written, batch: int) -> dict[str, list[float]]:
    """Returns the losses of the first steps of each contender on the same minibatches at the same noise.

    Raises:
        SystemExit: If they differ by more than rounding.
    """
    found: dict[str, list[float]] = {name: [] for name in taking_part}
    for step in range(COMPARED):
        minibatch = program.rows(slice(step * batch, (step + 1) * batch))
        for name, contender in taking_part.items():
            with isolated(step, "noise"):
                found[name].append(contender.loss_and_step(minibatch))
        mine, base = {name: losses[step] for name, losses in found.items()}, found["pyro"][step]
        for name, loss in mine.items():
            if not abs(loss - base) <= TOLERANCE * abs(base):
                raise SystemExit(f"{name} has a loss of {loss} at step {step + 1}; Pyro's is {base}.")
    return found


def turns(taking_part: dict[str, Contender], given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Returns the seconds per step of each contender in each of its turns."""
    steps = {name: calibrated(contender, given.turn_seconds) for name, contender in taking_part.items()}
    seconds: dict[str, list[float]] = {name: [] for name in taking_part}
    names = list(taking_part)
    for turn in range(given.turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(timed(taking_part[name], steps[name]) / steps[name])
    return {name: {"steps_per_turn": steps[name], "seconds": seconds[name]} for name in names}


def case(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Compares and times all contenders on one program."""
    program = written(name, given.rows)
    taking_part = {each: make(name, given.rows, given.batch) for each, make in CONTENDERS.items()}
    with isolated(0, "epochs"):
        losses = compared(taking_part, program, given.batch)
        found = turns(taking_part, given)
    for each, mine in found.items():
        contender = taking_part[each]
        mine["milliseconds"] = spread([1e3 * seconds for seconds in mine["seconds"]])
        mine["over_pyro"] = ratios(found, each, "pyro")
        mine["first_losses"], mine["compile_seconds"] = losses[each], contender.compile_seconds
        if isinstance(contender, Ours):
            contender.close()
    return {"load_average": os.getloadavg()[0], "contenders": found}


def table(runs: dict[str, dict[str, Any]]) -> str:
    """Returns the table of all programs in Markdown: medians, and quartiles in brackets."""
    header = ["program", "Pyro's SVI, ms", "with validation", "`fit`, uncompiled", "`fit`, compiled", "compilation, s"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for name, run in runs.items():
        mine = run["contenders"]
        over = [said(mine[each]["over_pyro"]) for each in ("pyro-validated", "eager", "compiled")]
        seconds = f"{mine['compiled']['compile_seconds']:.0f}"
        lines.append([f"`{name}`", said(mine["pyro"]["milliseconds"]), *over, seconds])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def said(value: dict[str, float]) -> str:
    """Returns the median and the quartiles as text."""
    return f"{value['median']:.2f} ({value['lower_quartile']:.2f} to {value['upper_quartile']:.2f})"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=list(PROGRAMS))
    parser.add_argument("--threads", type=at_least(1), default=1)
    parser.add_argument("--batch", type=at_least(2), default=BATCH, help="number of data in a minibatch")
    parser.add_argument("--turns", type=at_least(2), default=TURNS)
    parser.add_argument("--turn-seconds", type=positive, default=TURN_SECONDS)
    parser.add_argument("--output", default=str(RESULTS), help="folder of the result")
    parser.add_argument("--restart", action="store_true", help="put existing runs aside")
    parser.add_argument("--quick", action="store_true", help="few short turns; the numbers mean nothing")
    parser.add_argument("--table", action="store_true", help="print the table of the existing result")
    given = parser.parse_args(arguments)
    given.device, given.rows = "cpu", ROWS
    if given.quick:
        given.turns, given.turn_seconds, given.rows, given.batch = 2, 0.05, 200, 20
    return given


def main() -> None:
    """Times what is missing, writes the result and prints the table."""
    given = parse()
    if given.table:
        print(table(json.loads((Path(given.output) / "programs.json").read_text())["runs"]))
        return
    torch.set_num_threads(given.threads)
    settings = {name: getattr(given, name) for name in ("threads", "rows", "batch", "turns", "turn_seconds", "quick")}
    runs = Runs("programs", settings, given)

    def run(name: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="programs_") as folder:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
            return case(name, given)

    runs.complete(given.programs, run, lambda found: {"processor": processor(), "table": table(found).splitlines()})
    print(table(runs.by_key))


if __name__ == "__main__":
    main()

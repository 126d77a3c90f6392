r"""How the runs of a comparison execute: all compiled or all not, decided once, so that their times can be compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from pyro_vae.comparison.candidate import Candidate
from pyro_vae.engine.compilation.cost import CAPTURE, STEP, TIMED, WARM
from pyro_vae.engine.errors import CaptureError, CompilationError
from pyro_vae.errors import NonFiniteError
from pyro_vae.experiment.experiment import Experiment
from pyro_vae.experiment.user_program import warned_once
from pyro_vae.runtime.progress import note
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.training.fit import prepared
from pyro_vae.training.loop import Loop, training_mode
from pyro_vae.training.options import Training


@dataclass(frozen=True)
class Execution:
    """How the training steps of all runs execute.

    Attributes:
        compiled: Whether steps on whole minibatches run as compiled programs.
        reason: Why they run so, as a part of a sentence.
        seconds: Wall time of the decision, with capturing and compiling every algorithm's step; part of no run's time.
    """

    compiled: bool
    reason: str
    seconds: float = 0.0

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Execution:
        """Returns what `record` returned; raises an error of any class for another record."""
        execution = cls(record["compiled"], record["reason"], record["seconds"])
        if type(execution.compiled) is not bool or type(execution.reason) is not str or not execution.seconds >= 0:
            raise ValueError("its `execution` is no record of one")
        return execution

    @property
    def said(self) -> str:
        """One sentence for a report."""
        took = f" in {self.seconds:.0f} s, which no time contains" if self.compiled and self.seconds else ""
        return f"All runs took their steps {'compiled' if self.compiled else 'uncompiled'}{took}: {self.reason}."

    def record(self) -> dict[str, Any]:
        """Returns the attributes, ready for JSON."""
        return {**asdict(self), "seconds": round(self.seconds, 2)}


def decide(candidates: Sequence[Candidate], progress: bool = False) -> Execution:
    """Returns how the runs of a comparison execute; where they are compiled, the programs are ready in this process.

    With ``training.compile: auto``, a few steps of every candidate are timed, on models that are then thrown away. All
    runs are compiled if that saves more time over all of them than it costs, and every candidate can be compiled.

    Arguments:
        candidates: What is compared.
        progress: Whether to say on the terminal that this takes time.
    """
    modes = {candidate.experiment.training.compile for candidate in candidates}
    if modes != {"auto"}:
        said = ", ".join(sorted(str(mode).lower() for mode in modes))
        return Execution(modes != {False}, f"the experiment says `compile: {said}`")
    if any(each.experiment.training.together and len(each.experiment.seeds) > 1 for each in candidates):
        return Execution(True, "the experiment says `together: true`")
    start = time.perf_counter()
    if progress:
        note("timing a few steps of every candidate, to decide whether to compile ...")
    compiled, reason = _decided(candidates)
    return Execution(compiled, reason, time.perf_counter() - start)


def _decided(candidates: Sequence[Candidate]) -> tuple[bool, str]:
    steps = [each.experiment.training.total_steps(len(each.data.train)) for each in candidates]
    # Runs of a candidate.
    seeds = [1 if seeds_together(each.experiment) else len(each.experiment.seeds) for each in candidates]
    most = max(steps)
    too_few = f"{most} steps a run would not repay the compilation"
    if most <= TIMED + 1:
        return False, too_few
    saved = 0.0
    try:
        for candidate, n, runs in zip(candidates, steps, seeds, strict=True):
            saved += STEP.of(_seconds_of_a_step(candidate), n) * runs
    except NonFiniteError as error:
        return False, f"a first step fails ({error})"
    if saved < sum(WARM + CAPTURE * runs for runs in seeds):
        return False, too_few
    pilots, cost = [], 0.0
    for candidate, runs in zip(candidates, seeds, strict=True):
        pilot = _Pilot(candidate, compile="full")
        try:
            pilot.capture()
        except CaptureError as error:
            return False, f"the step of {candidate.label} cannot be compiled: {error}"
        pilots.append(pilot)
        cost += pilot.cost + CAPTURE * runs
        if cost > saved:
            return False, too_few
    try:
        for pilot in pilots:
            pilot.program.compile()
    except CompilationError as error:
        return False, str(error).rstrip(".")
    return True, "that saves time over all runs"


def _seconds_of_a_step(candidate: Candidate) -> float:
    """The median time of a few uncompiled steps after the first."""
    pilot = _Pilot(candidate, compile=False)
    pilot.advance(TIMED + 1)
    seconds = pilot.loop.members[0].records.seconds
    return statistics.median(after - before for before, after in pairwise(seconds))


class _Pilot:
    """A run of a candidate for a few steps: of the first seed, or of all that are trained together."""

    def __init__(self, candidate: Candidate, compile: Any) -> None:
        experiment, data = candidate.experiment, candidate.data
        self.seed, self.training = experiment.seeds[0], replace(training_of(candidate), compile=compile)
        seeds = experiment.seeds if seeds_together(experiment) else [self.seed]
        vaes, algorithms = built(candidate, seeds)
        transform = data.minibatch_transform
        train = data.batch("train")
        self.loop: Loop = prepared(vaes, train, algorithms, self.training, seeds, transform=transform)
        self.loop.open()

    def advance(self, steps: int) -> None:
        """Takes steps; raises a `NonFiniteError` where one fails."""
        with training_mode(self.loop.members, self.seed, "pilot", self.training, steps, self.loop.busy):
            self.loop.advance(steps)
            self.loop.settle()
        for member in self.loop.members:
            if member.stopped:
                raise NonFiniteError(member.remark)

    def capture(self) -> None:
        """Captures the step after the first, which is validated and shows what has no gradient."""
        self.advance(1)
        programs = self.loop.steppers[0].programs
        if programs is None:
            raise RuntimeError("a pilot that captures has programs")
        with training_mode(self.loop.members, self.seed, "capture", self.training, 1, self.loop.busy):
            self.program = programs.make(next(self.loop.source.epoch()))

    @property
    def cost(self) -> float:
        """Seconds that compiling takes, as far as is known beforehand."""
        return self.program.cost


def seeds_together(experiment: Experiment) -> bool:
    """Whether the seeds of an algorithm are trained in one program, if they are compiled."""
    together = experiment.training.together
    if together is None:
        together = experiment.torch_device.type == "cuda"
    return together and len(experiment.seeds) > 1


def training_of(candidate: Candidate) -> Training:
    """Returns the settings of a candidate's runs."""
    experiment, data = candidate.experiment, candidate.data
    training = experiment.training.build(len(data.train))
    return replace(training, check_support=not data.cross_entropy, divergence="stop")


def built(candidate: Candidate, seeds: Sequence[int]) -> tuple[list[Any], list[Any]]:
    """Returns new VAEs, or programs, and algorithms, one for each seed."""
    vaes, algorithms, device = [], [], candidate.experiment.torch_device
    for seed in seeds:
        with isolated(seed), warned_once():
            vaes.append(candidate.experiment.build(candidate.data).to(device))
            algorithms.append(candidate.spec.build().to(device))
    return vaes, algorithms

r"""The loop of a training run of R >= 1 VAEs: minibatch after minibatch, and what is due in between."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from pyro_vae.engine.compilation.cost import Busy
from pyro_vae.engine.compilation.routine import Terms, enabled
from pyro_vae.engine.step.replicated_step import Stack
from pyro_vae.errors import NonFiniteError
from pyro_vae.runtime.interrupts import deferrable, uninterrupted
from pyro_vae.runtime.modes import in_training
from pyro_vae.runtime.precision import networks_in
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.training.checkpoint import Checkpoint
from pyro_vae.training.compiled_step import CompiledStep
from pyro_vae.training.history import History
from pyro_vae.training.member import Member
from pyro_vae.training.options import Training
from pyro_vae.training.program import Program
from pyro_vae.training.schedules import Schedule, factor_of
from pyro_vae.training.stacked_minibatches import Minibatch, Source
from pyro_vae.training.stacked_step import StackedStep, kinds_of
from pyro_vae.training.start import start_likelihoods
from pyro_vae.training.stepper import Clock, Stepper
from pyro_vae.training.when_to_compile import Programs

Metrics = dict[str, float]
Callback = Callable[[int, Any], None]
"""Called with the step, from 1, and the `Metrics` of one VAE, or a list of those of R VAEs."""


class Loop:
    """The loop of a training run.

    Arguments:
        members: The VAEs in training.
        source: Source of their minibatches.
        training: The settings of the run.
        total: Steps of the run.
        followed: Whether the user's own code changes minibatches.

    Attributes:
        step: Steps taken, with those that are queued.
        busy: A block with a title for what takes long.
        report: Told step and mean bound after each step.
        callback: Called after each step with its number and the metrics of each member.
        clock: Time of the steps.
        steppers: Take the steps: one for all members, or one for each where they cannot share a program.
        checkpoint: Keeps the state of the run; None for none.
    """

    def __init__(
        self,
        members: Sequence[Member],
        source: Source,
        training: Training,
        total: int,
        followed: bool = False,
    ) -> None:
        self.members, self.source, self.training, self.total = list(members), source, training, total
        self.busy: Busy = lambda title: nullcontext()
        self.report: Callable[[int, float], None] = lambda step, bound: None
        self.callback: Callback | None = None
        self.step, self.clock = 0, Clock()
        self.followed = followed or not (training.schedule is None or isinstance(training.schedule, Schedule))
        self._before = "", 0.0  # what is known of steps that an earlier process took
        self._separated, self._stack = "", Stack()
        self._kinds: list[int] = []
        self._active = self.members
        self._minibatches: Iterator[Minibatch] | None = None
        self.checkpoint: Checkpoint | None = None

    def open(self) -> None:
        """Makes ready for the first step: from the state of the members as they are now."""
        if self.training.start_at_data and not self.step:
            start_likelihoods(self.members, self.source)
        for member in self.members:
            member.open_ledger()
            if member.stopped:
                member.stop(member.stopped, member.remark)
        self._find_active()
        self.steppers = [self._stepper_of(self.members)]

    # ------------------------------------------------------------------ the run

    def run(self) -> None:
        """Takes the steps, and leaves every member with why it stopped, its last good or its best parameters."""
        try:
            self._conclude(self._steps())
        finally:
            self.close()
        for member in self.members:
            if member.stopped != "diverged":
                member.watch.restore()
                member.remark = "; ".join(filter(None, (member.inference.remark(), member.records.fall())))

    def _conclude(self, why: str) -> None:
        """Ends the run of the members that still train."""
        self.settle()
        self.check_parameters()
        try:
            if self.checkpoint is not None and any(member.stopped != "diverged" for member in self.members):
                self.checkpoint.write()
        finally:
            for member in self._active:
                member.stop(why)

    def _steps(self) -> str:
        """Takes all steps; returns why there is no further one."""
        try:
            self.advance(self.total)
        except KeyboardInterrupt:
            return "interrupted"
        return "completed"

    def advance(self, until: int) -> None:
        """Takes steps, and does what is due between them.

        Arguments:
            until: Number of the last step. It may be queued; see `settle`.
        """
        if self._minibatches is None:
            self._minibatches = self._resumed()
        while self.step < until and self._active:
            minibatch = next(self._minibatches, None)
            if minibatch is None:
                if self.checkpoint is not None:
                    self.checkpoint.begin_epoch()
                self._minibatches = self.source.epoch()
                continue
            self.take(minibatch)
            self._between()

    def _resumed(self) -> Iterator[Minibatch]:
        """What is left of the epoch in which the run is; what was due after its last step is done first."""
        minibatches = self.source.epoch()
        if self.checkpoint is not None and self.checkpoint.loaded:
            for _ in range(self.checkpoint.position):
                next(minibatches)
            self.checkpoint.resume_random()
            self._stop_early()
            if self.step and self.checkpoint.between < self.step and self._active:
                self._between()
        return minibatches

    def take(self, minibatch: Minibatch) -> None:
        """Takes one step of every member that still trains; one in a program may be queued."""
        factor = None if self.training.schedule is None else factor_of(self.training.schedule, self.step)
        if len(self.steppers) == 1:
            self.steppers[0].choose(minibatch, self.step)
            self._separate_where_refused()
        steps = [(self.steppers[0], minibatch)] if len(self.steppers) == 1 else self._one_by_one(minibatch)
        with uninterrupted():  # neither a phase nor drawn noise can be taken back
            for stepper, own in steps:
                stepper.take(own, factor)
            self.step += 1
        if len(steps) > 1:
            self._share_the_time()

    def _one_by_one(self, minibatch: Minibatch) -> list[tuple[Stepper, Minibatch]]:
        """The steppers of members that take turns and still train, each with its minibatch."""
        steps = []
        for member, stepper in zip(self.members, self.steppers, strict=True):
            if not member.stopped:
                own = minibatch.only(member.index)
                stepper.choose(own, self.step)
                steps.append((stepper, own))
        return steps

    def settle(self) -> None:
        """Takes and checks the steps that are queued."""
        for stepper in self.steppers:
            stepper.settle()
        self._find_active()

    def check_parameters(self) -> None:
        """Stops the members in which the last update left a parameter that is not finite."""
        for stepper in self.steppers:
            for member in stepper.members:
                if not member.stopped:
                    member.check_parameters(stepper.inside)
        self._find_active()

    def close(self) -> None:
        """Gives everything back as it was found: memory, the optimizers' counters, the algorithms' notes."""
        self._stack.release()
        for stepper in self.steppers:
            stepper.leave()
        for member in self.members:
            member.inference.visit(None)

    def _find_active(self) -> None:
        self._active = [member for member in self.members if not member.stopped]

    # ------------------------------------------------------------------ what is due between two steps

    def _between(self) -> None:
        """Does what is due after a step."""
        step, callback = self.step, self.callback
        due = [m for m in self._active if m.watch.due(step, self.total) and step not in m.watch.steps]
        steps = self.training.callback_steps
        called = callback is not None and (steps is None or step in steps)
        if due or called:
            self.settle()
        elif any(member.stopped for member in self._active):
            self._find_active()
        self.report(step, self._bound())
        evaluated = self._validate(due) if due else {}
        if callback is not None and called and self._active:
            metrics = [_metrics(member) | evaluated.get(member.index, {}) for member in self.members]
            callback(step, metrics)
        if self.checkpoint is None:
            return
        self.checkpoint.between = step
        if self.checkpoint.due and self._active:
            self.settle()
            self.check_parameters()
            self.checkpoint.write()

    def _validate(self, due: Sequence[Member]) -> dict[int, Metrics]:
        """Evaluates the validation data of members; returns the values by the member's index."""
        self.check_parameters()
        found: dict[int, Metrics] = {}
        for member in due:
            if member.stopped:
                continue
            try:
                found[member.index] = {"validation_bound": member.watch.evaluate(self.step)}
            except NonFiniteError as error:
                member.diverge(error)
        self._stop_early()
        return found

    def _stop_early(self) -> None:
        for member in self._active:
            if member.watch.exhausted and not member.stopped:
                member.stop("early stopping")
        self._find_active()

    def _bound(self) -> float:
        last = [member.records.bounds[-1] for member in self._active if member.records.bounds]
        return last[0] if len(last) == 1 else statistics.fmean(last) if last else float("nan")

    # ------------------------------------------------------------------ in one program or one by one

    def _stepper_of(self, members: Sequence[Member]) -> Stepper:
        mode, alone = self.training.compile, len(members) == 1
        programs = None
        if mode is not False:
            make = self._alone(members[0]) if alone else self._together
            title = "" if alone else f"{len(members)} replicates in one program"
            programs = Programs(members, make, mode, self.total, self.busy, title)
        return Stepper(members, programs, self.training, self.clock, self.source, self.followed)

    def _alone(self, member: Member) -> Callable[[Minibatch], Program]:
        return lambda minibatch: CompiledStep(member, minibatch.of(0), self.training.clip_norm)

    def _together(self, minibatch: Minibatch) -> Program:
        self._kinds = self._kinds or kinds_of(self.members)
        return StackedStep(self.members, self._kinds, self._stack, minibatch, self.training.clip_norm)

    def _separate_where_refused(self) -> None:
        """Has every member step by itself, each compiled where that saves time, where they cannot share a program."""
        programs = self.steppers[0].programs
        if len(self.members) == 1 or programs is None or programs.refused is None:
            return
        self._separated = str(programs.refused)
        warnings.warn(f"fit: the VAEs are trained one by one: {self._separated}", stacklevel=2)
        self._before = self._before[0], self._before[1] + programs.seconds
        self.steppers = [self._stepper_of([member]) for member in self.members]
        for stepper in self.steppers:
            stepper.ahead = False  # they take turns

    def _share_the_time(self) -> None:
        """The seconds of members that take turns are those of all together."""
        for member in self._active:
            if member.records.seconds:
                member.records.seconds[-1] = self.clock.seconds

    def execution(self, member: Member) -> tuple[str, float]:
        """Returns how a member's steps ran, in words, and the seconds that capturing and compiling took."""
        several = len(self.members) > 1
        programs = self.steppers[member.index if len(self.steppers) > 1 else 0].programs
        seconds = self._before[1] + (0.0 if programs is None else programs.seconds)
        if programs is None or not programs.said:
            said = self._before[0] or ("uncompiled, one by one" if several else "uncompiled")
        else:
            said = programs.said
        return (f"one by one: {self._separated}; {said}" if self._separated else said), seconds

    # ------------------------------------------------------------------ the state of the run

    def state(self) -> dict[str, Any]:
        """Returns all that the next step depends on, and the records; see `put_back`."""
        self.settle()
        for stepper in self.steppers:
            stepper.leave()
        return {
            "step": self.step,
            "seconds": self.clock.seconds,
            "members": [member.state() for member in self.members],
            "execution": self.execution(self.members[0]),
        }

    def put_back(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state, before the first step: in place."""
        self.step, self.clock.seconds = state["step"], state["seconds"]
        for member, own in zip(self.members, state["members"], strict=True):
            member.put_back(own)
        self._before = state["execution"][0], state["execution"][1]

    def history(self, member: Member, compile_seconds: float) -> History:
        """Returns a member's history.

        Arguments:
            member: The member.
            compile_seconds: Time of compilation beside that of the steps.
        """
        said, seconds = self.execution(member)
        return History.of(member.records, member.watch, member.stopped, member.remark, said, seconds + compile_seconds)


def _metrics(member: Member) -> dict[str, float]:
    records = member.records
    if not records.seconds:
        return {"bound": float("nan"), "samples": 0, "seconds": 0.0}
    return {"bound": records.bounds[-1], "samples": records.samples[-1], "seconds": records.seconds[-1]}


@contextmanager
def training_mode(
    members: Sequence[Member], seed: int, stream: str, training: Training, calls: int, busy: Busy
) -> Iterator[Terms]:
    """A block in which steps are taken: modules in training mode, a random stream of its own, Ctrl-C held back.

    After it the modules are in evaluation mode.

    Arguments:
        members: The VAEs in training.
        seed: Seed of the run.
        stream: Name of the random stream.
        training: The settings of the run.
        calls: How many steps are to be taken, as far as is known.
        busy: A block with a title for what takes long.

    Yields:
        What compiling parts of the algorithms cost.
    """
    with ExitStack() as stack:
        stack.enter_context(isolated(seed, stream))
        for member in members:
            stack.enter_context(in_training(member.both))
        stack.enter_context(networks_in(training.precision))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(deferrable())
        mode = True if training.compile == "full" else training.compile
        terms = stack.enter_context(enabled(mode, calls, busy))
        warnings.filterwarnings("ignore", message="Encountered NaN")  # Pyro's; ours names the term
        yield terms

r"""A training run of R replicates: what is taken together, what apart, and who stops when."""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.engine.compilation.cost import CAPTURE, MOST, Busy, Mode
from pyro_vae.engine.errors import CaptureError, CompilationError
from pyro_vae.engine.step.replicated_step import Stack
from pyro_vae.errors import NonFiniteError
from pyro_vae.runtime.interrupts import uninterrupted
from pyro_vae.training.minibatches import Minibatches
from pyro_vae.training.replicates import Replicate, ReplicatedPlan, kinds_of
from pyro_vae.training.schedules import factor_of
from pyro_vae.training.stacked_minibatches import Minibatch, epoch

# Steps of a kind that are timed before it is decided whether to compile them.
_TIMED = 3
# Share of an uncompiled step's time that compiling saves at least.
_SAVED = 0.4
# Steps between two looks at what failed; elsewhere than on a CPU each look waits for the device.
_LOOK, _LOOK_ELSEWHERE = 1, 16


class _Taken(NamedTuple):
    """A step of all replicates at which nobody has looked yet."""

    minibatch: Minibatch
    bound: Tensor | None
    seconds: float


class Run:
    """The training of R replicates.

    Arguments:
        replicates: All of them.
        total: Steps of the run.
        mode: Whether to compile.
        busy: A block with a title, for what takes long.
        common: Whether minibatches and noise are common.
    """

    def __init__(self, replicates: list[Replicate], total: int, mode: Mode, busy: Busy, common: bool) -> None:
        self.replicates, self.total, self.mode, self.busy, self.common = replicates, total, mode, busy, common
        self.look = _LOOK if replicates[0].vae.device.type == "cpu" else _LOOK_ELSEWHERE
        self.stack, self.plans, self.kinds = Stack(), dict[Any, ReplicatedPlan](), list[int]()
        self.step, self.time, self.compile_seconds = 0, 0.0, 0.0
        self.said, self.apart = "uncompiled, one by one", mode is False
        self.taken: list[_Taken] = []
        self.moved_apart = True

    @property
    def active(self) -> list[Replicate]:
        """Those that still train."""
        return [replicate for replicate in self.replicates if not replicate.stopped]

    def train(self, made: Sequence[Minibatches], report: Callable[[int, float], None]) -> None:
        """Takes the steps, and leaves every replicate with why it stopped."""
        try:
            while self.step < self.total and self.active:
                for minibatch in epoch(made, len(self.replicates)):
                    self.take(minibatch)
                    last = [r.stepper.bounds[-1] for r in self.active if r.stepper.bounds]
                    report(self.step, statistics.fmean(last) if last else float("nan"))
                    self.validate()
                    if self.step == self.total or not self.active:
                        break
            self.settle()
        except KeyboardInterrupt:
            self.settle()
            for replicate in self.active:
                replicate.stop("interrupted")
        finally:
            self.stack.release()
            if not self.moved_apart:
                for replicate in self.replicates:
                    replicate.ledger.write()
        for replicate in self.replicates:
            self._conclude(replicate)

    def _conclude(self, replicate: Replicate) -> None:
        if not replicate.stopped:
            try:
                replicate.stepper.settle()
            except NonFiniteError as error:
                replicate.diverge(error)
            replicate.check_parameters()
        replicate.stepper.finish()
        if replicate.stopped != "diverged":
            replicate.watch.restore()
            replicate.remark = replicate.inference.remark()
        replicate.stopped = replicate.stopped or "completed"

    # ------------------------------------------------------------------ one step

    def take(self, minibatch: Minibatch) -> None:
        """Takes one step of every replicate that is active."""
        plan = self._plan_for(minibatch) if self.step and not self.apart else None
        if plan is None:
            self._take_apart(minibatch)
        else:
            self._take_together(plan, minibatch)
        self.step += 1

    def _take_apart(self, minibatch: Minibatch) -> None:
        self._part()
        start = time.perf_counter()
        for replicate in self.active:
            try:
                with replicate.stream.drawing():
                    replicate.stepper.take(minibatch.of(replicate.index), minibatch.rows[replicate.index])
            except NonFiniteError as error:
                replicate.diverge(error)
        self.time += time.perf_counter() - start
        for replicate in self.active:
            replicate.stepper.seconds[-1:] = [self.time]

    def _part(self) -> None:
        """Makes every replicate's own optimizer and streams what they would be if it had been trained by itself."""
        self.settle()
        if not self.moved_apart:
            for replicate in self.replicates:
                replicate.ledger.write()
                if self.common and replicate.index:
                    replicate.stream = copy.copy(self.replicates[0].stream)
        self.moved_apart = True

    def _take_together(self, plan: ReplicatedPlan, minibatch: Minibatch) -> None:
        if self.moved_apart:
            for replicate in self.replicates:
                replicate.ledger.read()
            for known in self.plans.values():
                known.follow()
            self.moved_apart = False
        self._set_rates()
        batch = minibatch.batch.to(self.replicates[0].vae.device, self.replicates[0].vae.dtype)
        batch = batch._replace(x=batch.x.to(self.replicates[0].vae.dtype))
        start = time.perf_counter()
        with uninterrupted():
            bound = plan.take(batch, [replicate.stream for replicate in self.replicates])
            seconds = time.perf_counter() - start
            self.time += seconds
            self.taken.append(_Taken(minibatch, bound, self.time))
        plan.seconds.append(seconds)
        if len(self.taken) >= self.look:
            self.settle()

    def _set_rates(self) -> None:
        run = self.replicates[0].stepper
        if run.schedule is None:
            return
        factor = factor_of(run.schedule, self.step)
        for replicate in self.replicates:
            for group, rate in zip(replicate.stepper.optimizer.param_groups, replicate.stepper.rates, strict=True):
                group["lr"] = rate * factor
            replicate.ledger.read_rates()

    def settle(self) -> None:
        """Looks at the steps since the last look: records their bounds, and stops and names what has failed."""
        taken, self.taken = self.taken, []
        if not taken:
            return
        failed = self.stack.of([replicate.ledger.failed for replicate in self.replicates]).tolist()
        done = self.stack.of([replicate.ledger.done for replicate in self.replicates]).tolist()
        known = [step.bound for step in taken if step.bound is not None]
        bounds = torch.stack(known).tolist() if known else [None] * len(taken)  # every step has one, or none
        for r, replicate in enumerate(self.replicates):
            if replicate.stopped:
                continue
            phases = len(replicate.stepper.phases)
            good = (done[r] - replicate.settled) // phases if failed[r] else len(taken)
            for step, bound in zip(taken[:good], bounds, strict=False):
                replicate.record(float("nan") if bound is None else bound[r], step.minibatch.size, step.seconds)
            replicate.settled = done[r]
            if failed[r]:
                replicate.name_failure(taken[good].minibatch.of(r), taken[good].minibatch.rows[r])

    def validate(self) -> None:
        """Evaluates the held-out data of every replicate where that is due."""
        due = [replicate for replicate in self.active if replicate.watch.due(self.step, self.total)]
        if due:
            self.settle()
        for replicate in due:
            replicate.check_parameters()
            if replicate.stopped:
                continue
            try:
                replicate.watch.evaluate(self.step)
            except NonFiniteError as error:
                replicate.diverge(error)
            if replicate.watch.exhausted and not replicate.stopped:
                replicate.stop("early stopping")

    # ------------------------------------------------------------------ together or apart

    def _plan_for(self, minibatch: Minibatch) -> ReplicatedPlan | None:
        """The program for a minibatch; None where its step is to be taken apart."""
        key = tuple(None if t is None else (tuple(t.shape), t.dtype) for t in minibatch.batch)
        plan = self.plans.get(key)
        if plan is None:
            if len(self.plans) >= MOST or not self._repays_capture():
                return None
            plan = self._captured(minibatch)
            if plan is None:
                return None
            self.plans[key] = plan
        plan.uses += 1
        if not plan.decided:
            self._decide(plan)
        return plan

    def _repays_capture(self) -> bool:
        if self.mode is True or self.plans:
            return True
        # The first step of the first replicate loads what all others use.
        fastest = min((r.stepper.time / max(r.stepper.step, 1) for r in self.active), default=0.0)
        if fastest * len(self.active) * (self.total - self.step) > 2 * CAPTURE:  # of one replicate, and of all
            return True
        self.apart = True
        self.said = f"uncompiled, one by one: {self.total} steps would not repay the capture"
        return False

    def _captured(self, minibatch: Minibatch) -> ReplicatedPlan | None:
        start = time.perf_counter()
        try:
            with self.busy("capturing"):
                self.kinds = self.kinds or kinds_of(self.replicates)
                plan = ReplicatedPlan.of(self.replicates, self.kinds, self.stack, minibatch)
        except CaptureError as error:
            if self.mode is True:
                raise
            self._separate(str(error))
            return None
        finally:
            self.compile_seconds += time.perf_counter() - start
        self.said = f"{len(self.replicates)} replicates in one program, uncompiled"
        return plan

    def _separate(self, reason: str) -> None:
        """Has every replicate trained by itself from here on, each compiled where that saves time."""
        warnings.warn(f"fit: the VAEs are trained one by one: {reason}", stacklevel=6)
        self.apart, self.said = True, f"one by one: {reason}"
        self._part()
        for replicate in self.replicates:
            replicate.stepper.ahead = False  # they take turns
            replicate.stepper.compile_steps("auto", self.total, self.busy)

    def _decide(self, plan: ReplicatedPlan) -> None:
        """Compiles a plan where that saves time."""
        if self.mode is not True:
            if len(plan.seconds) < _TIMED:
                return
            left = (self.total - self.step) * plan.uses / self.step
            plan.decided = True
            if plan.price > _SAVED * statistics.median(plan.seconds) * left:
                return
        plan.decided = True
        try:
            with self.busy("compiling"):
                self.compile_seconds += plan.compile()
        except CompilationError as error:
            if self.mode is True:
                raise
            warnings.warn(f"fit: runs uncompiled: {error}", stacklevel=6)
            return
        self.said = f"{len(self.replicates)} replicates in one program, compiled in {self.compile_seconds:.1f} s"

    def execution(self, replicate: Replicate) -> tuple[str, float]:
        """How a replicate's steps ran, in words, and the seconds that capturing and compiling took."""
        said, seconds = replicate.stepper.execution, replicate.stepper.compile_seconds
        return (f"{self.said}; {said}", seconds) if seconds else (self.said, self.compile_seconds)

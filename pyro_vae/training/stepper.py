r"""Takes the steps of one VAE, or of several together: operation by operation, or in a program."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.errors import NonFiniteError
from pyro_vae.runtime.interrupts import uninterrupted
from pyro_vae.training import eager_step
from pyro_vae.training.member import Member
from pyro_vae.training.options import Training
from pyro_vae.training.program import Program, Queued
from pyro_vae.training.stacked_minibatches import Minibatch, Source
from pyro_vae.training.when_to_compile import Programs, StepKind, layout

# Compiled steps run in stretches with one finiteness check at the end. A stretch has at most so many steps, takes so
# many seconds, and its minibatches and noise take so many bytes. Ctrl-C waits for its end.
_MOST, _SECONDS, _BYTES = 64, 0.02, {"cpu": 2**21}
_BYTES_ELSEWHERE = 2**26
# Stretches of one step each, before the length of longer ones is chosen.
_SINGLE = 3


@dataclass
class Clock:
    """Wall time of a run's steps, without validation, callbacks and compilation."""

    seconds: float = 0.0


class Stepper:
    """Takes the steps of members: in one program where there is one, else member after member.

    Arguments:
        members: One VAE in training, or several.
        programs: Their compiled steps; None where all steps run operation by operation.
        training: The settings of the run.
        clock: Counts the time of the steps.
        source: Source of the minibatches.
        followed: Whether the user's own code runs between two steps, and may change what a program holds as constants.

    Attributes:
        ahead: Whether a stretch may have several steps.
        queue: Steps that are queued: their result is unchecked.
    """

    def __init__(
        self,
        members: Sequence[Member],
        programs: Programs | None,
        training: Training,
        clock: Clock,
        source: Source,
        followed: bool,
    ) -> None:
        self.members, self.programs, self.training, self.clock = list(members), programs, training, clock
        self.source, self.followed, self.ahead = source, followed, True
        self.program: Program | None = None
        self.queue: list[Queued] = []
        self._kind: StepKind | None = None
        self._layout: object = None

    @property
    def inside(self) -> bool:
        """Whether the last step was taken by a program."""
        return self.programs is not None and self.programs.inside

    def choose(self, minibatch: Minibatch, step: int) -> None:
        """Chooses how the next step runs, and compiles it where that saves time.

        Arguments:
            minibatch: The members' minibatches.
            step: Steps taken so far, with those that are queued.
        """
        for member, rows in zip(self.members, minibatch.rows, strict=True):
            member.inference.visit(rows)
        if not self._continues(minibatch):
            self.settle()
            self._choose(minibatch, step)

    def take(self, minibatch: Minibatch, factor: float | None) -> None:
        """Takes one step of every member that still trains, as `choose` has decided. It may wait for `settle`.

        Arguments:
            minibatch: The members' minibatches.
            factor: Factor of the learning rates; None without a schedule.
        """
        if self.program is None:
            self._take_eagerly(minibatch, factor)
            return
        if not self.source.fresh and self.program.stretch > 1:
            # The next minibatch may use the same memory.
            minibatch = minibatch._replace(batch=minibatch.batch.map(torch.clone))
        with self._drawing():
            self.queue.append(Queued(minibatch, factor, self.program.draw()))
        if len(self.queue) >= (self.program.stretch if self.ahead else 1):
            self.settle()

    def _continues(self, minibatch: Minibatch) -> bool:
        """Whether a step is of the kind of those that are queued."""
        if not self.queue or self.programs is None:
            return False
        if self.followed:
            return self.programs.kind_of(minibatch) is self._kind
        return layout(minibatch) == self._layout

    def _choose(self, minibatch: Minibatch, step: int) -> None:
        """Chooses how the steps of a kind run."""
        if self.programs is None:
            return
        was_inside = self.programs.inside
        self._kind, self._layout = self.programs.kind_of(minibatch), layout(minibatch)
        self.program = self.programs.program_for(self._kind, minibatch, step)
        if self.program is None and was_inside:
            self._share_the_stream()
            self.keep_buffers()

    def _drawing(self) -> AbstractContextManager[None]:
        """A block in which one member alone draws from its own stream; a shared program has noise of each."""
        return self.members[0].drawing() if len(self.members) == 1 else nullcontext()

    def keep_buffers(self) -> None:
        """Keeps the present buffers of all members: steps in a program keep no copy of them."""
        for member in self.members:
            if not member.stopped:
                member.keep_buffers()

    # ------------------------------------------------------------------ operation by operation

    def _take_eagerly(self, minibatch: Minibatch, factor: float | None) -> None:
        """Takes one step of each member that still trains, one after another."""
        took = []
        for i, member in enumerate(self.members):
            if member.stopped:
                continue
            with member.drawing():
                start = time.perf_counter()
                member.set_rates(factor)
                try:
                    bound = eager_step.take_step(
                        *(member, minibatch.of(i), minibatch.rows[i]),
                        *(self.training.clip_norm, self.training.check_support),
                    )
                except NonFiniteError as error:
                    member.diverge(error)
                    continue
                took.append(time.perf_counter() - start)
                self.clock.seconds += took[-1]
                member.records.add([bound], [minibatch.size], self.clock.seconds)
        if self._kind is not None and not self._kind.decided and took:
            # The first member's first step loads what the others use, so the shortest counts.
            self._kind.seconds.append(min(took) * len(took))

    # ------------------------------------------------------------------ in a program

    def settle(self) -> None:
        """Takes the queued steps and checks them: records their bounds, and stops the members that failed."""
        queue, self.queue = self.queue, []
        if not queue or self.program is None:
            return
        with uninterrupted():
            start = time.perf_counter()
            with self._drawing():  # phases that are not captured draw now
                bounds = self.program.run(queue)
            failed = self.program.failed()
            seconds = time.perf_counter() - start
            self.clock.seconds += seconds
            if self._kind is not None and not self._kind.decided:
                self._kind.seconds.append(seconds / len(queue))
            self._record(queue, bounds, failed)
            self._lengthen(self.program, seconds, queue)

    def _record(self, queue: Sequence[Queued], bounds: Sequence[Tensor | None], failed: Sequence[bool]) -> None:
        """Records the steps of every member up to its first failure, and stops it there."""
        found = [bound for bound in bounds if bound is not None]
        values = torch.stack(found).reshape(len(found), -1).tolist() if found else []
        sizes = [step.minibatch.size for step in queue]
        some = any(flag and not member.stopped for flag, member in zip(failed, self.members, strict=True))
        done = self.program.done() if some and self.program is not None else []
        for i, member in enumerate(self.members):
            if member.stopped:
                continue
            good = (done[i] - member.settled) // member.moving if failed[i] else len(queue)
            member.settled += good * member.moving
            own = [value[i] for value in values[:good]] if values else [float("nan")] * good
            member.records.add(own, sizes[:good], self.clock.seconds)
            if failed[i]:
                self._name_failure(member, queue[good], i)

    def _name_failure(self, member: Member, step: Queued, i: int) -> None:
        """Stops a member at a step that failed in a program, and says what was not finite."""
        member.keep_buffers()  # a failed step changes nothing
        why = "the loss or its gradient" if self.program is None else self.program.why(step, i)
        try:
            member.fail(step.minibatch.of(i), step.minibatch.rows[i], why)
        except NonFiniteError as error:
            member.diverge(error)

    def _lengthen(self, program: Program, seconds: float, queue: Sequence[Queued]) -> None:
        """Chooses how many steps a stretch has, once it is known how long they take."""
        program.checks += 1
        if program.checks == _SINGLE and program.captured:
            noise = [tensor for drawn in queue[0].noise.values() for tensor in drawn]
            size = sum(tensor.nbytes for tensor in (*queue[0].minibatch.batch.tensors, *noise))
            room = _BYTES.get(self.members[0].vae.device.type, _BYTES_ELSEWHERE) // max(size, 1)
            program.stretch = max(1, min(_MOST, int(_SECONDS * len(queue) / seconds), room))

    def leave(self) -> None:
        """Tells the optimizers how many steps the programs have taken, and the members which noise is drawn."""
        if self.programs is not None and self.programs.inside:
            self.programs.leave()
            self._share_the_stream()

    def _share_the_stream(self) -> None:
        """Where noise is common, a program draws from the first member's stream alone; gives the others its state."""
        if self.source.common:
            for member in self.members[1:]:
                member.stream = copy.copy(self.members[0].stream)

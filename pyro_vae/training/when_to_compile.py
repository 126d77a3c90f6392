r"""When a training step is compiled, and the program of each kind of minibatch."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_vae.engine.compilation.cost import CAPTURE, CAPTURED, MOST, STACKING, STEP, TIMED, WARM, Busy
from pyro_vae.engine.errors import CaptureError, CompilationError
from pyro_vae.training.member import Member
from pyro_vae.training.options import Compile
from pyro_vae.training.program import Program
from pyro_vae.training.stacked_minibatches import Minibatch

# Entries of an optimizer's group that do not tell programs apart: learning rates are read at each step.
_NO_OPTIONS = {"params", "lr", "initial_lr"}
_PLAIN = {bool, int, float, str}


class Key:
    """Tells kinds of steps apart, each of which has a program of its own.

    A kind is decided by the minibatch's shapes, types and device, and by what a captured program holds as constants:
    the modules' modes, which parameters are trained, the optimizers' options, and plain values of the modules such as
    the weight of a term.

    Arguments:
        members: The members that the program moves.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        parts = [part for member in members for part in member.both.modules()]
        self._own = [vars(part) for part in parts]
        self._plain = [
            (own, name)
            for own in self._own
            for name, value in own.items()
            if value.__class__ in _PLAIN and name != "training"
        ]
        self._parameters = [parameter for member in members for parameter in member.both.parameters()]
        self._optimizers = [member.optimizer for member in members]

    def of(self, minibatch: Minibatch) -> tuple[Any, ...]:
        """Returns the kind of a step now."""
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        return (
            layout(minibatch),
            tuple([own["training"] for own in self._own]),
            tuple([parameter.requires_grad for parameter in self._parameters]),
            tuple([option for group in groups for name, option in group.items() if name not in _NO_OPTIONS]),
            tuple([own.get(name) for own, name in self._plain]),
        )


def layout(minibatch: Minibatch) -> tuple[Any, ...]:
    """Returns shapes, types and devices of a minibatch."""
    return tuple([_layout_of(field) for field in minibatch.batch])


def _layout_of(field: Any) -> tuple[Any, ...] | None:
    if field is None:
        return None
    if isinstance(field, Tensor):
        return field.shape, field.dtype, field.device
    return tuple([_layout_of(tensor) for tensor in pytree.tree_leaves(field)])


@dataclass
class StepKind:
    """Steps of one kind.

    Attributes:
        seconds: Times of steps that ran operation by operation, of all members together.
        uses: Number of steps.
        program: The captured program; None where there is none.
        decided: Whether it is decided that there is none, or whether the program is compiled.
    """

    seconds: list[float] = field(default_factory=list)
    uses: int = 0
    program: Program | None = None
    decided: bool = False


class Programs:
    """Decides for each kind of step whether it is captured and compiled, and keeps the programs.

    Arguments:
        members: The members whose steps the programs take.
        make: Captures the program of an example.
        mode: See `Training.compile`.
        total: Steps of the run.
        busy: A block with a title for what takes long.
        title: What `said` begins with, such as the number of members.

    Attributes:
        seconds: Time that capturing and compiling took.
        said: How the steps run, in words; empty as long as nothing is decided.
        inside: Whether the last step was taken by a program, so that the ledgers know more than the optimizers.
        refused: Why the steps cannot be captured; None where they can.
    """

    def __init__(
        self,
        members: Sequence[Member],
        make: Callable[[Minibatch], Program],
        mode: Compile,
        total: int,
        busy: Busy,
        title: str = "",
    ) -> None:
        self.members, self.make, self.mode, self.total, self.busy, self.title = (
            *(members, make, mode),
            *(total, busy, title),
        )
        self.key, self.kinds = Key(members), dict[Any, StepKind]()
        self._first: StepKind | None = None
        self._eager = "uncompiled, one by one" if len(members) > 1 else "uncompiled"
        self.seconds, self.said, self.inside = 0.0, "", False
        self.refused: CaptureError | None = None

    def kind_of(self, minibatch: Minibatch) -> StepKind:
        """Returns the kind of a step."""
        kind = self.kinds.setdefault(self.key.of(minibatch), StepKind())
        self._first = self._first or kind
        return kind

    def _must(self, kind: StepKind) -> bool:
        """Whether a kind is compiled in any case, and not being able to is an error."""
        return self.mode is True or (self.mode == "full" and kind is self._first)

    def program_for(self, kind: StepKind, minibatch: Minibatch, step: int) -> Program | None:
        """Returns the program of a step, ready to run; None where the step is to run operation by operation.

        Arguments:
            kind: Kind of the step.
            minibatch: Its minibatch.
            step: Steps taken so far. The first step of a run is validated, and never in a program.

        Raises:
            CaptureError, CompilationError: For a kind that must be compiled.
        """
        kind.uses += 1
        if not kind.decided and step > 0:
            left = (self.total - step) * kind.uses / (step + 1)
            if kind.program is None:
                self._capture(kind, minibatch, left)
            if kind.program is not None and not kind.decided and (self._must(kind) or len(kind.seconds) >= TIMED):
                self._compile_if_it_saves(kind, kind.program, left)
        if kind.program is not None and not self._must(kind):
            try:
                kind.program.check_reads()
            except CaptureError as error:
                kind.program = None
                self._refuse(str(error))
        self._enter_or_leave(kind.program)
        return kind.program

    def leave(self) -> None:
        """Tells the optimizers how many steps the programs have taken."""
        if self.inside:
            for member in self.members:
                member.ledger.write()

    def _enter_or_leave(self, program: Program | None) -> None:
        if program is None:
            self.leave()
        elif not self.inside:
            for member in self.members:
                member.ledger.read()
            for known in {id(k.program): k.program for k in self.kinds.values()}.values():
                if known is not None:
                    known.follow()
        self.inside = program is not None

    # ------------------------------------------------------------------ the decision

    def _capture(self, kind: StepKind, minibatch: Minibatch, left: float) -> None:
        """Captures a kind where that saves time; a program of one member is compiled with it."""
        if sum(k.program is not None for k in self.kinds.values()) >= MOST:
            kind.decided = True
            self._refuse(f"minibatches of more than {MOST} kinds; a number that changes all the time must be a buffer")
            return
        alone, saved = len(self.members) == 1, float("inf")
        if not self._must(kind) and not self._together_already:
            if len(kind.seconds) < (TIMED if alone else 1):
                return
            seconds = statistics.median(kind.seconds)
            saved = (STEP if alone else STACKING).of(seconds, left)
            if saved < (WARM + CAPTURE if alone else CAPTURE):
                kind.decided = True
                self._does_not_repay("compilation" if alone else "capture")
                return
        try:
            program = self._timed("" if alone else "capturing", lambda: self.make(minibatch))
            kind.program, kind.seconds = program, []
            if alone:
                self._compile_if_it_saves(kind, program, left, saved)
            else:
                self.said = f"{self.title}, uncompiled"
        except (CaptureError, CompilationError) as error:
            kind.decided, kind.program = True, None
            if self._must(kind):
                raise
            self._refuse(str(error), error)

    @property
    def _together_already(self) -> bool:
        """Whether several members share a program for another kind; then they share one for every kind."""
        return len(self.members) > 1 and any(kind.program is not None for kind in self.kinds.values())

    def _compile_if_it_saves(self, kind: StepKind, program: Program, left: float, saved: float | None = None) -> None:
        """Compiles a captured program where that saves time."""
        kind.decided = True
        if saved is None:
            saved = float("inf") if self._must(kind) else CAPTURED.of(statistics.median(kind.seconds), left)
        cost = program.cost
        if cost + (CAPTURE if not program.runs_uncompiled else 0.0) > saved:
            if not program.runs_uncompiled:
                kind.program = None
                self._does_not_repay("compilation")
            return
        try:
            self._timed("compiling" if cost else "", program.compile)
        except CompilationError as error:
            if self._must(kind) or not program.runs_uncompiled:
                raise
            self._warn(str(error))
            return
        self.said = f"{self.title}{', ' * bool(self.title)}compiled in {self.seconds:.1f} s"

    def _timed(self, title: str, action: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        try:
            with self.busy(title) if title else nullcontext():
                return action()
        finally:
            self.seconds += time.perf_counter() - start

    def _does_not_repay(self, what: str) -> None:
        self.said = self.said or f"{self._eager}: {self.total} steps would not repay the {what}"

    def _refuse(self, reason: str, error: Exception | None = None) -> None:
        if isinstance(error, CaptureError):
            self.refused = error
        if len(self.members) > 1 and self.refused is not None:
            return  # the members go on one by one, which is said then
        if "compiled in" not in self.said:
            self.said = f"uncompiled: {reason}"
        self._warn(reason)

    def _warn(self, reason: str) -> None:
        warnings.warn(f"fit: runs uncompiled: {reason}", stacklevel=2)

r"""The protocol of a compiled step: one VAE's (`CompiledStep`) or that of R VAEs, stacked (`StackedStep`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from pyro_vae.training.stacked_minibatches import Minibatch

Noise = dict[int, list[Tensor]]
"""Noise of one step: for each phase the tensors that its draws are made of."""


class Queued(NamedTuple):
    """A step that waits to be taken.

    Attributes:
        minibatch: The members' minibatches.
        factor: Factor of the learning rates; None without a schedule.
        noise: Drawn when the step was queued, so that the order of all draws is that of the steps.
    """

    minibatch: Minibatch
    factor: float | None
    noise: Noise


class Program(Protocol):
    """The step of one or several members for minibatches of one kind, as captured and perhaps compiled graphs.

    Attributes:
        stretch: How many steps are taken between two checks that all was finite.
        checks: Number of such checks so far.
        captured: Whether all phases are captured. After a failure such a program changes nothing more.
        runs_uncompiled: Whether it may run before it is compiled, and is worth it.
    """

    stretch: int
    checks: int
    captured: bool
    runs_uncompiled: bool

    @property
    def cost(self) -> float:
        """Seconds that compiling takes, as far as is known beforehand."""
        ...

    def compile(self) -> float:
        """Compiles all phases; returns the seconds that it took."""
        ...

    def check_reads(self) -> None:
        """Raises a `CaptureError` where a value has changed on which a captured program depends."""
        ...

    def follow(self) -> None:
        """Finds tensors again that steps outside the program have replaced."""
        ...

    def draw(self) -> Noise:
        """Returns noise for one step, by phase."""
        ...

    def run(self, queue: Sequence[Queued]) -> list[Tensor | None]:
        """Takes the steps in order; returns the last phase's bound of each, shape ``()`` or ``(R,)``."""
        ...

    def failed(self) -> list[bool]:
        """Returns for each member whether a loss or gradient was not finite; waits for the device."""
        ...

    def done(self) -> list[int]:
        """Returns each member's number of updates in compiled steps."""
        ...

    def why(self, step: Queued, member: int) -> str:
        """Returns what was not finite in a step that failed."""
        ...

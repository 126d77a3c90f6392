r"""Learning-rate factors by step, for `fit(schedule=...)`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pyro_vae.errors import InputError


@dataclass(frozen=True)
class Schedule:
    """A factor of the learning rates, after a linear rise.

    Attributes:
        shape: Factor by the progress after the rise, from 0 to 1.
        total: Number of steps of the run.
        warmup: Number of steps of the rise.
    """

    shape: Callable[[float], float]
    total: int
    warmup: int

    def __call__(self, step: int) -> float:
        """Returns the factor at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        return float(self.shape(min(1.0, (step - self.warmup) / (self.total - self.warmup))))


SCHEDULE = (
    "`schedule` is a function from the step, counted from 0, to the factor of the learning rates, such as "
    "pyro_vae.training.schedules.cosine(1000)"
)


def factor_of(schedule: Callable[[int], float], step: int) -> float:
    """Returns the factor of the learning rates at a step.

    Arguments:
        schedule: Any function, such as those below make; a factor of nan ends a run as diverged.
        step: Counted from 0.

    Raises:
        InputError: Where it fails at step 0 or says there what is no factor: it is no schedule then.
    """
    if step:
        return float(schedule(step))
    name = getattr(schedule, "__name__", type(schedule).__name__)
    try:
        factor = schedule(0)
    except Exception as error:
        raise InputError(f"fit: {SCHEDULE}; `{name}` fails at step 0: {' '.join(str(error).split())}") from error
    try:
        number = float(factor)
    except (TypeError, ValueError):
        number = -math.inf
    if number < 0 or number == math.inf:
        raise InputError(f"fit: {SCHEDULE}, finite and not negative; at step 0 `{name}` says `{factor!r}`.")
    return number


def constant(total: int, *, warmup: int = 0) -> Schedule:
    """Returns a factor of 1, after ``warmup`` steps of linear rise."""
    return _schedule(lambda progress: 1.0, total, 1.0, warmup)


def linear(total: int, *, final: float = 0.0, warmup: int = 0) -> Schedule:
    """Returns a factor that falls from 1 to ``final`` in a line over ``total`` steps."""
    return _schedule(lambda progress: 1 + (final - 1) * progress, total, final, warmup)


def cosine(total: int, *, final: float = 0.0, warmup: int = 0) -> Schedule:
    """Returns a factor that falls from 1 to ``final`` along half a cosine over ``total`` steps.

    Reference: Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, equation 5.

    Example:
        >>> factor = cosine(100)
        >>> factor(0), round(factor(50), 6), round(factor(100), 6)
        (1.0, 0.5, 0.0)
    """
    return _schedule(
        lambda progress: final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2, total, final, warmup
    )


def exponential(total: int, *, final: float = 0.01, warmup: int = 0) -> Schedule:
    """Returns a factor that falls from 1 to ``final`` at a constant rate over ``total`` steps."""
    if final <= 0:
        raise InputError(f"exponential: `final` must be positive, got {final}.")
    return _schedule(lambda progress: final**progress, total, final, warmup)


def _schedule(shape: Callable[[float], float], total: int, final: float, warmup: int) -> Schedule:
    if not 0 <= final <= 1:
        raise InputError(f"schedule: `final` is a factor between 0 and 1, got {final}.")
    if not isinstance(warmup, int) or not 0 <= warmup < total:
        raise InputError(f"schedule: `warmup` is a number of steps below the total of {total}, got {warmup}.")
    return Schedule(shape, total, warmup)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "exponential": exponential,
    "linear": linear,
}

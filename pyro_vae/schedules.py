r"""Learning-rate factors by step, for `fit(schedule=...)`."""

from __future__ import annotations

import math
from collections.abc import Callable

from pyro_vae.errors import InputError

Schedule = Callable[[int], float]


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

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return float(shape(min(1.0, (step - warmup) / (total - warmup))))

    return factor


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "exponential": exponential,
    "linear": linear,
}

"""Inference algorithms, one a file, behind one interface; `ALGORITHMS` maps their short names to classes."""

from pyro_vae.errors import InputError, near_match
from pyro_vae.inference.aevb import AEVB
from pyro_vae.inference.analytic_kl import AnalyticKL
from pyro_vae.inference.inference import Inference, Loss, Phase
from pyro_vae.inference.wake_sleep import WakeSleep

ALGORITHMS: dict[str, type[Inference]] = {algorithm.name: algorithm for algorithm in (AEVB, AnalyticKL, WakeSleep)}


def algorithm(name: str) -> type[Inference]:
    """Returns the algorithm with a short name.

    Arguments:
        name: Such as ``"aevb"``.

    Raises:
        InputError: For an unknown name, with the nearest known one.

    Example:
        >>> algorithm("wake-sleep").__name__
        'WakeSleep'
    """
    if name not in ALGORITHMS:
        raise InputError(f"unknown inference algorithm `{name}`; {near_match(name, ALGORITHMS)}")
    return ALGORITHMS[name]


__all__ = ["AEVB", "ALGORITHMS", "AnalyticKL", "Inference", "Loss", "Phase", "WakeSleep", "algorithm"]

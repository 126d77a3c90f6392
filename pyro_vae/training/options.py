r"""The arguments of `fit` that cannot be used whatever the data, refused before anything is done."""

from __future__ import annotations

import inspect
import operator
from numbers import Real
from typing import Any, NamedTuple

import torch

from pyro_vae.errors import InputError
from pyro_vae.inference.interface import Inference
from pyro_vae.training.schedules import SCHEDULE
from pyro_vae.training.stepper import OptimizerFactory


class Counts(NamedTuple):
    """How long a run is, and what is counted in it; see `pyro_vae.fit`."""

    epochs: int | None
    steps: int | None
    batch_size: int
    validation_every: int | None
    early_stopping: int | None

    @classmethod
    def of(cls, *given: Any) -> Counts:
        """Returns the counts as integers.

        Raises:
            InputError: For a count that is not a positive integer, and unless one of ``epochs`` and ``steps`` is given.
        """
        counts = cls._make(map(whole, given))
        for name, value, count in zip(cls._fields, given, counts, strict=True):
            if (value is not None or name == "batch_size") and (count or 0) < 1:
                raise InputError(f"fit: `{name}` is a positive integer, got `{value!r}`.")
        if (counts.epochs is None) == (counts.steps is None):
            raise InputError("fit: give exactly one of `epochs` and `steps`.")
        return counts

    def total(self, per_epoch: int) -> int:
        """Returns the steps of the run."""
        return self.steps if self.steps is not None else (self.epochs or 0) * per_epoch


def whole(value: Any) -> int | None:
    """Returns an integer of any kind, NumPy's too, as an int; None for anything else, a bool among them."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def checked_seed(seed: Any) -> int:
    """Returns the seed of one VAE's run as an int."""
    found = whole(seed)
    if found is None:
        raise InputError(f"fit: `seed` is an integer, one for one VAE; got `{seed!r}`.")
    return found


def checked_algorithm(
    inference: Any, optimizer: Any, counts: Counts, keep: str, has_validation: bool
) -> tuple[Inference, OptimizerFactory]:
    """Returns the algorithm and the optimizer's maker of one VAE.

    Arguments:
        inference: See `pyro_vae.fit`.
        optimizer: As before.
        counts: As before.
        keep: As before.
        has_validation: Whether there are validation data.

    Raises:
        InputError: For what is none, and for one that cannot be used so.
    """
    if not isinstance(inference, Inference):
        uncalled = isinstance(inference, type) and issubclass(inference, Inference)
        given = f"the class `{inference.__name__}`, which is to be called" if uncalled else f"`{inference!r}`"
        raise InputError(f"fit: `inference` is an algorithm such as AEVB(), one for one VAE; got {given}.")
    if not callable(optimizer):
        raise InputError(
            "fit: `optimizer` is a function that makes one from parameters, such as "
            f"lambda p: torch.optim.Adam(p, lr=1e-3), one for one VAE; got `{_said(optimizer)}`."
        )
    _check_choice("keep", keep, ("best", "last"))
    watched = counts.early_stopping is not None or keep == "best"
    if watched and not has_validation:
        raise InputError('fit: `early_stopping` and keep="best" need `validation` data.')
    if watched and not inference.trains_posterior:
        raise InputError(
            f"fit: `{inference.name}` trains no posterior, so that the ELBO of validation data tells nothing of the "
            'model; use keep="last" without early_stopping.'
        )
    return inference, optimizer


def check_running(schedule: Any, clip_norm: Any, transform: Any, divergence: str, compile: Any) -> None:
    """Raises an `InputError` for what no step could use, and for an unknown way to run; see `pyro_vae.fit`."""
    _check_choice("divergence", divergence, ("raise", "stop"))
    if compile not in ("auto", True, False):
        raise InputError(f'fit: `compile` is "auto", True or False, got `{compile!r}`.')
    if schedule is not None and not callable(schedule):
        raise InputError(f"{SCHEDULE}; got `{_said(schedule)}`.")
    positive = isinstance(clip_norm, Real) and clip_norm is not True and float(clip_norm) > 0
    if clip_norm is not None and not positive:
        raise InputError(f"fit: `clip_norm` is a positive number, or None for no clipping; got `{clip_norm!r}`.")
    if transform is not None and not _takes(transform, torch.empty(0), torch.Generator()):
        raise InputError(
            "fit: `transform` is a function of x and a torch.Generator, such as lambda x, generator: "
            f"torch.bernoulli(x, generator=generator); got `{_said(transform)}`."
        )


def _check_choice(name: str, given: str, choices: tuple[str, str]) -> None:
    if given not in choices:
        raise InputError(f'fit: `{name}` is "{choices[0]}" or "{choices[1]}", got `{given!r}`.')


def _takes(function: Any, *arguments: Any) -> bool:
    """Whether something can be called with such arguments, as far as its signature tells."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True


def _said(value: Any) -> str:
    """What to call a value in an error: a name where it has one."""
    if isinstance(value, str):
        return repr(value)
    return str(getattr(value, "__name__", type(value).__name__))

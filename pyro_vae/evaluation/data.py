r"""The checked data of an evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import pyro

from pyro_vae.batch import Batch, DataLike
from pyro_vae.errors import InputError
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.data_check import check_values
from pyro_vae.vae.latent_variable_model import LatentVariableModel
from pyro_vae.vae.vae import require_model

# Largest size of the data that are encoded or decoded at once.
_BYTES = 2**26

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def of_a_vae(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Has a function refuse a first argument that is no VAE, with what to pass in its place."""

    @functools.wraps(function)
    def checked(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        if arguments or "vae" in named:
            model: Any = arguments[0] if arguments else named["vae"]
            require_model(function.__name__, model)
            if model.has_globals:  # the estimate is given a draw of what all data share
                given = model.at_globals(int(named.get("seed", 0)))  # type: ignore[call-overload]
                if arguments:
                    return function(given, *arguments[1:], **named)  # type: ignore[arg-type]
                return function(**{**named, "vae": given})  # type: ignore[call-arg]
        return function(*arguments, **named)

    return checked


def rows_at_once(vae: LatentVariableModel, most: int) -> int:
    """Returns how many data are encoded or decoded at once: at most so many, and no more than 64 MiB of x.

    Arguments:
        vae: The model.
        most: Largest number, for data of up to about 800 cells.
    """
    of_one = sum(tensor.numel() * tensor.element_size() for tensor in vae.blank(1).tensors)
    return max(1, min(most, _BYTES // max(1, of_one)))


def evaluated(caller: str, vae: LatentVariableModel, data: DataLike, *, weighted: bool = False) -> Batch:
    """Returns the data as a ready `Batch`, after a check of every value.

    Arguments:
        caller: Name of the calling function, for errors.
        vae: The VAE.
        data: Shape ``(N, *event_shape)``, in any form that `Batch.of` takes.
        weighted: Whether the caller uses weights.

    Raises:
        InputError: For data that do not fit the VAE, are not finite, or (while Pyro validates) are outside the
            likelihood's support; and for weights that would be ignored.
    """
    with isolated(0, "data"):  # for data sets that draw
        batch = vae.as_batch(data, caller)
    if batch.weight is not None and not weighted:
        raise InputError(
            f"{caller}: takes no weights, but the batch has some; pass batch._replace(weight=None), and weight the "
            "`pointwise` values of the result."
        )
    return check_values(vae, batch, pyro.distributions.is_validation_enabled(), caller)
